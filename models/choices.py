"""The choices that the networks offer.

Nothing here imports torch, so that the command line can list the choices at once.
"""

import re
from typing import Literal

BackboneName = Literal["resnet10", "resnet18", "resnet34", "resnet50"]
Stem = Literal["cifar", "imagenet"]
ConvInit = Literal["kaiming", "torch"]
HeadsBN = Literal["paper", "none", "hidden", "all"]  # table 3 of the SimSiam paper

# Features of a backbone whose first stage has one channel; they grow with its width.
FEATURES_PER_CHANNEL: dict[BackboneName, int] = {
    "resnet10": 8,
    "resnet18": 8,
    "resnet34": 8,
    "resnet50": 32,
}

# ---------------------------------------------------------------- backbones of libraries

# The libraries whose networks can be backbones, as "torchvision/resnet50".
LIBRARIES = ("torchvision", "timm")
# The form of such a name. It has no other letters, so that no library takes it for a path or an
# address. A name of timm may have a tag after a dot.
LIBRARY_BACKBONE_PATTERN = rf"({'|'.join(LIBRARIES)})/[a-z0-9_]{{1,100}}(\.[a-z0-9_]{{1,100}})?"
# Settings that only the ResNets of this program have. Its name determines a library's network.
RESNET_SETTINGS = ("width", "stem", "zero_init_residual", "conv_init")


def is_library_backbone(name: object) -> bool:
    """Return whether a name has the form of a backbone of a library."""
    return isinstance(name, str) and re.fullmatch(LIBRARY_BACKBONE_PATTERN, name) is not None
