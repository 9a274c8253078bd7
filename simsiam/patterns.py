"""The embedded data set: grey textures of ten kinds. A demonstration, not a benchmark. (placeholder)"""

import torch
from torch import Tensor

from utils.philox import uniform

CLASSES = tuple("abcdefghij")


def make_patterns(count: int, split: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    i = torch.arange(count)
    u = uniform(i, split, 0, 1024, seed=seed).reshape(count, 1, 32, 32)
    return (u * 255).to(torch.uint8).repeat(1, 3, 1, 1), i % 10
