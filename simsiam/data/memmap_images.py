"""Images on disk, in the place of a tensor of them: read when they are asked for, never held."""

import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PIECE = 2**26  # bytes that are read at once on the way to a device


class MemmapImages:
    """(N, 3, C, C) uint8 in a file, by slices and by int64 tensors of places, which give uint8 tensors on the CPU.

    Positional reads in the order of the file: several threads may read at once, and a process is no larger for it.

    Args:
        file: of pixels, one image after another.
        side: C.
        n: N.
        start: the place in the file of the first of them.
        parent: whose open file is used.
    """

    device = torch.device("cpu")

    def __init__(self, file: Path, side: int, n: int, start: int = 0, parent: "MemmapImages | None" = None) -> None:
        self.file, self.start, self.shape, self.row = file, start, (n, 3, side, side), 3 * side**2
        self.parent = parent  # which keeps the file open, also when its name is gone
        if parent is None:
            self.descriptor = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
        else:
            self.descriptor = parent.descriptor

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return len(self) * self.row

    def part(self, start: int, stop: int) -> "MemmapImages":
        """The images from `start` up to `stop`, still on disk."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return MemmapImages(self.file, self.shape[-1], max(0, stop - start), self.start + start, self)

    def split(self, n: int) -> Iterator[Tensor]:
        """As `Tensor.split`: n at a time, each chunk read when its turn comes."""
        return (self[start : start + n] for start in range(0, len(self), n))

    def to(self, device: torch.device) -> "MemmapImages":
        """Itself: whoever wants the images on a device asks for `resident`."""
        return self

    def resident(self, device: torch.device) -> Tensor:
        """All images as a tensor on `device`, without a second copy of them on the way."""
        whole, step = torch.empty(self.shape, dtype=torch.uint8, device=device), max(1, PIECE // self.row)
        for start in range(0, len(self), step):
            whole[start : start + step] = self[start : start + step]
        return whole

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step == 1:
                images = torch.empty(max(0, stop - start), *self.shape[1:], dtype=torch.uint8)
                self._read(images.numpy().reshape(-1), start)
                return images
            places = torch.arange(start, stop, step)
        return self.read(places)

    def read(self, places: Tensor, pin: bool = False) -> Tensor:
        """The images at `places` (B,), in that order.

        Args:
            pin: into memory from which a GPU copies by itself.

        Raises:
            IndexError: a place that does not exist.
            OSError: the file cannot be read, or is cut short.
        """
        wanted = places.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise IndexError(f"places {min(wanted)} to {max(wanted)} of {len(self)} images")
        images = torch.empty(len(wanted), *self.shape[1:], dtype=torch.uint8, pin_memory=pin)
        rows = images.numpy().reshape(len(wanted), -1)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        if hasattr(os, "posix_fadvise"):  # let the disk begin with all of them, rather than with one after another
            for i in order:
                offset = (self.start + wanted[i]) * self.row
                os.posix_fadvise(self.descriptor, offset, self.row, os.POSIX_FADV_WILLNEED)
        for i in order:
            self._read(rows[i], wanted[i])
        return images

    def _read(self, into: np.ndarray, place: int) -> None:
        """Fill (bytes,) from the image at `place` on."""
        view, offset = memoryview(into.data), (self.start + place) * self.row
        while view:
            got = os.preadv(self.descriptor, [view[: 2**30]], offset)
            if got == 0:
                raise OSError(errno.EIO, "is shorter than it was", str(self.file))
            view, offset = view[got:], offset + got


Pixels = Tensor | MemmapImages  # (N, 3, C, C) uint8, for slices and int64 tensors of places
