"""Find the side of the views in an epoch. Training on smaller views first is cheaper."""

from collections.abc import Sequence
from itertools import groupby

from simsiam.config.value_types import MIN_VIEW_SIDE, ImagePhase
from utils.errors import require


def check_image_schedule(phases: Sequence[ImagePhase], full_size: int) -> None:
    """Raise UserError unless each phase has views of `MIN_VIEW_SIDE` to `full_size` pixels."""
    for phase in phases:
        require(
            MIN_VIEW_SIDE <= phase.size <= full_size,
            f"--image-schedule {phase.size}:{phase.epochs}: the size must be from {MIN_VIEW_SIDE} "
            f"to the full {full_size} pixels.",
        )


def find_view_size(phases: Sequence[ImagePhase], epoch: int, full_size: int) -> int:
    """Return the side of the views in an epoch (from 0): `full_size` after the last phase."""
    phase_end = 0
    for phase in phases:
        phase_end += phase.epochs
        if epoch < phase_end:
            return phase.size
    return full_size


def describe_view_sizes(
    phases: Sequence[ImagePhase], epochs: int, full_size: int, image_side: int
) -> list[str]:
    """Return sentences about the size of the views in each epoch of a run.

    Args:
        image_side: side of the images from which the views are cropped.
    """
    sizes = [find_view_size(phases, epoch, full_size) for epoch in range(epochs)]
    if set(sizes) == {full_size}:
        text = f"views of {full_size} x {full_size} pixels"
        separator = " from"
    else:
        text = f"views of {_list_periods(sizes)}"
        separator = ", from"
    if full_size < image_side:
        text += f"{separator} {image_side} x {image_side}"

    sentences = [text]
    if full_size not in sizes:
        sentences.append(
            f"no view has the full {full_size} x {full_size} pixels, because --image-schedule "
            "takes the whole run"
        )
    return sentences


def _list_periods(sizes: Sequence[int]) -> str:
    """Return text such as "16 x 16 pixels in epochs 1 to 12, 32 x 32 pixels in epoch 13".

    Args:
        sizes: side of the views in each epoch.
    """
    periods: list[str] = []
    start = 1  # a run prints its first epoch as epoch 1
    for size, group in groupby(sizes):
        end = start + len(list(group)) - 1
        epochs = f"epoch {start}"
        if end > start:
            epochs = f"epochs {start} to {end}"
        periods.append(f"{size} x {size} pixels in {epochs}")
        start = end + 1
    return ", ".join(periods)
