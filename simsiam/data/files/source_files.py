"""Image files that are read whenever their pixels are needed (`SourceFiles`)."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.images import load_rgb, open_file, read_size
from simsiam.data.files.reading import describe_failure, to_tensor
from simsiam.data.files.size_table import SizeTable
from utils.console import print_line
from utils.errors import UserError, require
from utils.text import printable

T = TypeVar("T")


class SourceFiles:
    """N image files, of which some may turn out to be unreadable.

    Args:
        root: folder of the files.
        files: paths relative to `root`.
        conversion: how pixels become RGB of 8 bits.
        skip_unreadable: put the next readable image into the place of one that cannot be read,
            instead of raising an error. So the result is the same in each epoch.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        conversion: PixelConversion = PixelConversion(),
        skip_unreadable: bool = False,
    ) -> None:
        self.root = root
        self.files = files
        self.conversion = conversion
        self.skip_unreadable = skip_unreadable
        self._known_sizes = SizeTable(len(files))
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def read_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image in pixels.

        Raises:
            UserError: the file cannot be read.
        """
        size = self._known_sizes.get(index)
        if size is None:
            size = self._read(index, read_size)
            self._known_sizes.set(index, *size)
        return size

    def load(self, index: int, reduction: float = 1.0) -> Tensor:
        """Return the pixels (h, w, 3) of an image.

        Args:
            reduction: see `load_rgb`.

        Raises:
            UserError: the file cannot be read.
        """

        def load_file(path: Path) -> Tensor:
            with open_file(path) as file:
                return to_tensor(load_rgb(file, self.conversion, reduction))

        return self._read(index, load_file)

    def _read(self, index: int, read: Callable[[Path], T]) -> T:
        """Return what `read` returns for a file, or for the first readable file after it."""
        for distance in range(len(self.files)):
            i = (index + distance) % len(self.files)
            if i in self._unreadable:
                continue
            path = self.root / self.files[i]
            try:
                return read(path)
            except Exception as error:  # noqa: BLE001  (Pillow raises any exception)
                self._note_unreadable(i, describe_failure(path, error))
        raise UserError(f"None of the images in {printable(self.root)} can be read.")

    def _note_unreadable(self, index: int, reason: str) -> None:
        """Print once that another image takes the place of a file.

        Raises:
            UserError: unless `skip_unreadable` is set.
        """
        message = f"{printable(self.root / self.files[index])} cannot be read ({reason})"
        require(
            self.skip_unreadable,
            f"{message}. Repair or remove it, or pass --skip-bad-images. What is saved stays.",
        )
        with self._lock:
            if index in self._unreadable:
                return
            self._unreadable.add(index)
        print_line(f"{message}: the next image takes its place")
