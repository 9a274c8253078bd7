"""The networks of SimSiam: the encoder f, which is a backbone and a projector, and the predictor h."""

import torch
from torch import Tensor, nn

from models.heads import BN, prediction_mlp, projection_mlp
from models.resnet import BACKBONES

OWN_BACKBONE = "an own"  # what hyper-parameters say of a backbone that was not built here, before its class


def build_networks(
    backbone: str | nn.Module,
    width: int,
    out_dim: int,
    h_dim: int,
    proj_layers: int,
    proj_hidden: int | None,
    heads_bn: str,
    predictor: bool,
    zero_init_residual: bool,
    stem: str,
    image_size: int | None,
) -> tuple[nn.Module, nn.Sequential, nn.Module]:
    """Backbone (B, 3, S, S) -> (B, F), projector (B, F) -> (B, d), predictor (B, d) -> (B, d); see `SimSiam`.

    Raises ValueError for an unknown name, or a backbone of one's own that gives something else.
    """
    if heads_bn not in BN:
        raise ValueError(f"heads_bn {heads_bn!r}: there are {', '.join(BN)}")
    if isinstance(backbone, nn.Module):
        network, features = backbone, count_features(backbone, image_size or 32)
    else:
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}: there are {', '.join(BACKBONES)}")
        network = BACKBONES[backbone](width, zero_init_residual, stem)
        network.image_size, features = image_size, network.num_features
    projector = projection_mlp(features, proj_hidden or out_dim, out_dim, proj_layers, heads_bn)
    return network, projector, prediction_mlp(out_dim, h_dim, heads_bn) if predictor else nn.Identity()


@torch.no_grad()
def count_features(network: nn.Module, size: int) -> int:
    """F of a network (B, 3, S, S) -> (B, F). Raises ValueError for any other output."""
    was_training = network.training
    out = network.eval()(torch.zeros(1, 3, size, size))
    network.train(was_training)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise ValueError("the backbone must give features (B, F): leave its classifier out")
    return out.shape[1]
