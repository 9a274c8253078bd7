"""Whoever uses a network in eval mode leaves each of its modules in the mode it had."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.eval_mode import eval_mode
from models.features import prepare_custom_backbone
from simsiam.callbacks.sharded_features import extract_batches
from simsiam.evaluation.features import extract_features


def make_network() -> nn.Sequential:
    """Return a network in train mode, whose batch normalisation is in eval mode."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    network[1].eval()
    return network


def modes(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


def prepare(network: nn.Module) -> None:
    prepare_custom_backbone(network, 8)


def extract(network: nn.Module) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    extract_features(network, images, torch.zeros(3), torch.ones(3))


def extract_from_loader(network: nn.Module) -> None:
    batch = (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
    extract_batches(network, [batch], torch.device("cpu"))


@pytest.mark.parametrize("use", [prepare, extract, extract_from_loader])
def test_frozen_batch_normalisation_stays_frozen(use: Callable[[nn.Module], None]) -> None:
    network = make_network()
    use(network)
    assert modes(network) == [True, True, False, True]


def test_the_modes_come_back_after_an_error() -> None:
    network = make_network()
    with eval_mode(network):
        assert not any(modes(network))
    with pytest.raises(ValueError), eval_mode(network):
        raise ValueError
    assert modes(network) == [True, True, False, True]
