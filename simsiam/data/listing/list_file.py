"""Read a list of image files: a .txt of paths, or a .csv with the columns path, label and split.

- Relative paths start at the folder of the list. Paths may also be absolute.
- The text is UTF-8. Other bytes in paths are kept, as Python keeps them in names of files.
- In a .txt, each line is a path. Spaces around it, empty lines and lines that begin with # are
  ignored.
- In a .csv, the first line names the columns, in any order. Commas, semicolons or tabs separate
  them. An image without a label has an empty one.
- An image that is listed twice is used once. Two lines may not contradict each other.
"""

import codecs
import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simsiam.data.dataset import name_class
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.images import SUFFIXES
from simsiam.data.listing.image_list import ImageList
from utils.console import format_count
from utils.errors import UserError, require
from utils.text import printable

COLUMNS = ("path", "label", "split")
LIST_SUFFIXES = (".txt", ".csv")
DELIMITERS = ",;\t"
ARCHIVE_SUFFIXES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}


class Row(NamedTuple):
    """An image of a list. Label and split are "" if they are not given.

    The split is in lower case.
    """

    line: int
    path: str
    label: str
    split: str


class ListFile(ImageList):
    """The image files that a .txt or a .csv names, in its order.

    Args:
        path: the list.
        flag: the option that named the list, for error messages.

    Attributes:
        root: the folder of the list.
        source: the list.
        splits: the split of each image in lower case, or "" if the list has no such column.

    Raises:
        UserError: if the file is of another kind, is malformed, or names no file that exists.
    """

    def __init__(self, path: str | Path, flag: str) -> None:
        path = Path(path).expanduser()
        where = f"{flag} {printable(path)}"
        _require_list(path, where)
        text = _decode_text(path, where)
        self._unused_columns: list[str] = []
        if path.suffix.lower() == ".csv":
            all_rows, self._unused_columns = _parse_csv(text, where)
        else:
            all_rows = _parse_txt(text)
        rows = _drop_repeated(all_rows, path.parent, where)
        self._num_repeated = len(all_rows) - len(rows)

        # `Path` removes what a path may have twice, such as the first part of ./x.png.
        files = FilePaths(str(Path(row.path)) for row in rows)
        classes, labels = _index_classes([row.label for row in rows])
        super().__init__(path.parent, files, classes, labels, source=path)
        self.splits = [row.split for row in rows]
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
        self.splits = [self.splits[i] for i in indices]

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


def _decode_text(path: Path, where: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")  # as PowerShell's > writes it
    else:
        text = content.decode("utf-8-sig", errors="surrogateescape")
    require("\0" not in text, f"{where} is not a text file.")
    return text


def _parse_txt(text: str) -> list[Row]:
    rows = []
    # `splitlines` would also split at rarer characters, which may be part of a name.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        path = line.strip()
        if path and not path.startswith("#"):
            rows.append(Row(number, path, label="", split=""))
    return rows


def _parse_csv(text: str, where: str) -> tuple[list[Row], list[str]]:
    """Return the rows of a .csv, and the names of the columns that are not used.

    Raises:
        UserError: if there is no column `path`, or a line has no path or another number of fields.
    """
    first_line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = next(reader, [])
        columns = [name.strip().lower() for name in header]
        listed = ", ".join(printable(name) for name in header)
        require(
            "path" in columns,
            f"{where}: its first line must name the columns path,label[,split], but it names "
            f"{listed or 'none'}.",
        )
        for name in COLUMNS:
            require(columns.count(name) <= 1, f"{where}: it has two columns {name}.")
        rows = []
        for fields in reader:
            if not fields:
                continue  # an empty line
            line = reader.line_num
            require(
                len(fields) == len(columns),
                f"{where}: line {line} has {format_count(len(fields), 'field')}, but the first "
                f"line has {len(columns)}. Put a path with a {delimiter!r} into double quotes.",
            )
            values = dict(zip(columns, fields, strict=True))
            path = values["path"].strip()
            require(path != "", f"{where}: line {line} has no path.")
            label = values.get("label", "").strip()
            split = values.get("split", "").strip().lower()
            rows.append(Row(line, path, label, split))
    except csv.Error as error:
        raise UserError(f"{where}: line {reader.line_num}: {error}") from None
    unused = [name for name, column in zip(header, columns, strict=True) if column not in COLUMNS]
    return rows, unused


def _drop_repeated(rows: Iterable[Row], root: Path, where: str) -> list[Row]:
    """Return the first row of each file.

    A file may have several paths: an absolute and a relative one, or paths through linked folders.

    Args:
        root: the folder where relative paths start.

    Raises:
        UserError: if another row gives the file another label or another split.
    """
    real_folders: dict[str, str] = {}  # to resolve each folder once takes a fraction of the time
    first_rows: dict[tuple[str, str], Row] = {}
    for row in rows:
        folder, name = os.path.split(root / row.path)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        first = first_rows.setdefault((real_folders[folder], name), row)
        is_same_label = name_class(row.label) == name_class(first.label)
        require(
            is_same_label and row.split == first.split,
            f"{where}: line {row.line} gives {printable(row.path)} another label or split than "
            f"line {first.line}. Remove one of the two lines.",
        )
    return list(first_rows.values())


def _index_classes(names: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the classes in alphabetical order, and the label of each name (N,), -1 for ""."""
    class_of_name = {name: name_class(name) for name in set(names) if name}
    classes = tuple(sorted(set(class_of_name.values())))
    index_of_class = {name: i for i, name in enumerate(classes)}
    labels = [index_of_class[class_of_name[name]] if name else -1 for name in names]
    return classes, torch.tensor(labels, dtype=torch.int64)
