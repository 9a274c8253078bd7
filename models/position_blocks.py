"""Sums over the positions of feature maps, in blocks that let Inductor save kernels.

A position is a pixel of one image of the batch. Inductor computes a tensor and its sums over the
positions in one kernel only if both run over the same blocks of positions. Otherwise, one kernel
writes the tensor and the next one reads it again. So the backward passes of residual sums and BN,
which follow each other, use the blocks of this module.
"""

import torch
from torch import Tensor

# Positions in a block. Inductor splits the sums of a batch of 512 images into parts of about this
# size. From larger blocks, it would make several kernels for the smallest feature maps.
BLOCK_SIZE = 512


def has_whole_blocks(x: Tensor) -> bool:
    """Return whether BLOCK_SIZE divides the number of positions of (..., C)."""
    return (x.numel() // x.shape[-1]) % BLOCK_SIZE == 0


def split_into_blocks(x: Tensor) -> Tensor:
    """Reshape a tensor with its channels last: (..., C) -> (blocks, BLOCK_SIZE, C)."""
    return x.reshape(-1, BLOCK_SIZE, x.shape[-1])


def sum_within_views(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sum tensors over the positions of each view: (V, B, ..., C) -> (V, 1, ..., C).

    Args:
        tensors: Tensors of one shape.
    """
    x = tensors[0]
    if not has_whole_blocks(x[0]):
        dims = list(range(1, x.dim() - 1))
        return tuple(tensor.sum(dims, keepdim=True) for tensor in tensors)
    # The sums of the blocks are stacked, so that one kernel adds up those of all tensors.
    block_sums = torch.stack([split_into_blocks(tensor).sum(1) for tensor in tensors])
    sums = block_sums.unflatten(1, (len(x), -1)).sum(2)  # (tensors, V, C)
    return sums.view(-1, len(x), *[1] * (x.dim() - 2), x.shape[-1]).unbind()
