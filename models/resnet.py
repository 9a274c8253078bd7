"""ResNets without a classifier (He et al. 2015, arXiv 1512.03385), made of torchvision's blocks.

There are two stems. The imagenet stem is torchvision's. The cifar stem (3x3 convolution, no
max-pooling) is for small images, as in the CIFAR experiments of the SimSiam paper (App. D).

Parameters have torchvision's names, so a state dict loads into the same network of torchvision or
timm. For the cifar stem, the stem of that network must be replaced first.
"""

import copy
import itertools
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet as torchvision_resnet

from models.batch_norm import BatchNorm2d, batch_norm_relu
from models.choices import ConvInit, Stem
from models.convolutions import DownsampleConv2d, FirstConv2d
from models.position_blocks import has_whole_blocks, split_into_blocks

STEMS = get_args(Stem)
CONV_INITS = get_args(ConvInit)
# What to do if mean and std are unknown; part of error messages.
HOW_TO_SET_STATISTICS = (
    "train with SimSiam(mean=..., std=..., image_size=...), or set .statistics = mean, std"
)
# Networks up to this width do not use the memory format channels_last: with 8 or fewer channels,
# oneDNN's backward pass of a 1x1 convolution of stride 2 then corrupts memory.
MAX_NARROW_WIDTH = 8


class _AddReLU(torch.autograd.Function):
    """Compute relu(x + residual). The backward pass needs only the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = (x + residual).relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        is_positive = (ctx.saved_tensors[0] > 0).movedim(1, -1)  # (B, H, W, C)
        g = gradient.movedim(1, -1)
        shape = g.shape
        # BN's backward pass sums this gradient next, in the same kernel if in the same blocks.
        if has_whole_blocks(g):
            is_positive = split_into_blocks(is_positive)
            g = split_into_blocks(g)
        g = torch.where(is_positive, g, 0.0)
        # as_strided returns the same tensor. But it makes Inductor write the tensor to memory,
        # instead of computing it again for each use.
        g = g.as_strided(g.shape, g.stride())
        g = g.view(shape).movedim(-1, 1)
        return g, g


def add_relu(x: Tensor, residual: Tensor) -> Tensor:
    """Return relu(x + residual). Outside a compiled graph, this overwrites `x`."""
    if torch.compiler.is_compiling() and x.requires_grad:
        return _AddReLU.apply(x, residual)
    x += residual
    return x.relu_()


class BasicBlock(torchvision_resnet.BasicBlock):
    """torchvision's block. To a compiler, BN and the ReLU after it are one operation."""

    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return add_relu(out, identity)


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's block. To a compiler, BN and the ReLU after it are one operation."""

    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = batch_norm_relu(self.bn2, self.relu, self.conv2(out))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return add_relu(out, identity)


class UnknownStatisticsError(AttributeError, ValueError):
    """A backbone has no `.mean` and `.std`, because its checkpoint does not have them.

    This is an AttributeError, so that tools which look at all attributes (`hasattr`, torch.jit,
    inspect) ignore it.
    """


class ResNet(nn.Module):
    """A ResNet: (B, 3, S, S) -> (B, F), where F is `num_features`.

    Args:
        block: `BasicBlock` or `Bottleneck`, both as in torchvision.
        layers: Number of residual blocks in each of the four stages.
        width: Channels of the first stage, 64 in the paper. The stages have 1, 2, 4 and 8 times
            as many.
        zero_init_residual: Start the last BN of each block at zero, so that every block starts as
            the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        stem: "cifar" (3x3, no max-pooling) or "imagenet" (7x7 of stride 2, then max-pooling).
        conv_init: Initial weights of convolutions. "kaiming" is normal and scaled by the fan-out,
            as in torchvision. "torch" is PyTorch's default: uniform, scaled by the fan-in, and
            several times smaller.

    Attributes:
        num_features: F, the number of features.
        statistics: (mean, std) of the channels of the training images, on the scale of 0 to 1, or
            None. Set when a checkpoint is loaded.
        image_size: Side of the training images in pixels, or None.

    Raises:
        ValueError: `width` is below 1, or `stem` or `conv_init` is unknown.
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
            raise ValueError(f"width must be at least 1, got {width}")
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
        if conv_init not in CONV_INITS:
            raise ValueError(f"conv_init must be one of {', '.join(CONV_INITS)}, got {conv_init!r}")
        self.num_features = 8 * width * block.expansion
        self.statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.image_size: int | None = None

        if stem == "cifar":
            self.conv1 = FirstConv2d(3, width, 3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = FirstConv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        if stem == "cifar":
            self.maxpool = nn.Identity()
        else:
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        e = block.expansion  # A block has e times as many output channels as its width.
        self.layer1 = _make_stage(block, width, width, layers[0], stride=1)
        self.layer2 = _make_stage(block, width * e, 2 * width, layers[1], stride=2)
        self.layer3 = _make_stage(block, 2 * width * e, 4 * width, layers[2], stride=2)
        self.layer4 = _make_stage(block, 4 * width * e, 8 * width, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

        self._initialize(conv_init, zero_init_residual)
        if width > MAX_NARROW_WIDTH:
            # On a CPU this is 1.5 times as fast.
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _initialize(self, conv_init: str, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and conv_init == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock | Bottleneck) and zero_init_residual:
                last_bn = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                assert isinstance(last_bn, BatchNorm2d)
                nn.init.zeros_(last_bn.weight)

    # If a property raises AttributeError, Python calls __getattr__. nn.Module's __getattr__ would
    # say that there is no such attribute, so the one below raises an error that says more.

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images (3 floats), on the scale of 0 to 1.

        Raises:
            UnknownStatisticsError: The checkpoint does not have it.
        """
        if self.statistics is None:
            raise AttributeError
        return self.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images, on the scale of 0 to 1.

        Raises:
            UnknownStatisticsError: The checkpoint does not have it.
        """
        if self.statistics is None:
            raise AttributeError
        return self.statistics[1]

    def __getattr__(self, name: str) -> Any:
        if name in ("mean", "std"):
            raise UnknownStatisticsError(
                f"the mean and std of its training images are not known: {HOW_TO_SET_STATISTICS}"
            )
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        x = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        x = self.maxpool(x)  # (B, width, H, H): H = S after the cifar stem, S/4 after imagenet's
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # (B, F, H/8, H/8)
        return torch.flatten(self.avgpool(x), 1)  # (B, F)


def fold_batch_norm(network: ResNet) -> ResNet:
    """Return a copy for evaluation whose convolutions include the BN layers after them.

    The copy computes the same features in less time. It shares no memory with `network`.
    """
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        # Each convolution stands right before its BN among the children of a block.
        children = list(module.named_children())
        for (name, child), (next_name, next_child) in itertools.pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(next_child, _BatchNorm):
                setattr(module, name, fuse_conv_bn_eval(child, next_child))
                setattr(module, next_name, nn.Identity())
    return folded.requires_grad_(False)


def _make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    block_width: int,
    num_blocks: int,
    stride: int,
) -> nn.Sequential:
    """Return `num_blocks` residual blocks. The first changes the resolution and the channels."""
    out_channels = block_width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            DownsampleConv2d(in_channels, out_channels, stride),
            BatchNorm2d(out_channels),
        )
    blocks = [block(in_channels, block_width, stride, downsample, norm_layer=BatchNorm2d)]
    for _ in range(num_blocks - 1):
        blocks.append(block(out_channels, block_width, norm_layer=BatchNorm2d))
    return nn.Sequential(*blocks)


resnet10 = partial(ResNet, BasicBlock, (1, 1, 1, 1))  # small enough for a CPU
resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))  # the paper's backbone for CIFAR
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
BACKBONES = {"resnet10": resnet10, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
