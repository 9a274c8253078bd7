"""Keep the paths of many millions of files in little memory (`FilePaths`)."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
import torch
from torch import Tensor

CHUNK_PATHS = 2**14  # paths that are converted together
GATHERED_PATHS = 2**10  # paths of a subset that are copied together, by the index of each letter
END = b"\0"  # comes after each path; no path of a file has this byte


class FilePaths(Sequence[str]):
    """Paths of files, in 8 bytes each and the bytes of their text.

    A list of `str` takes about 70 bytes for each path and its text. Here all paths share one
    buffer, which may be a memory map, and a `str` is made when a path is indexed. Subsets share the
    buffer.

    Bytes that are not UTF-8 come back as `os.fsdecode` represents them, so `open` takes each path.

    Args:
        paths: the paths, as `str`.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        builder = PathsBuilder()
        remaining = iter(paths)
        while chunk := list(islice(remaining, CHUNK_PATHS)):
            builder.add(chunk)
        built = builder.build()
        self._text = built._text  # (T,) uint8, each path with an END
        self._starts = built._starts  # (N + 1,) int64; path i and its END are between two of them
        self._indices = built._indices  # of a subset in `_starts`, or None for all paths

    @classmethod
    def from_arrays(cls, text: np.ndarray, starts: np.ndarray) -> "FilePaths":
        """Return the paths of two arrays from `to_arrays`, without a copy."""
        paths = object.__new__(cls)
        paths._text = text
        paths._starts = starts
        paths._indices = None
        return paths

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the text (T,) uint8, and where each path starts and the last one ends (N + 1,)."""
        if self._indices is not None:
            return self._copy().to_arrays()
        first = int(self._starts[0])
        last = int(self._starts[-1])
        starts = self._starts
        if first > 0:
            starts = starts - first
        return self._text[first:last], starts

    def _copy(self) -> "FilePaths":
        """Return a copy without indices."""
        builder = PathsBuilder()
        builder.extend(self)
        return builder.build()

    def encoded_chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield the text of successive paths, each with an END, and their number."""
        for start in range(0, len(self), CHUNK_PATHS):
            stop = min(start + CHUNK_PATHS, len(self))
            yield self._encoded(start, stop), stop - start

    def _encoded(self, start: int, stop: int) -> bytes:
        """Return the text of paths `start` to `stop`, each with an END."""
        if self._indices is None:
            return self._text[self._starts[start] : self._starts[stop]].tobytes()
        pieces: list[bytes] = []
        for chosen in self._indices[start:stop].split(GATHERED_PATHS):
            begins = self._starts[chosen.numpy()]
            lengths = self._starts[chosen.numpy() + 1] - begins
            # The letter j of the result is the letter j + shift of the buffer.
            shifts = begins - (np.cumsum(lengths) - lengths)
            letters = np.repeat(shifts, lengths) + np.arange(lengths.sum())
            pieces.append(self._text[letters].tobytes())
        return b"".join(pieces)

    def __len__(self) -> int:
        if self._indices is not None:
            return len(self._indices)
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "FilePaths": ...

    def __getitem__(self, index: int | slice) -> "str | FilePaths":
        if isinstance(index, slice):
            return self._select_slice(index)
        i = range(len(self))[index]  # raises IndexError
        if self._indices is not None:
            i = int(self._indices[i])
        return _decode(self._text[self._starts[i] : self._starts[i + 1] - 1].tobytes())

    def _select_slice(self, part: slice) -> "FilePaths":
        start, stop, step = part.indices(len(self))
        if self._indices is not None:
            return self._select(self._indices[part])
        if step == 1:
            stop = max(start, stop)
            return FilePaths.from_arrays(self._text, self._starts[start : stop + 1])
        return self._select(torch.tensor(range(start, stop, step), dtype=torch.int64))

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[list[str]]:
        """Yield all paths in lists, which takes a tenth of the time of indexing each one."""
        for text, _ in self.encoded_chunks():
            yield _decode(text).split("\0")[:-1]

    def subset(self, indices: Tensor) -> "FilePaths":
        """Return the paths at `indices` (n,) int64, which may be on any device."""
        indices = indices.cpu()
        if self._indices is not None:
            indices = self._indices[indices]
        return self._select(indices)

    def below(self, folder: str) -> "FilePaths":
        """Return the paths with `folder/` before each one. They must be relative."""
        builder = PathsBuilder()
        for chunk in self.chunks():
            builder.add(chunk, prefix=f"{folder}/")
        return builder.build()

    def __add__(self, other: "FilePaths") -> "FilePaths":
        """Return the paths of both."""
        if len(other) == 0:
            return self
        if len(self) == 0:
            return other
        text, starts = self.to_arrays()
        other_text, other_starts = other.to_arrays()
        all_starts = np.concatenate([starts, other_starts[1:] + len(text)])
        return FilePaths.from_arrays(np.concatenate([text, other_text]), all_starts)

    def _select(self, indices: Tensor) -> "FilePaths":
        selected = FilePaths.from_arrays(self._text, self._starts)
        selected._indices = indices
        return selected


class PathsBuilder:
    """Collects paths for a `FilePaths`, without an object for each of them."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._count = 0

    def add(self, names: Sequence[str], prefix: str = "") -> None:
        """Append paths, each of which begins with `prefix`.

        Raises:
            ValueError: a path has the character NUL, which no file may have.
        """
        if not names:
            return
        joined = prefix + f"\0{prefix}".join(names) + "\0"
        encoded = joined.encode(errors="surrogateescape")
        if encoded.count(END) != len(names):
            raise ValueError("a path contains the character NUL")
        self._text += encoded
        self._count += len(names)

    def extend(self, paths: FilePaths) -> None:
        """Append all paths of another object."""
        for text, count in paths.encoded_chunks():
            self._text += text
            self._count += count

    def build(self) -> FilePaths:
        """Return all paths."""
        text = np.frombuffer(self._text, np.uint8)
        starts = np.zeros(self._count + 1, np.int64)
        num_found = 0
        chunk_bytes = 2**20
        for begin in range(0, len(text), chunk_bytes):
            ends = np.flatnonzero(text[begin : begin + chunk_bytes] == 0)
            starts[num_found + 1 : num_found + 1 + len(ends)] = ends + (begin + 1)
            num_found += len(ends)
        return FilePaths.from_arrays(text, starts)


def _decode(text: bytes) -> str:
    return text.decode(errors="surrogateescape")
