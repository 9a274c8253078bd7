"""Read and write the index of a cache, whose file `simsiam.data.cache.entries` describes."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from simsiam.data.cache.entries import (
    FORMAT,
    INDEX,
    UNREADABLE_LENGTH,
    Header,
    format_header,
    format_line,
    wrap_time,
)
from simsiam.data.cache.table import DIGEST_BYTES, LINE, Index, IndexBuilder
from simsiam.data.files.image_notes import ImageNotes
from simsiam.data.files.notes_table import NOTES, BandTexts, pack_notes
from utils.filesystem import write_atomically

CHUNK_LINES = 2**10  # lines that are parsed together, which takes a third of the time


def read_index(folder: Path) -> Index:
    """Return the index of a cache, without lines whose pixels are missing.

    The result is empty if the index is missing or damaged.
    """
    try:
        with open(folder / INDEX, "rb") as file:
            return _read(folder, file)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return Index()


def _read(folder: Path, file: IO[bytes]) -> Index:
    """Return the index in a file.

    Raises:
        ValueError: the file is damaged; also OSError, LookupError, TypeError and ArithmeticError.
    """
    first_line = file.readline()
    header = Header(**json.loads(first_line))
    if header.format != FORMAT:
        return Index()
    whole_size = os.stat(folder / header.whole_file).st_size
    clean_size = os.stat(folder / header.clean_file).st_size
    builder = IndexBuilder(Index(header))
    is_cut_off = not first_line.endswith(b"\n")
    while texts := list(islice(file, CHUNK_LINES)):
        if not texts[-1].endswith(b"\n"):
            is_cut_off = True
            texts.pop()
        values = json.loads(b"[" + b",".join(texts) + b"]")
        paths, lines, failures = _parse(values, builder.bands)
        is_kept = lines["failed"] | _are_stored(lines, header, whole_size, clean_size)
        if not is_kept.all():
            is_cut_off = True
            new_index = np.cumsum(is_kept) - 1
            paths = list(compress(paths, is_kept))
            lines = lines[is_kept]
            failures = {int(new_index[i]): failure for i, failure in failures.items()}
        builder.add_lines(paths, lines, failures)
    index = builder.build()
    index.is_cut_off = is_cut_off
    return index


def _parse(
    values: list[list[Any]], bands: BandTexts
) -> tuple[list[str], np.ndarray, dict[int, str]]:
    """Return the paths, the lines and the failures of some lines, as `add_lines` takes them.

    To convert a column at a time takes a third of the time.

    Args:
        values: those of each line.
        bands: the texts about bands, to which new ones are added.

    Raises:
        ValueError: a line is damaged; also LookupError, TypeError and OverflowError.
    """
    lines = np.zeros(len(values), LINE)
    failures: dict[int, str] = {}
    readable: list[int] = []  # indices of the other lines
    for i, line in enumerate(values):
        if len(line) == UNREADABLE_LENGTH:
            failures[i] = line[UNREADABLE_LENGTH - 1]
        else:
            readable.append(i)
    n = len(values)
    lines["size"] = np.fromiter((line[1] for line in values), np.int64, n)
    lines["mtime"] = np.fromiter((wrap_time(line[2]) for line in values), np.int64, n)
    lines["failed"][list(failures)] = True
    lines["notes"] = np.array(pack_notes(ImageNotes(), bands), NOTES)
    if readable:
        columns = list(zip(*(values[i] for i in readable), strict=True))
        _, _, _, digests, height, width, stored_height, stored_width, offset, slot, notes = columns
        lines["digest"][readable] = _parse_digests(digests)
        for name, column in (("offset", offset), ("slot", slot)):
            lines[name][readable] = np.fromiter(column, np.int64, len(column))
        for name, sides in (
            ("original_size", (height, width)),
            ("stored_size", (stored_height, stored_width)),
        ):
            for axis, column in enumerate(sides):
                lines[name][readable, axis] = np.fromiter(column, np.int32, len(column))
        for i, fields in zip(readable, notes, strict=True):
            if fields:
                lines["notes"][i] = pack_notes(ImageNotes(**fields), bands)
    return [line[0] for line in values], lines, failures


def _parse_digests(digests: Sequence[str]) -> np.ndarray:
    """Return the bytes of hexadecimal numbers (n,)."""
    if {len(digest) for digest in digests} != {2 * DIGEST_BYTES}:
        raise ValueError("a digest is no SHA-256")
    return np.frombuffer(bytes.fromhex("".join(digests)), f"V{DIGEST_BYTES}")


def _are_stored(lines: np.ndarray, header: Header, whole_size: int, clean_size: int) -> np.ndarray:
    """Return whether the pixels (n,) of some lines are in the two files, which have these sizes."""
    # A damaged line may have numbers whose product, or whose sum, does not fit into 64 bits.
    areas = lines["stored_size"].astype(np.int64).prod(axis=1)
    fits = areas <= whole_size // 3
    ends_in_time = lines["offset"] <= whole_size - 3 * np.where(fits, areas, 0)
    has_slot = (lines["slot"] >= 0) & (lines["slot"] < clean_size // header.clean_bytes)
    return fits & ends_in_time & (lines["offset"] >= 0) & has_slot


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
