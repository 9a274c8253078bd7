"""The image schedule: the first epochs train with smaller views, which are cheaper."""

from collections.abc import Sequence
from typing import NamedTuple

from utils.errors import require

MIN_VIEW_SIDE = 8  # pixels


class Phase(NamedTuple):
    """A number of epochs with views of one size."""

    size: int  # S, the side of the views in pixels
    epochs: int


def parse_image_schedule(schedule: Sequence[str]) -> list[Phase]:
    """Return the phases of a schedule such as ("16:12", "24:6"), in the form PIXELS:EPOCHS.

    `MethodOptions` checks the form.
    """
    phases = []
    for part in schedule:
        size, epochs = part.split(":")
        phases.append(Phase(int(size), int(epochs)))
    return phases


def check_image_schedule(phases: Sequence[Phase], full_size: int) -> None:
    """Raise UserError unless the views of each phase have from 8 to `full_size` pixels."""
    for phase in phases:
        require(
            MIN_VIEW_SIDE <= phase.size <= full_size,
            f"--image-schedule {phase.size}:{phase.epochs}: the size must be from {MIN_VIEW_SIDE} "
            f"to the full {full_size} pixels.",
        )


def find_view_size(phases: Sequence[Phase], epoch: int, full_size: int) -> int:
    """Return the side of the views in an epoch (from 0): `full_size` after the last phase."""
    phase_end = 0
    for phase in phases:
        phase_end += phase.epochs
        if epoch < phase_end:
            return phase.size
    return full_size
