"""Convolutions of ResNets that are computed in another way on a GPU, with equal results."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

CHANNEL_MULTIPLE = 8  # The number of channels must be a multiple of 8 for cuDNN's fast kernels.


def append_zero_channels(x: Tensor) -> Tensor:
    """Append zeros: (B, C, H, W) -> (B, C', H, W), C' the next multiple of CHANNEL_MULTIPLE."""
    missing_channels = -x.shape[1] % CHANNEL_MULTIPLE
    # (before, after) for each dimension, from the last one to the channels.
    return pad(x, (0, 0, 0, 0, 0, missing_channels))


# While torch.fx traces a network, tensors have no device to ask for. So the trace records a call of
# this function instead of its operations.
@torch.fx.wrap
def pad_channels_on_gpu(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """On a GPU, pad input and weight of a convolution with channels of zeros."""
    if not x.is_cuda:
        return x, weight
    return append_zero_channels(x), append_zero_channels(weight)


class FirstConv2d(nn.Conv2d):
    """A convolution of 3 channels. On a GPU it uses the faster kernels for 8 channels."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight = pad_channels_on_gpu(input, self.weight)
        return self._conv_forward(x, weight, self.bias)


def drop_unread_pixels(x: Tensor, stride: int) -> Tensor:
    """Return the pixels that a strided 1x1 convolution reads: (B, C, H, W) -> (B, C, H', W')."""
    return x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)


class DownsampleConv2d(nn.Conv2d):
    """The 1x1 convolution without bias that gives the input of a block its output's shape.

    With stride 2, it reads one of four pixels. The gradients of the other pixels are zeros. A
    convolution would write them to memory, and the sum with the gradient of the block would read
    them. In a compiled graph on a GPU, this layer copies the pixels that it reads first. The zeros
    then exist only within the kernel of that sum.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and input.is_cuda and input.requires_grad:
            return conv2d(drop_unread_pixels(input, self.stride[0]), self.weight)
        return super().forward(input)
