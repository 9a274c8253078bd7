"""The group of options of the networks. See simsiam/config/options.py for the other groups."""

from typing import Annotated, Literal

from models.choices import (
    FEATURES_PER_CHANNEL,
    RESNET_SETTINGS,
    ConvInit,
    HeadsBN,
    Stem,
    is_library_backbone,
)
from simsiam.config.options import SMALL_IMAGE
from simsiam.config.value_types import AtLeast1, Backbone
from utils.errors import require
from utils.option_group import Hint, Rule, option_group, to_flag


@option_group()
class NetworkOptions:
    """Network: the encoder f (backbone and projector) and the predictor h."""

    backbone: Annotated[Backbone, Hint("NAME")] = "resnet18"
    """Backbone: resnet10, which is small enough for a CPU, resnet18, resnet34 or resnet50; or a
    network of a library without its weights, as torchvision/convnext_tiny or
    timm/vit_tiny_patch16_224."""
    stem: Annotated[
        Stem | None, Hint("{cifar,imagenet}", default=f"cifar up to {SMALL_IMAGE} pixels")
    ] = None
    """First layers: cifar (3x3 convolution) or imagenet (7x7 of stride 2, max-pooling)."""
    width: AtLeast1 = 64
    """Channels of the first stage of a ResNet; a resnet18 has 8 x width features, a resnet50 32 x
    width."""
    in_dim: Annotated[
        AtLeast1 | None,
        Hint("N", default="follows from backbone and width"),
        Rule.CHANGEABLE_ON_RESUME,
    ] = None
    """Input dimension of the projector; if given, it must be the number of the backbone's
    features."""
    out_dim: AtLeast1 = 1024
    """Dimension d of the projections z and the predictions p."""
    h_dim: AtLeast1 = 512
    """Hidden dimension (bottleneck) of the predictor."""
    proj_layers: Literal[2, 3] = 2
    """Layers of the projector: the paper has 2 for CIFAR and 3 for ImageNet."""
    proj_hidden: Annotated[AtLeast1 | None, Hint("N", default="--out-dim")] = None
    """Hidden dimension of the projector."""
    heads_bn: HeadsBN = "paper"
    """Layers of the heads that have BN (table 3): those of the paper's default, none, the hidden
    layers, or all, which adds the output of h."""
    zero_init_residual: bool = True
    """Start each residual block as the identity (its last BN at zero)."""
    conv_init: ConvInit = "kaiming"
    """Initial weights of convolutions: kaiming (torchvision's) or torch (PyTorch's default)."""

    @property
    def num_features(self) -> int | None:
        """Number of a ResNet's features; None for a library's network, which must be built first.

        It is the projector's input dimension.
        """
        for name, features in FEATURES_PER_CHANNEL.items():
            if name == self.backbone:
                return self.width * features
        return None

    def __post_init__(self) -> None:
        if is_library_backbone(self.backbone):
            for name in RESNET_SETTINGS:
                value = getattr(self, name)
                require(
                    value == getattr(NetworkOptions, name),
                    f"{to_flag(name)} {value}: only for the ResNets of this program; the "
                    f"architecture of {self.backbone} is fixed. Drop the flag.",
                )
            return  # simsiam/commands/build_model.py checks `in_dim`
        require(
            self.in_dim is None or self.in_dim == self.num_features,
            f"--in-dim {self.in_dim}: {self.backbone} of width {self.width} has "
            f"{self.num_features} features. Give that number, or leave the flag out.",
        )
