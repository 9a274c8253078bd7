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
    labels_in_order = labels[order]
    # The images of each class, one class after another, each class in the order of the permutation.
    by_class = torch.argsort(labels_in_order, stable=True)
    _, class_sizes = labels.unique(return_counts=True)
    first_of_class = class_sizes.cumsum(0) - class_sizes
    number_in_class = torch.arange(total) - first_of_class.repeat_interleave(class_sizes)
    class_size = class_sizes.repeat_interleave(class_sizes)
    quantile = torch.empty(total, dtype=torch.float64)
    quantile[by_class] = (number_in_class + 0.5).double() / class_size
    smallest = torch.argsort(quantile, stable=True)[:n]
    return order[smallest].sort().values
