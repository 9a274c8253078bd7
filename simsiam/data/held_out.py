"""Hold out train images, which then take the place of the test images (`--held-out-images`)."""

from dataclasses import replace

import torch
from torch import Tensor

from simsiam.data.dataset import ImageDataset, Splits
from utils.errors import require
from utils.philox import permutation

# Images are held out in the order of this epoch, which no training reaches.
HELD_OUT_EPOCH = 2**32 - 2


def hold_out(train: ImageDataset, n: int) -> Splits:
    """Split n images off the train split. They become the test split."""
    held_out = choose_held_out(train.labels, n)
    is_held_out = torch.zeros(len(train), dtype=torch.bool)
    is_held_out[held_out] = True
    remaining = (~is_held_out).nonzero().flatten()
    test = replace(train.subset(held_out), held_out=True)
    return train.subset(remaining), test


def choose_held_out(labels: Tensor, n: int) -> Tensor:
    """Choose n images, of each class in proportion to its size, and always the same ones.

    A fixed permutation orders the images of each class. Image r of the m images in its class gets
    the number (r + 1/2) / m. The n images with the smallest numbers are chosen.

    Args:
        labels: (N,) int64. Images with the label -1 count as a class of their own.

    Returns:
        (n,) int64 indices in ascending order.

    Raises:
        UserError: unless n is less than N.
    """
    total = len(labels)
    require(n < total, f"--held-out-images {n} must be less than the {total} training images.")
    order = permutation(total, HELD_OUT_EPOCH, seed=0)
    quantile = torch.empty(total, dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        quantile[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
    smallest = torch.argsort(quantile[order], stable=True)[:n]
    return order[smallest].sort().values
