"""Heavy views: RandAugment of finished views, for the one-way loss of DSSL.

The paper is Bai et al. 2022 (CVPR), "Directional Self-supervised Learning for Heavy Image
Augmentations". A heavy view is made of a standard view by two random operations of
simsiam/heavy_ops.py. Which ones is a pure function of (seed, epoch, sample index, view), as in
simsiam/augment.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from simsiam.augment import Policy, apply, draw, normalize
from simsiam.heavy_ops import OPERATIONS, Choices, apply_chosen
from utils.philox import HEAVY_STREAMS, uniform

STEPS = 2  # operations in a row
NUMBERS_PER_STEP = 4  # random numbers: operation, sign, row and column of the cutout


class HeavyParams(NamedTuple):
    """The random parameters of one heavy view of B samples."""

    operation: Tensor  # (B, 2) int64: the number in OPERATIONS for each step
    sign: Tensor  # (B, 2) float32: -1 or 1, the direction of a rotation or shear
    center: Tensor  # (B, 2, 2) float32: row and column of the cutout's centre, from 0 to 1


def augment_twice(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    view: int | Tensor,
    policy: Policy,
    mean: Tensor,
    std: Tensor,
    size: int | None = None,
    cropped: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a standard view and its heavy view, (B, 3, S, S) float32 each, normalised.

    The arguments are those of `simsiam.augment.augment`, which returns the same standard view.
    """
    params = draw(indices, images.shape[-1], seed=seed, epoch=epoch, view=view, policy=policy)
    x = apply(images, params, size, cropped)
    heavy_x = apply_heavy(x, draw_heavy(indices, seed=seed, epoch=epoch, view=view))
    return normalize(x, mean, std), normalize(heavy_x, mean, std)


def draw_heavy(
    indices: Tensor, *, seed: int, epoch: int | Tensor, view: int | Tensor
) -> HeavyParams:
    """Draw the operations of one heavy view of each sample. All are equally likely.

    Args:
        indices: Index of each sample in the data set, (B,) int64.
        seed: Seed of the run.
        epoch: Number of the epoch.
        view: Number of the standard view, for all samples or (B, 1) for each.
    """
    count = STEPS * NUMBERS_PER_STEP
    numbers = uniform(indices, epoch, HEAVY_STREAMS + view, count, seed=seed)
    numbers = numbers.unflatten(1, (STEPS, NUMBERS_PER_STEP))
    return HeavyParams(
        operation=(numbers[:, :, 0] * len(OPERATIONS)).long(),
        sign=torch.where(numbers[:, :, 1] < 0.5, -1.0, 1.0),
        center=numbers[:, :, 2:],
    )


def apply_heavy(x: Tensor, params: HeavyParams) -> Tensor:
    """Apply each sample's operations to views (B, 3, S, S) from 0 to 1; the range stays."""
    for step in range(STEPS):
        choices = Choices(params.sign[:, step], params.center[:, step])
        x = apply_chosen(x, params.operation[:, step], choices)
    return x
