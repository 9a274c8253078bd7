"""Keep the paths of millions of files in little memory (`FilePaths`)."""

from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor


class FilePaths(Sequence[str]):
    """Paths of files, in 16 bytes each and the bytes of their text.

    A list of `str` takes about 60 bytes for each path and its text. Here all paths share one
    buffer, and a `str` is made when a path is indexed. Subsets share the buffer.

    Bytes that are not UTF-8 come back as `os.fsdecode` represents them, so `open` takes each path.

    Args:
        paths: the paths, as `str`.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [path.encode(errors="surrogateescape") for path in paths]
        lengths = torch.tensor([0, *(len(path) for path in encoded)])
        self._bounds = lengths.cumsum(0)  # path i is between bounds i and i + 1
        self._text = b"".join(encoded)
        self._indices = torch.arange(len(encoded))

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "FilePaths": ...

    def __getitem__(self, index: int | slice) -> "str | FilePaths":
        if isinstance(index, slice):
            return self._select(self._indices[index])
        i = int(self._indices[index])
        start, end = self._bounds[i : i + 2].tolist()
        return self._text[start:end].decode(errors="surrogateescape")

    def subset(self, indices: Tensor) -> "FilePaths":
        """Return the paths at `indices` (n,) int64, which may be on any device."""
        return self._select(self._indices[indices.cpu()])

    def _select(self, indices: Tensor) -> "FilePaths":
        selected = object.__new__(FilePaths)
        selected._bounds = self._bounds
        selected._text = self._text
        selected._indices = indices
        return selected
