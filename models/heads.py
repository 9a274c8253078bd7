"""The two MLPs of SimSiam (Chen & He 2020, arXiv 2011.10566, section 3, "Baseline settings"), and all its networks.

`bn` says which fully-connected layers BN is applied to (section 4.4, table 3): "paper" is the default of both heads,
"none" of them, the "hidden" ones alone, or "all", the predictor's output too. A linear layer before BN has no bias: BN
would take it out again.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.batch_norm import BatchNorm1d
from models.resnet import BACKBONES

BN = ("paper", "none", "hidden", "all")
OWN_BACKBONE = (
    "an own"  # what hyper-parameters say of a backbone that was not built here, before its class
)


def build_networks(
    backbone: str | nn.Module, hp: Mapping[str, Any]
) -> tuple[nn.Module, nn.Sequential, nn.Module]:
    """Backbone (B, 3, S, S) -> (B, F), projector (B, F) -> (B, d), predictor (B, d) -> (B, d), by those of `SimSiam`.

    Raises ValueError for an unknown name, or a backbone of one's own that gives something else.
    """
    if hp["heads_bn"] not in BN:
        raise ValueError(f"heads_bn {hp['heads_bn']!r}: there are {', '.join(BN)}")
    if isinstance(backbone, nn.Module):
        network, features = backbone, count_features(backbone, hp["image_size"] or 32)
    else:
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}: there are {', '.join(BACKBONES)}")
        network = BACKBONES[backbone](
            hp["width"], hp["zero_init_residual"], hp["stem"], hp["conv_init"]
        )
        network.image_size, features = hp["image_size"], network.num_features
    d, bn = hp["out_dim"], hp["heads_bn"]
    projector = projection_mlp(features, hp["proj_hidden"] or d, d, hp["proj_layers"], bn)
    return (
        network,
        projector,
        prediction_mlp(d, hp["h_dim"], bn) if hp["predictor"] else nn.Identity(),
    )


@torch.no_grad()
def count_features(network: nn.Module, size: int) -> int:
    """F of a network (B, 3, S, S) -> (B, F). Raises ValueError for any other output."""
    was_training = network.training
    out = network.eval()(torch.zeros(1, 3, size, size))
    network.train(was_training)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise ValueError("the backbone must give features (B, F): leave its classifier out")
    return out.shape[1]


def projection_mlp(
    in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2, bn: str = "paper"
) -> nn.Sequential:
    """The projector g: (B, in_dim) -> (B, out_dim).

    "The projection MLP (in f) has BN applied to each fully-connected (fc) layer, including its output fc. Its output fc
    has no ReLU." The output's BN has no affine part, as in the authors' code.

    Args:
        layers: 2, as in the paper's CIFAR experiments (App. D), or 3, as in its ImageNet ones.
    """
    if layers not in (2, 3):
        raise ValueError(f"the projector has 2 or 3 layers, not {layers}")
    dims = [in_dim] + [hidden_dim] * (layers - 1)
    hidden: list[nn.Module] = []
    for i, o in itertools.pairwise(dims):
        hidden += [*_fc(i, o, bn != "none"), nn.ReLU(inplace=True)]
    return nn.Sequential(*hidden, *_fc(dims[-1], out_dim, bn in ("paper", "all"), affine=False))


def prediction_mlp(dim: int, hidden_dim: int, bn: str = "paper") -> nn.Sequential:
    """The predictor h: (B, dim) -> (B, dim), through a bottleneck of `hidden_dim`.

    "The prediction MLP (h) has BN applied to its hidden fc layers. Its output fc does not have BN (ablation in Sec.
    4.4) or ReLU. This MLP has 2 layers."
    """
    return nn.Sequential(
        *_fc(dim, hidden_dim, bn != "none"),
        nn.ReLU(inplace=True),
        *_fc(hidden_dim, dim, bn == "all"),
    )


def _fc(i: int, o: int, bn: bool, affine: bool = True) -> list[nn.Module]:
    if bn:
        return [nn.Linear(i, o, bias=False), BatchNorm1d(o, affine=affine)]
    return [nn.Linear(i, o)]
