"""Read and write the index of a cache, whose file `simsiam.data.cache.entries` describes."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from simsiam.data.cache.entries import (
    FORMAT,
    INDEX,
    Entry,
    Header,
    format_header,
    format_line,
    parse_values,
)
from simsiam.data.cache.table import Index, IndexBuilder
from utils.filesystem import write_atomically

CHUNK_LINES = 2**10  # lines that are parsed together, which takes a third of the time


def read_index(folder: Path) -> Index:
    """Return the index of a cache, without lines whose pixels are missing.

    The result is empty if the index is missing or damaged.
    """
    try:
        with open(folder / INDEX, "rb") as file:
            return _read(folder, file)
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return Index()


def _read(folder: Path, file: IO[bytes]) -> Index:
    """Return the index in a file.

    Raises:
        ValueError: the file is damaged; also OSError, LookupError, TypeError and OverflowError.
    """
    first_line = file.readline()
    header = Header(**json.loads(first_line))
    if header.format != FORMAT:
        return Index()
    whole_size = os.stat(folder / header.whole_file).st_size
    clean_size = os.stat(folder / header.clean_file).st_size
    builder = IndexBuilder(Index(header))
    is_cut_off = not first_line.endswith(b"\n")
    while lines := list(islice(file, CHUNK_LINES)):
        if not lines[-1].endswith(b"\n"):
            is_cut_off = True
            lines.pop()
        stored: list[tuple[str, Entry]] = []
        for values in json.loads(b"[" + b",".join(lines) + b"]"):
            path, entry = parse_values(values)
            whole_end = entry.offset + entry.whole_bytes
            clean_end = (entry.slot + 1) * header.clean_bytes
            if entry.failure or (whole_end <= whole_size and clean_end <= clean_size):
                stored.append((path, entry))
            else:
                is_cut_off = True
        builder.add(stored)
    index = builder.build()
    index.is_cut_off = is_cut_off
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write an index, without the lines that later ones replace."""
    assert index.header is not None
    first_line = format_header(index.header)

    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(first_line)
            file.writelines(_format(index, index.valid_lines()))

    write_atomically(folder / INDEX, write)


def _format(index: Index, lines: np.ndarray) -> Iterator[str]:
    for path, entry in index.entries(lines):
        yield format_line(path, entry)
