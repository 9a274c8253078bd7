"""The heads of SimSiam, projector and predictor, and a function that builds all its networks.

The quotations are from Chen & He 2020 (arXiv 2011.10566), section 3, "Baseline settings".

The argument `bn` says which fully-connected layers are followed by BN (section 4.4, table 3):

    "paper"   each layer of the projector, hidden layers of the predictor (the paper's default)
    "none"    no layer
    "hidden"  hidden layers of both heads
    "all"     every layer, also the output of the predictor

A linear layer before BN has no bias, because BN would subtract it again.
"""

import itertools
from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from models.batch_norm import BatchNorm1d
from models.choices import HeadsBN, is_library_backbone
from models.features import prepare_custom_backbone
from models.libraries import build_library_backbone, count_library_features
from models.resnet import BACKBONES

HEADS_BN_CHOICES = get_args(HeadsBN)
# Hyper-parameters cannot hold a backbone that the user has built. They hold this prefix and the
# name of its class instead. Saved checkpoints have the prefix, so it must not change.
CUSTOM_BACKBONE_PREFIX = "an own"


def build_networks(
    backbone: str | nn.Module, hp: Mapping[str, Any]
) -> tuple[nn.Module, nn.Sequential, nn.Module]:
    """Build the networks of SimSiam.

    Args:
        backbone: A name in `BACKBONES`, a name of a library's network, or a module that maps
            (B, 3, S, S) to (B, F).
        hp: The hyper-parameters of `SimSiam`.

    Returns:
        The backbone (B, 3, S, S) -> (B, F), the projector (B, F) -> (B, d) and the predictor
        (B, d) -> (B, d). Without a predictor, the last is the identity.

    Raises:
        ValueError: A name is unknown, or a module gives something other than (B, F).
    """
    bn = hp["heads_bn"]
    if bn not in HEADS_BN_CHOICES:
        raise ValueError(f"heads_bn must be one of {', '.join(HEADS_BN_CHOICES)}, got {bn!r}")

    if isinstance(backbone, nn.Module):
        network = backbone
        num_features = prepare_custom_backbone(backbone, hp["image_size"])
    elif is_library_backbone(backbone):
        num_features = count_library_features(backbone, hp["image_size"])
        network = build_library_backbone(backbone, hp["image_size"])
    elif backbone in BACKBONES:
        build_backbone = BACKBONES[backbone]
        network = build_backbone(hp["width"], hp["zero_init_residual"], hp["stem"], hp["conv_init"])
        network.image_size = hp["image_size"]
        num_features = network.num_features
    elif str(backbone).startswith(CUSTOM_BACKBONE_PREFIX):
        class_name = str(backbone).removeprefix(CUSTOM_BACKBONE_PREFIX).strip()
        raise ValueError(
            f"the backbone of this checkpoint is a custom {class_name}. Build it and pass it: "
            "load_from_checkpoint(path, backbone=module)"
        )
    else:
        names = ", ".join(BACKBONES)
        raise ValueError(
            f"backbone must be one of {names}, torchvision/NAME, timm/NAME, or a module, "
            f"got {backbone!r}"
        )

    d = hp["out_dim"]
    projector_hidden_dim = hp["proj_hidden"] or d
    projector = projection_mlp(num_features, projector_hidden_dim, d, hp["proj_layers"], bn)
    predictor: nn.Module = nn.Identity()
    if hp["predictor"]:
        predictor = prediction_mlp(d, hp["h_dim"], bn)
    return network, projector, predictor


def projection_mlp(
    in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2, bn: str = "paper"
) -> nn.Sequential:
    """Build the projector: (B, in_dim) -> (B, out_dim).

    "The projection MLP (in f) has BN applied to each fully-connected (fc) layer, including its
    output fc. Its output fc has no ReLU." As in the authors' code, the BN of the output has no
    learned scale and shift.

    Args:
        in_dim: Number of features of the backbone.
        hidden_dim: Dimension of the hidden layers.
        out_dim: Dimension d of the projections.
        layers: 2, as in the paper's CIFAR experiments (App. D), or 3, as in its ImageNet ones.
        bn: Layers that have BN, one of `HEADS_BN_CHOICES`.

    Raises:
        ValueError: `layers` is neither 2 nor 3.
    """
    if layers not in (2, 3):
        raise ValueError(f"the projector must have 2 or 3 layers, got {layers}")
    modules: list[nn.Module] = []
    dims = [in_dim] + [hidden_dim] * (layers - 1)
    for dim, next_dim in itertools.pairwise(dims):
        modules += _linear(dim, next_dim, bn=bn != "none")
        modules.append(nn.ReLU(inplace=True))
    modules += _linear(dims[-1], out_dim, bn=bn in ("paper", "all"), affine=False)
    return nn.Sequential(*modules)


def prediction_mlp(dim: int, hidden_dim: int, bn: str = "paper") -> nn.Sequential:
    """Build the predictor h: (B, dim) -> (B, dim).

    "The prediction MLP (h) has BN applied to its hidden fc layers. Its output fc does not have BN
    (ablation in Sec. 4.4) or ReLU. This MLP has 2 layers."

    Args:
        dim: Dimension d of projections and predictions.
        hidden_dim: Dimension of the hidden layer, which is a bottleneck in the paper.
        bn: Layers that have BN, one of `HEADS_BN_CHOICES`.
    """
    return nn.Sequential(
        *_linear(dim, hidden_dim, bn=bn != "none"),
        nn.ReLU(inplace=True),
        *_linear(hidden_dim, dim, bn=bn == "all"),
    )


def _linear(in_dim: int, out_dim: int, bn: bool, affine: bool = True) -> list[nn.Module]:
    """Return a linear layer, and its BN if `bn`."""
    if bn:
        return [nn.Linear(in_dim, out_dim, bias=False), BatchNorm1d(out_dim, affine=affine)]
    return [nn.Linear(in_dim, out_dim)]
