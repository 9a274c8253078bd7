"""The choices that the networks offer.

Nothing here imports torch, so that the command line can list the choices at once.
"""

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
