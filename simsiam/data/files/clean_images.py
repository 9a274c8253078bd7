"""Read image files as clean images (`CleanFiles`)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from simsiam.data.files.resizing import resize_clean
from simsiam.data.files.source_files import SourceFiles
from simsiam.data.files.threads import count_threads, start_threads


class CleanFiles:
    """Reads image files as clean images, in threads.

    Args:
        files: the files.
        size: S.
    """

    def __init__(self, files: SourceFiles, size: int) -> None:
        self.files = files
        self.size = size
        self._pool: ThreadPoolExecutor | None = None

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return clean images (n, 3, S, S)."""
        if self._pool is None:
            self._pool = start_threads(count_threads())
        return torch.stack(list(self._pool.map(self._read_one, indices)))

    def _read_one(self, index: int) -> Tensor:
        return resize_clean(self.files.load(index), self.size)
