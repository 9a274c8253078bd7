"""Tools of torch and torchvision work with our networks: tracing, features, SyncBatchNorm."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from models.batch_norm import separates_views
from models.resnet import ResNet, UnknownStatisticsError, resnet10, resnet50
from simsiam import SimSiam
from tests.helpers import with_cifar_stem
from tests.models.test_resnet import shake_bn

X = torch.randn(2, 3, 32, 32)


def make_network(name: str) -> ResNet:
    torch.manual_seed(0)
    network = {"resnet10": resnet10, "resnet50": resnet50}[name](width=8)
    shake_bn(network)
    return network


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_a_traced_network_gives_the_same_features(name: str) -> None:
    network = make_network(name).eval()
    expected = network(X)
    for traced in (torch.jit.trace(network, X), torch.fx.symbolic_trace(network)):
        torch.testing.assert_close(traced(X), expected)


def test_torchvision_extracts_the_features_of_a_layer() -> None:
    """They equal the features of torchvision's own network with the same weights."""
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as Theirs

    ours = resnet10()
    shake_bn(ours)
    theirs = with_cifar_stem(Theirs(BasicBlock, [1, 1, 1, 1]))
    theirs.load_state_dict(ours.state_dict())
    nodes = ["relu", "layer1.0.bn1", "layer1.0.relu", "layer3"]
    features = create_feature_extractor(ours, nodes).eval()(X)
    expected = create_feature_extractor(theirs, nodes).eval()(X)
    for node in ("relu", "layer1.0.bn1", "layer3"):
        torch.testing.assert_close(features[node], expected[node], msg=node)


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_torchs_synchronised_batch_norm_gives_the_same_features(name: str) -> None:
    network = make_network(name).eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(X), network(X))
    assert not separates_views(converted)  # so SimSiam gives it one view after the other


def test_unknown_statistics_raise_an_error_that_says_what_to_do() -> None:
    """hasattr and inspect ignore the attributes, since the error is an AttributeError."""
    network = SimSiam("resnet10", width=2, out_dim=8, h_dim=4).backbone
    assert not hasattr(network, "mean") and "conv1" in dict(inspect.getmembers(network))
    for kind in (AttributeError, ValueError, UnknownStatisticsError):
        with pytest.raises(kind, match=r"mean and std .* not known: train with SimSiam\(mean="):
            _ = network.mean
