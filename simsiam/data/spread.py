"""Choose a part of the images, spread evenly over all of them."""

import torch
from torch import Tensor


def evenly_spaced(n: int, total: int) -> Tensor:
    """Return n <= total indices (n,), spread evenly over 0 .. total - 1."""
    return torch.arange(n) * total // n


def staggered(n: int, total: int) -> Tensor:
    """Return n <= total indices (n,), spread over 0 .. total - 1 in steps that are not all equal.

    In many data sets the classes alternate regularly, so that equal steps could meet a single class
    only. The range is therefore divided into n parts. The i-th index is the start of the i-th part,
    moved on by i modulo the length of the shortest part.
    """
    shortest_part = total // max(1, n)
    i = torch.arange(n)
    return i * total // max(1, n) + i % max(1, shortest_part)
