"""Keep the rows of a list of many millions of images in little memory (`ListRows`)."""

import os
from array import array
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsiam.data.dataset import name_class
from simsiam.data.file_paths import PathsBuilder
from simsiam.data.listing.list_parsing import Row
from utils.errors import UserError
from utils.text import printable

CHUNK_ROWS = 2**12  # rows that are converted together
REMEMBERED_FOLDERS = 2**12  # to resolve each folder once takes a fraction of the time


class ListRows:
    """The rows of a list, without an object for each of them.

    Args:
        rows: the rows, in the order of the list.
        root: the folder where relative paths start.

    Attributes:
        files: the path of each row. What a path may have twice is removed, such as the first part
            of ./x.png.
        classes: names of the classes, sorted.
        labels: (N,) int32, an index into `classes`, or -1 for an image without a label.
        split_names: names of the splits that occur, in lower case and sorted.
        splits: (N,) int32, an index into `split_names`.
        lines: (N,) int64, the number of each row's line.
    """

    def __init__(self, rows: Iterable[Row], root: Path) -> None:
        self._root = str(root)
        self._real_folder = lru_cache(REMEMBERED_FOLDERS)(os.path.realpath)
        builder = PathsBuilder()
        paths: list[str] = []
        keys = array("q")
        lines = array("q")
        labels = _NameColumn()
        splits = _NameColumn()
        for row in rows:
            path = str(Path(row.path))
            paths.append(path)
            # Two paths of the same file have the same number. Others hardly ever do.
            keys.append(hash(self._identify(path)))
            lines.append(row.line)
            labels.append(row.label)
            splits.append(row.split)
            if len(paths) == CHUNK_ROWS:
                builder.add(paths)
                paths.clear()
        builder.add(paths)
        self.files = builder.build()
        self._keys = np.asarray(keys)
        self.lines = np.asarray(lines)

        class_names = [name_class(name) if name else "" for name in labels.names]
        self.classes = tuple(sorted(set(class_names) - {""}))
        self.labels = labels.to_tensor(class_names, self.classes)
        self.split_names = tuple(sorted(splits.names))
        self.splits = splits.to_tensor(splits.names, self.split_names)

    def _identify(self, path: str) -> tuple[str, str]:
        """Return the same folder and name for each path of a file.

        A file may have several: an absolute and a relative one, or paths through linked folders.
        """
        folder, name = os.path.split(os.path.join(self._root, path))
        return self._real_folder(folder), name

    def find_repeated(self, where: str) -> Tensor:
        """Return the indices (n,) int64 of rows whose file an earlier row has.

        Args:
            where: what messages call the list.

        Raises:
            UserError: if such a row gives the file another label or another split.
        """
        order = np.argsort(self._keys, kind="stable")
        is_same = np.diff(self._keys[order]) == 0  # whether a row has the key of the one before it
        boundaries = np.flatnonzero(np.diff(is_same, prepend=False, append=False))
        repeated = array("q")
        contradictions: list[tuple[int, int]] = []  # a row, and the first row of its file
        for begin, end in boundaries.reshape(-1, 2).tolist():
            first_rows: dict[tuple[str, str], int] = {}
            for row in order[begin : end + 1].tolist():
                first = first_rows.setdefault(self._identify(self.files[row]), row)
                if first == row:
                    continue
                repeated.append(row)
                is_same_label = self.labels[row] == self.labels[first]
                if not is_same_label or self.splits[row] != self.splits[first]:
                    contradictions.append((row, first))
        if contradictions:
            row, first = min(contradictions)
            raise UserError(
                f"{where}: line {self.lines[row]} gives {printable(self.files[row])} another label "
                f"or split than line {self.lines[first]}. Remove one of the two lines."
            )
        return torch.tensor(repeated, dtype=torch.int64)


class _NameColumn:
    """A column of names, of which many are the same."""

    def __init__(self) -> None:
        self._number_of_name: dict[str, int] = {}
        self._numbers = array("i")

    def append(self, name: str) -> None:
        number = self._number_of_name.setdefault(name, len(self._number_of_name))
        self._numbers.append(number)

    @property
    def names(self) -> list[str]:
        """The different names, in the order in which they were appended first."""
        return list(self._number_of_name)

    def to_tensor(self, new_names: list[str], sorted_names: tuple[str, ...]) -> Tensor:
        """Return the index (N,) int32 in `sorted_names` of each entry, or -1 if it is not there.

        Args:
            new_names: what takes the place of each of `names`.
        """
        index_of_name = {name: i for i, name in enumerate(sorted_names)}
        indices = torch.tensor([index_of_name.get(n, -1) for n in new_names], dtype=torch.int32)
        return indices[torch.from_numpy(np.asarray(self._numbers))]
