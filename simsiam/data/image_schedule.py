"""Find the side of the views in an epoch. Training on smaller views first is cheaper."""

from collections.abc import Sequence

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
