"""models/resnet.py against torchvision's and timm's networks with the CIFAR stem."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.convolutions import append_zero_channels, drop_unread_pixels
from models.resnet import (
    BACKBONES,
    STEMS,
    add_relu,
    fold_batch_norm,
    resnet10,
    resnet18,
    resnet50,
)
from tests.helpers import with_cifar_stem

LAYERS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


def shake_bn(network: nn.Module) -> None:
    """Give BN random statistics and weights, so that an exchange of any two would be noticed."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5)


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_and_outputs_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours = BACKBONES[name]()
    shake_bn(ours)
    block, layers = LAYERS[name]
    theirs = with_cifar_stem(torchvision.models.ResNet(block, layers))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_stem_is_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours = BACKBONES[name](stem="imagenet")
    shake_bn(ours)
    theirs = getattr(torchvision.models, name)().to(memory_format=torch.channels_last)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="stem must be one of cifar, imagenet, got 'patch'"):
        resnet10(stem="patch")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_and_outputs_are_timms(name: str) -> None:
    torch.manual_seed(0)
    ours = BACKBONES[name]()
    shake_bn(ours)
    theirs = with_cifar_stem(timm.create_model(name, num_classes=0))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


def test_the_memory_format_changes_only_rounding() -> None:
    torch.manual_seed(0)
    ours = resnet18()
    shake_bn(ours)
    theirs = with_cifar_stem(torchvision.models.resnet18()).to(
        memory_format=torch.contiguous_format
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(4, 3, 32, 32)
    a, b = ours.eval()(x), theirs.eval()(x)
    assert ((a - b).abs().max() / b.abs().max()).item() < 2e-6


def test_training_mode_gives_torchvisions_gradients() -> None:
    torch.manual_seed(0)
    ours = resnet18()
    theirs = with_cifar_stem(torchvision.models.resnet18())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(8, 3, 16, 16)
    for network in (ours, theirs):
        network(x).square().sum().backward()
    torch.testing.assert_close(
        ours.conv1.weight.grad, theirs.conv1.weight.grad, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", [28, 32, 64])
def test_features_have_eight_times_the_width(size: int) -> None:
    assert resnet10(width=16)(torch.randn(2, 3, size, size)).shape == (2, 128)
    assert (
        resnet50(width=8)(torch.randn(2, 3, size, size)).shape
        == (2, 256)
        == (2, resnet50(width=8).num_features)
    )


def test_every_block_starts_as_the_identity() -> None:
    block = resnet18(width=8).layer1[1]
    x = torch.rand(4, 8, 8, 8)  # not negative: the block ends in a ReLU
    assert torch.equal(block(x), x)
    plain = resnet18(width=8, zero_init_residual=False).layer1[1]
    assert not torch.equal(plain(x), x)


def test_convolutions_start_as_he_et_al_propose() -> None:
    """The standard deviation of a weight is sqrt(2 / fan-out), as in torchvision."""
    torch.manual_seed(0)
    for module in resnet50(width=32).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_convolutions_start_as_torchvisions_or_as_pytorchs() -> None:
    def init(conv_init: str) -> nn.Conv2d:
        torch.manual_seed(0)
        return resnet18(width=16, conv_init=conv_init).layer2[0].conv2  # 3x3, 32 to 32 channels

    bound = (9 * 32) ** -0.5  # of PyTorch's uniform distribution
    assert init("torch").weight.abs().max() <= bound
    assert init("torch").weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert init("kaiming").weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)
    with pytest.raises(ValueError, match="conv_init must be one of kaiming, torch, got 'zero'"):
        resnet18(conv_init="zero")


@pytest.mark.parametrize("stem", STEMS)
def test_channels_of_zeros_change_nothing(stem: str) -> None:
    conv, x = resnet18(width=16, stem=stem).conv1, torch.randn(2, 3, 32, 32)
    padded = append_zero_channels(x), append_zero_channels(conv.weight)
    assert [tensor.shape[1] for tensor in padded] == [8, 8]
    output = nn.functional.conv2d(*padded, None, conv.stride, conv.padding)
    torch.testing.assert_close(output, conv(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_pixels_that_a_1x1_convolution_does_not_read_change_nothing(name: str) -> None:
    downsample = BACKBONES[name](16).layer2[0].downsample
    assert downsample is not None
    conv, x = downsample[0], torch.randn(2, downsample[0].in_channels, 9, 8)
    output = nn.functional.conv2d(drop_unread_pixels(x, 2), conv.weight)
    torch.testing.assert_close(output, conv(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("images", [4, 3])  # with and without whole blocks of positions
def test_a_compiled_residual_sum_has_torchs_gradients(images: int) -> None:
    shape = (images, 8, 16, 16)
    x, residual, weight = (torch.randn(shape) for _ in range(3))
    ours = [tensor.clone().requires_grad_() for tensor in (x, residual)]
    theirs = [tensor.clone().requires_grad_() for tensor in (x, residual)]
    compiled = torch.compile(add_relu, fullgraph=True, backend="aot_eager")
    (compiled(*ours) * weight).sum().backward()
    ((theirs[0] + theirs[1]).relu() * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_bn_keeps_the_features_and_shares_no_memory(name: str) -> None:
    network = BACKBONES[name](16)
    shake_bn(network)
    folded, x = fold_batch_norm(network), torch.randn(4, 3, 32, 32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    features = network.eval()(x)
    assert (folded(x) - features).abs().max() < 1e-5 * features.abs().max()
    with torch.no_grad():
        network.conv1.weight.zero_()
    assert (folded(x) - features).abs().max() < 1e-5 * features.abs().max()
