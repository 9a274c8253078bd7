"""models/heads.py against lightly's heads and the paper's description."""

import itertools
from typing import get_args, get_type_hints

import pytest
import torch
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import nn

from models.choices import BackboneName
from models.heads import HEADS_BN_CHOICES, prediction_mlp, projection_mlp
from models.resnet import BACKBONES, CONV_INITS, STEMS
from simsiam.config.network_options import NetworkOptions


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give the layers of `theirs`, in their order, the weights of `ours`."""
    pairs = list(zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True))
    with torch.no_grad():
        for (_, source), (name, target) in pairs:
            assert source.shape == target.shape, name
            target.copy_(source)


def test_three_layer_projector_is_lightlys() -> None:
    ours, theirs = projection_mlp(32, 48, 24, layers=3), SimSiamProjectionHead(32, 48, 24)
    copy_weights(ours, theirs)
    x = torch.randn(16, 32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_predictor_is_lightlys() -> None:
    ours, theirs = prediction_mlp(24, 8), SimSiamPredictionHead(24, 8, 24)
    copy_weights(ours, theirs)
    x = torch.randn(16, 24)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("layers", [2, 3])
def test_projections_have_mean_zero_and_variance_one(layers: int) -> None:
    z = projection_mlp(32, 48, 24, layers)(torch.randn(512, 32))
    torch.testing.assert_close(z.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(24), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "head", [projection_mlp(8, 8, 8, 2), projection_mlp(8, 8, 8, 3), prediction_mlp(8, 4)]
)
def test_no_linear_layer_before_bn_has_a_bias(head: nn.Sequential) -> None:
    for layer, following in itertools.pairwise(head):
        if isinstance(layer, nn.Linear):
            assert (layer.bias is None) == isinstance(following, nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("bn", "projector", "predictor"),
    [
        ("paper", [1, 1], [1, 0]),
        ("none", [0, 0], [0, 0]),
        ("hidden", [1, 0], [1, 0]),
        ("all", [1, 1], [1, 1]),
    ],
)
def test_bn_follows_the_layers_of_table_3(
    bn: str, projector: list[int], predictor: list[int]
) -> None:
    for head, expected in (
        (projection_mlp(8, 8, 8, 2, bn), projector),
        (prediction_mlp(8, 4, bn), predictor),
    ):
        layers = list(head)
        has_bn = [
            isinstance(following, nn.BatchNorm1d)
            for layer, following in itertools.pairwise([*layers, None])
            if isinstance(layer, nn.Linear)
        ]
        assert has_bn == expected


def test_the_command_line_offers_what_the_networks_accept() -> None:
    """models/ and the options list the choices separately, since `--help` must not import torch."""
    hints = get_type_hints(NetworkOptions)
    assert get_args(hints["heads_bn"]) == HEADS_BN_CHOICES
    assert get_args(BackboneName) == tuple(BACKBONES)
    assert get_args(hints["conv_init"]) == CONV_INITS
    assert get_args(get_args(hints["stem"])[0]) == STEMS  # Optional[Literal[...]]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_options_know_the_number_of_features(name: str) -> None:
    assert NetworkOptions(backbone=name, width=2).num_features == BACKBONES[name](2).num_features


def test_other_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 3"):
        projection_mlp(8, 8, 8, 4)
