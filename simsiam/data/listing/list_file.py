"""Read a list of image files: a .txt of paths, or a .csv with the columns path, label and split.

- Relative paths start at the folder of the list. Paths may also be absolute.
- The text is UTF-8. Other bytes in paths are kept, as Python keeps them in names of files.
- In a .txt, each line is a path. Spaces around it, empty lines and lines that begin with # are
  ignored.
- In a .csv, the first line names the columns, in any order. Commas, semicolons or tabs separate
  them. An image without a label has an empty one.
- An image that is listed twice is used once. Two lines may not contradict each other.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simsiam.data.files.images import SUFFIXES
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.list_parsing import CsvParser, open_list, parse_txt
from simsiam.data.listing.list_rows import ListRows
from utils.console import format_count
from utils.errors import require
from utils.text import printable

LIST_SUFFIXES = (".txt", ".csv")
ARCHIVE_SUFFIXES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}


class ListFile(ImageList):
    """The image files that a .txt or a .csv names, in its order.

    Args:
        path: the list.
        flag: the option that named the list, for error messages.

    Attributes:
        root: the folder of the list.
        source: the list.
        split_names: the splits that occur, in lower case and sorted; "" if an image has none.
        splits: (N,) int32, the split of each image, an index into `split_names`.

    Raises:
        UserError: if the file is of another kind, is malformed, or names no file that exists.
    """

    def __init__(self, path: str | Path, flag: str) -> None:
        path = Path(path).expanduser()
        where = f"{flag} {printable(path)}"
        _require_list(path, where)
        self._unused_columns: list[str] = []
        with open_list(path, where) as text:
            if path.suffix.lower() == ".csv":
                parser = CsvParser(text, where)
                self._unused_columns = parser.unused_columns
                rows = ListRows(parser, path.parent)
            else:
                rows = ListRows(parse_txt(text), path.parent)
        repeated = rows.find_repeated(where)
        self._num_repeated = len(repeated)
        self.split_names = rows.split_names
        self.splits = rows.splits
        labels = rows.labels.to(torch.int64)
        super().__init__(path.parent, rows.files, rows.classes, labels, source=path)
        if self._num_repeated > 0:
            is_first = torch.ones(len(self), dtype=torch.bool)
            is_first[repeated] = False
            self.keep(is_first.nonzero().flatten())
        self._check_files(where)

    def _check_files(self, where: str) -> None:
        """Raise UserError if the list names no file, or none that exists."""
        require(len(self) > 0, f"{where}: no path in it.")
        exists = any(os.path.exists(self.root / file) for file in self.files)
        example = printable(os.path.abspath(self.root / self.files[0]))
        require(
            exists,
            f"{where}: none of its {format_count(len(self), 'file')} exists, such as {example}. "
            "Relative paths start at the folder of the list.",
        )

    def keep(self, indices: Sequence[int] | Tensor) -> None:
        super().keep(indices)
        self.splits = self.splits[torch.as_tensor(indices, dtype=torch.int64)]

    def describe_skipped(self) -> str:
        parts = []
        if self._num_repeated > 0:
            parts.append(format_count(self._num_repeated, "repeated line"))
        if self._unused_columns:
            columns = ", ".join(printable(name) for name in self._unused_columns)
            noun = "column" if len(self._unused_columns) == 1 else "columns"
            parts.append(f"the {noun} {columns}")
        return "; ".join(parts)


def hash_list(path: Path) -> str:
    """Return the SHA-256 of a list."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_list(path: Path, where: str) -> None:
    """Raise UserError unless the suffix is that of a list, and say what else is possible."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        advice = "Arrays in an .npz file are read by --dataset arrays --data-dir FILE."
    elif suffix in ARCHIVE_SUFFIXES:
        advice = "Unpack it, and pass its folder."
    elif suffix in SUFFIXES:
        advice = "Pass the folder of the image."
    else:
        advice = "Pass a folder of images, or one of these lists."
    require(
        suffix in LIST_SUFFIXES,
        f"{where} is a file, but neither a .txt of paths nor a .csv of path,label[,split]. "
        f"{advice}",
    )
