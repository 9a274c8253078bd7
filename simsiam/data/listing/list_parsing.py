"""Parse the text of a list of image files, a .txt or a .csv, one line at a time.

`simsiam.data.listing.list_file` describes the two formats.
"""

import codecs
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from utils.console import format_count
from utils.errors import UserError, require
from utils.text import printable

COLUMNS = ("path", "label", "split")
DELIMITERS = ",;\t"
CHUNK_LETTERS = 2**20  # of a list, that are searched together


class Row(NamedTuple):
    """An image of a list. Label and split are "" if they are not given.

    The split is in lower case.
    """

    line: int
    path: str
    label: str
    split: str


@contextmanager
def open_list(path: Path, where: str) -> Iterator[IO[str]]:
    """Open a list as text, whose line breaks stay as they are.

    Args:
        where: what messages call the list.

    Raises:
        UserError: if the file cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(codecs.BOM_UTF16_LE))
        if beginning in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as PowerShell's > writes it
            encoding = "utf-16"
            errors = "replace"
        else:
            encoding = "utf-8-sig"
            errors = "surrogateescape"
        with open(path, encoding=encoding, errors=errors, newline="") as text:
            while chunk := text.read(CHUNK_LETTERS):
                require("\0" not in chunk, f"{where} is not a text file.")
            text.seek(0)
            yield text
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from None


def parse_txt(text: IO[str]) -> Iterator[Row]:
    """Yield the rows of a .txt."""
    for number, line in enumerate(_split_lines(text), start=1):
        path = line.strip()
        if path and not path.startswith("#"):
            yield Row(number, path, label="", split="")


def _split_lines(text: IO[str]) -> Iterator[str]:
    """Yield the lines of a text, which end in a line feed or in a carriage return and a line feed.

    The parts that `text` yields end at lone carriage returns, too, which may be part of a name.
    """
    line = ""
    for part in text:
        line += part
        if line.endswith("\n"):
            yield line
            line = ""
    yield line


class CsvParser:
    """Yields the rows of a .csv.

    Args:
        text: the .csv, at its beginning.
        where: what messages call it.

    Attributes:
        unused_columns: the names of the columns that are not used.

    Raises:
        UserError: if there is no column `path`. Also while the rows are read: if a line has no
            path or another number of fields, or a label or split with a line break.
    """

    def __init__(self, text: IO[str], where: str) -> None:
        self._where = where
        first_line = next(_split_lines(text))
        text.seek(0)
        self._delimiter = max(DELIMITERS, key=first_line.count)
        self._reader = csv.reader(text, delimiter=self._delimiter, skipinitialspace=True)
        try:
            header = next(self._reader, [])
        except csv.Error as error:
            raise self._describe(error) from None
        self._columns = [name.strip().lower() for name in header]
        listed = ", ".join(printable(name) for name in header)
        require(
            "path" in self._columns,
            f"{where}: its first line must name the columns path,label[,split], but it names "
            f"{listed or 'none'}.",
        )
        for name in COLUMNS:
            require(self._columns.count(name) <= 1, f"{where}: it has two columns {name}.")
        self.unused_columns: list[str] = []
        for name, column in zip(header, self._columns, strict=True):
            if column not in COLUMNS:
                self.unused_columns.append(name)

    def __iter__(self) -> Iterator[Row]:
        try:
            line = self._reader.line_num + 1  # the first one of the next row
            for fields in self._reader:
                if any(field.strip() for field in fields):  # The line is not empty.
                    yield self._make_row(fields, line)
                line = self._reader.line_num + 1
        except csv.Error as error:
            raise self._describe(error) from None

    def _make_row(self, fields: list[str], line: int) -> Row:
        advice = "Give each line all of them."
        if len(fields) > len(self._columns):
            advice = f"Put a path with a {self._delimiter!r} into double quotes."
        require(
            len(fields) == len(self._columns),
            f"{self._where}: line {line} has {format_count(len(fields), 'field')}, but the first "
            f"line has {len(self._columns)}. {advice}",
        )
        values = dict(zip(self._columns, fields, strict=True))
        path = values["path"].strip()
        require(path != "", f"{self._where}: line {line} has no path.")
        label = values.get("label", "").strip()
        split = values.get("split", "").strip().lower()
        # After a double quote without its counterpart, the rest of the list would be one label.
        require(
            not any(end in label + split for end in "\n\r"),
            f"{self._where}: the label or the split of line {line} continues in the next line. "
            "A double quote is missing there, or is one too many.",
        )
        return Row(line, path, label, split)

    def _describe(self, error: csv.Error) -> UserError:
        return UserError(f"{self._where}: line {self._reader.line_num}: {error}")
