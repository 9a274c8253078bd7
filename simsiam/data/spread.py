"""Choose a part of the images, spread evenly over all of them."""

import torch
from torch import Tensor


def evenly_spaced(n: int, total: int) -> Tensor:
    """Return n <= total indices (n,), spread evenly over 0 .. total - 1."""
    return torch.arange(n) * total // n
