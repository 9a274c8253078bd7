"""ResNets of torchvision's residual blocks, without a classifier, behind a stem for small images or for large ones.

He et al. 2015 (arXiv 1512.03385). The cifar stem (3x3, no max-pooling) is that of the SimSiam paper's CIFAR experiments
(App. D); the imagenet stem is torchvision's own. Parameter names are torchvision's, so a state dict loads into
`torchvision.models.resnet18` (or timm's): with the cifar stem, once its stem is made the same.
"""

import copy
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet as torchvision_resnet

from models.batch_norm import BatchNorm2d

STEMS = ("cifar", "imagenet")
CONV_INITS = ("kaiming", "torch")
TELL_STATISTICS = "train with SimSiam(mean=..., std=..., image_size=...), or set .statistics = mean, std"
NARROW = 8  # channels: in channels_last, oneDNN's backward of a 1x1 convolution of stride 2 from so few corrupts memory


class _AddReLU(torch.autograd.Function):
    """x + residual, where that is above 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = (x + residual).relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = torch.where(ctx.saved_tensors[0] > 0, gradient, 0.0)
        # The same tensor; a compiler writes it to memory then, instead of computing it anew for each of its uses.
        gradient = gradient.as_strided(gradient.shape, gradient.stride())
        return gradient, gradient


def add_relu(x: Tensor, residual: Tensor) -> Tensor:
    """relu(x + residual); `x` is overwritten."""
    if torch.compiler.is_compiling() and x.requires_grad:
        return _AddReLU.apply(x, residual)
    x += residual
    return x.relu_()


class BasicBlock(torchvision_resnet.BasicBlock):
    """torchvision's, with the first ReLU in the BN before it."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return add_relu(out, x if self.downsample is None else self.downsample(x))


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's, with the first two ReLUs in the BN before them."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return add_relu(out, x if self.downsample is None else self.downsample(x))


class ResNet(nn.Module):
    """A ResNet: (B, 3, S, S) -> (B, `num_features`).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: residual blocks in each of the four stages.
        width: channels of the first stage; the stages have width x (1, 2, 4, 8). The paper's is 64.
        zero_init_residual: start the last BN of each block at zero, so that every block starts as the identity
            (Goyal et al. 2017, arXiv 1706.02677, section 5.1). `Bottleneck` keeps its 3x3 convolution at the block's
            own width, as in torchvision.
        stem: cifar (3x3, no max-pooling) or imagenet (7x7 of stride 2, then max-pooling).
        conv_init: initial weights of convolutions: kaiming (normal, fan-out, as in torchvision) or
            torch (PyTorch's default for a convolution: uniform, fan-in, several times smaller).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        width: int = 64,
        zero_init_residual: bool = True,
        stem: str = "cifar",
        conv_init: str = "kaiming",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}: there are {', '.join(STEMS)}")
        if conv_init not in CONV_INITS:
            raise ValueError(f"conv_init must be one of {', '.join(CONV_INITS)}, got {conv_init!r}")
        self.num_features = 8 * width * block.expansion
        self.statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # of a loaded one's training images
        self.image_size: int | None = None

        small = stem == "cifar"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.bn1.relu = True
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, layers[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if conv_init == "kaiming":
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck):
                *inner, last = (layer for layer in module.children() if isinstance(layer, BatchNorm2d))
                for bn in inner:
                    bn.relu = True
                if zero_init_residual:
                    nn.init.zeros_(last.weight)
        if width > NARROW:  # 1.5 times the speed on a CPU
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel of the images that it was trained on, 0 to 1. Raises ValueError where that is not known."""
        return self._known_statistics()[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation, likewise."""
        return self._known_statistics()[1]

    def _known_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.statistics is None:
            raise ValueError(f"the mean and std of its training images are not known: {TELL_STATISTICS}")
        return self.statistics

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_convolution(x) if x.is_cuda else self.conv1(x)
        x = self.maxpool(self.bn1(x))  # (B, width, S, S); S/4 behind the imagenet stem
        x = self.layer2(self.layer1(x))
        x = self.layer4(self.layer3(x))  # (B, F, S/8, S/8); S/32 likewise
        return torch.flatten(self.avgpool(x), 1)  # (B, F)

    def first_convolution(self, x: Tensor) -> Tensor:
        """With channels of zeros up to a multiple of 8, for which cuDNN has its fast kernels."""
        conv, zeros = self.conv1, (0, 0, 0, 0, 0, -x.shape[1] % 8)
        return conv2d(pad(x, zeros), pad(conv.weight, zeros), conv.bias, conv.stride, conv.padding)


def fold_batch_norm(network: ResNet) -> ResNet:
    """A copy for evaluation that shares nothing: each convolution does what the BN behind it did, which is gone."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        for (name, convolution), (behind, bn) in list(itertools.pairwise(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(bn, BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, bn))
                setattr(module, behind, nn.ReLU(inplace=True) if bn.relu else nn.Identity())
    return folded.requires_grad_(False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """`blocks` residual blocks; the first one changes resolution and channels."""
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(torchvision_resnet.conv1x1(channels, out, stride), BatchNorm2d(out))
    first = block(channels, planes, stride, downsample, norm_layer=BatchNorm2d)
    return nn.Sequential(first, *(block(out, planes, norm_layer=BatchNorm2d) for _ in range(blocks - 1)))


resnet10 = partial(ResNet, BasicBlock, (1, 1, 1, 1))  # the small one, for a CPU
resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))  # the paper's CIFAR backbone
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
BACKBONES = {"resnet10": resnet10, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
