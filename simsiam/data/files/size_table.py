"""Remember the sizes of images in little memory (`SizeTable`)."""

import numpy as np

SLOTS = 2**22  # images whose sizes are remembered: 32 MiB
SIDE_BITS = 20  # a larger side is not remembered
MAX_SIDE = 2**SIDE_BITS - 1


class SizeTable:
    """Height and width of up to SLOTS images. If there are more, the latest ones stay.

    Threads may use it at the same time.

    Args:
        n: the number of images.
        slots: how many sizes are remembered at most.
    """

    def __init__(self, n: int, slots: int = SLOTS) -> None:
        # An entry has the turn of its image, from 1, its height and its width. All are in one
        # number, which is read and written at once. An unused entry is 0.
        self._entries = np.zeros(min(n, slots), np.int64)

    def get(self, index: int) -> tuple[int, int] | None:
        """Return height and width of an image, or None if they are not known (any more)."""
        turn, slot = divmod(index, len(self._entries))
        entry = int(self._entries[slot])
        if entry >> 2 * SIDE_BITS != turn + 1:
            return None
        return entry >> SIDE_BITS & MAX_SIDE, entry & MAX_SIDE

    def set(self, index: int, height: int, width: int) -> None:
        """Remember height and width of an image."""
        if max(height, width) > MAX_SIDE:
            return
        turn, slot = divmod(index, len(self._entries))
        self._entries[slot] = (turn + 1) << 2 * SIDE_BITS | height << SIDE_BITS | width
