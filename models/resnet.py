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
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet as torchvision_resnet

from models.batch_norm import BatchNorm2d, batch_norm_relu

STEMS = ("cifar", "imagenet")
CONV_INITS = ("kaiming", "torch")
TELL_STATISTICS = (
    "train with SimSiam(mean=..., std=..., image_size=...), or set .statistics = mean, std"
)
CHANNEL_MULTIPLE = 8  # cuDNN's fast kernels take a multiple of so many channels
# With channels_last and at most so many channels, oneDNN's backward pass of a 1x1 convolution of
# stride 2 corrupts memory.
NARROW = 8


class _AddReLU(torch.autograd.Function):
    """relu(x + residual), whose backward pass reads only the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = (x + residual).relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = torch.where(ctx.saved_tensors[0] > 0, gradient, 0.0)
        # as_strided returns the same tensor, but makes Inductor write it to memory
        # instead of computing it again for each of its uses.
        gradient = gradient.as_strided(gradient.shape, gradient.stride())
        return gradient, gradient


def add_relu(x: Tensor, residual: Tensor) -> Tensor:
    """Return relu(x + residual). Overwrites `x` where nothing is compiled."""
    if torch.compiler.is_compiling() and x.requires_grad:
        return _AddReLU.apply(x, residual)
    x += residual
    return x.relu_()


class BasicBlock(torchvision_resnet.BasicBlock):
    """torchvision's block; a compiler sees each BN and the ReLU after it as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return add_relu(out, identity)


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's block; a compiler sees each BN and the ReLU after it as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        out = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        out = batch_norm_relu(self.bn2, self.relu, self.conv2(out))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return add_relu(out, identity)


def append_zero_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C', H, W), where C' is the next multiple of CHANNEL_MULTIPLE."""
    return pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHANNEL_MULTIPLE))


@torch.fx.wrap  # recorded as one call, since what is traced has no device yet
def pad_channels_on_gpu(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Give input and weight of a convolution the channels that cuDNN needs for its fast kernels."""
    if not x.is_cuda:
        return x, weight
    return append_zero_channels(x), append_zero_channels(weight)


class FirstConv2d(nn.Conv2d):
    """A convolution of 3 channels, computed as one of 8 on a GPU: (B, 3, H, W) -> (B, C, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        padded = pad_channels_on_gpu(input, self.weight)
        return self._conv_forward(padded[0], padded[1], self.bias)


class UnknownStatisticsError(AttributeError, ValueError):
    """`.mean` or `.std` was asked of a backbone whose checkpoint does not have them.

    An AttributeError, so that tools that look through all attributes (`hasattr`, torch.jit,
    inspect) pass over it.
    """


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
        # (mean, std) and side of the training images; set when a checkpoint is loaded.
        self.statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self.image_size: int | None = None

        small = stem == "cifar"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = FirstConv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
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
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                assert isinstance(last, BatchNorm2d)
                nn.init.zeros_(last.weight)
        if width > NARROW:  # 1.5 times the speed on a CPU
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images (3 floats), on the scale of 0 to 1.

        Raises:
            UnknownStatisticsError: the checkpoint does not have it.
        """
        if self.statistics is None:
            raise AttributeError  # Python then calls __getattr__, which says more
        return self.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images; errors as of `mean`."""
        if self.statistics is None:
            raise AttributeError
        return self.statistics[1]

    def __getattr__(self, name: str) -> Any:
        if name in ("mean", "std"):
            raise UnknownStatisticsError(
                f"the mean and std of its training images are not known: {TELL_STATISTICS}"
            )
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        x = batch_norm_relu(self.bn1, self.relu, self.conv1(x))
        x = self.maxpool(x)  # (B, width, S, S) behind the cifar stem, S/4 behind the imagenet stem
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # (B, F, S/8, S/8), or S/32
        return torch.flatten(self.avgpool(x), 1)  # (B, F)


def fold_batch_norm(network: ResNet) -> ResNet:
    """Return a copy for evaluation whose convolutions do what the BN layers after them did.

    The copy shares no memory with `network`.
    """
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        children = list(module.named_children())
        for (conv_name, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, _BatchNorm):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return folded.requires_grad_(False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """`blocks` residual blocks; the first one changes resolution and channels."""
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(
            torchvision_resnet.conv1x1(channels, out, stride), BatchNorm2d(out)
        )
    first = block(channels, planes, stride, downsample, norm_layer=BatchNorm2d)
    return nn.Sequential(
        first, *(block(out, planes, norm_layer=BatchNorm2d) for _ in range(blocks - 1))
    )


resnet10 = partial(ResNet, BasicBlock, (1, 1, 1, 1))  # the small one, for a CPU
resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))  # the paper's CIFAR backbone
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
BACKBONES = {"resnet10": resnet10, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
