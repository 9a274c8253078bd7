"""data/cache: the index of a cache of decoded images, and what it needs of memory."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from simsiam.data.cache import table
from simsiam.data.cache.entries import Entry, FileState, Header, format_header, format_line
from simsiam.data.cache.index import read_index, write_index
from simsiam.data.cache.table import MISSING
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.image_notes import ImageNotes
from tests.helpers import measure_alone

ODD_NAMES = ["a b.png", "\u5199\u771f.png", os.fsdecode(b"caf\xe9\xff.png"), "\U0001f431.png"]


def make_entry(i: int) -> Entry:
    digest = hashlib.sha256(str(i).encode()).hexdigest()
    return Entry(FileState(i, -i), digest, (30, 40), (3, 4), offset=36 * i, slot=i)


def write_cache(folder: Path, entries: dict[str, Entry]) -> None:
    """Write the index of a cache, as earlier versions wrote it, and empty pixels."""
    header = Header("images", size=2, stored_side=4, conversion=[])
    lines = [format_line(path, entry) for path, entry in entries.items()]
    (folder / "index.jsonl").write_text(format_header(header) + "".join(lines))
    for file, size in ((header.whole_file, 36), (header.clean_file, 12)):
        with open(folder / file, "wb") as opened:
            opened.truncate(size * len(entries))


READ_INDEX = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from simsiam.data.cache.index import read_index
from simsiam.data.file_paths import FilePaths

folder, n = Path(sys.argv[1]), int(sys.argv[2])
files = FilePaths([f"n{i % 8:08d}/n{i % 8:08d}_{i:08d}.jpeg" for i in range(n)])
read_index(folder)  # what is allocated once
tracemalloc.start()
index = read_index(folder)
kept, peak = tracemalloc.get_traced_memory()
tracemalloc.reset_peak()
found = index.find(files)
_, peak_of_search = tracemalloc.get_traced_memory()
print(kept, peak, peak_of_search, len(index), (found == np.arange(n)).sum())
"""


def test_the_index_of_a_cache_takes_few_bytes_for_each_image(tmp_path: Path) -> None:
    n = 20_000
    names = [f"n{i % 8:08d}/n{i % 8:08d}_{i:08d}.jpeg" for i in range(n)]
    write_cache(tmp_path, {name: make_entry(i) for i, name in enumerate(names)})
    kept, peak, peak_of_search, lines, found = measure_alone(READ_INDEX, tmp_path, n)
    assert lines == found == n
    length = len(names[0]) + 1
    assert kept < n * (length + 120) + 20_000
    assert peak < n * (1.3 * length + 140) + 2_000_000  # a chunk of lines
    assert peak_of_search < n * (length + 170) + 8_000_000  # a chunk of paths


def test_an_index_returns_what_its_lines_say(tmp_path: Path) -> None:
    notes = ImageNotes((5, 70_000), True, True, "5 bands, of which the first 3 are used", 7)
    entries = {name: make_entry(i) for i, name in enumerate(ODD_NAMES)}
    entries[ODD_NAMES[1]] = Entry(FileState(-1, 0), failure="not an image")
    entries[ODD_NAMES[2]] = make_entry(2)._replace(notes=notes)
    write_cache(tmp_path, entries)
    index = read_index(tmp_path)
    assert dict(index.entries(np.arange(len(index)))) == entries
    assert index.clean_slots == 4 and index.whole_bytes == 4 * 36 and not index.is_cut_off

    before = (tmp_path / "index.jsonl").read_text()
    write_index(tmp_path, index)
    assert (tmp_path / "index.jsonl").read_text() == before


def test_the_last_line_about_a_file_is_valid(tmp_path: Path) -> None:
    write_cache(tmp_path, {str(i): make_entry(i) for i in range(6)})
    with open(tmp_path / "index.jsonl", "a") as file:
        file.write(format_line("2", make_entry(5)) + format_line("4", make_entry(0)))
        file.write(format_line("2", make_entry(3)))
    index = read_index(tmp_path)
    files = FilePaths(["4", "none", "2", "0"])
    assert index.find(files).tolist() == [7, MISSING, 8, 0]
    assert index.valid_lines().tolist() == [0, 1, 3, 5, 7, 8]
    assert index.lines["slot"][index.find(files)[[0, 2]]].tolist() == [0, 3]


def test_files_with_the_same_key_have_their_own_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "hash", len, raising=False)
    write_cache(tmp_path, {name: make_entry(i) for i, name in enumerate(["b", "aa", "a", "c"])})
    index = read_index(tmp_path)
    files = FilePaths(["a", "b", "c", "d", "aa", "bb", "", "xyz"])
    assert index.find(files).tolist() == [2, 0, 3, MISSING, 1, MISSING, MISSING, MISSING]


@pytest.mark.parametrize(
    "line",
    [
        '["x", 1]',
        '["x", 1, 2, "abc", 3, 4, 3, 4, 0, 0, {}]',
        '["x", 1, 2, "' + "0" * 64 + '", 3, 4, 3, 4, 0, 0, {"unknown": 1}]',
        '["x", 1, 2, "' + "0" * 64 + '", 3, 99999999999, 3, 4, 0, 0, {}]',
        "[1, 2, 3, 4]",
        "{",
    ],
)
def test_a_damaged_index_is_empty(line: str, tmp_path: Path) -> None:
    write_cache(tmp_path, {"a": make_entry(0), "b": make_entry(1)})
    assert len(read_index(tmp_path)) == 2
    with open(tmp_path / "index.jsonl", "a") as file:
        file.write(line + "\n")
    index = read_index(tmp_path)
    assert len(index) == 0 and index.header is None


def test_lines_without_their_pixels_are_left_out(tmp_path: Path) -> None:
    write_cache(tmp_path, {str(i): make_entry(i) for i in range(4)})
    with open(tmp_path / "whole.0.uint8", "r+b") as file:
        file.truncate(3 * 36 - 1)
    index = read_index(tmp_path)
    assert list(index.paths) == ["0", "1"] and index.is_cut_off

    with open(tmp_path / "index.jsonl", "a") as file:
        for change in ({"offset": 2**62}, {"offset": -1}, {"slot": 2**62}, {"slot": -1}):
            file.write(format_line("x", make_entry(0)._replace(**change)))
        file.write(format_line("x", make_entry(0)._replace(stored_size=(2**31 - 1, 2**31 - 1))))
        file.write(format_line("bad", Entry(FileState(1, 2), failure="why")))
    index = read_index(tmp_path)
    assert list(index.paths) == ["0", "1", "bad"] and index.failures == {2: "why"}
