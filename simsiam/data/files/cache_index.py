"""The files in a folder of decoded images, and the format of their index.

- `whole.N.uint8`: the pixels (h, w, 3) of whole images, one after another.
- `clean.N.uint8`: the clean images (3, S, S), one after another.
- `index.jsonl`: the first line is a JSON object, see `Header`. Each further line is a JSON list
  about a file: path, size in bytes, modification time in ns, and what `Entry` has. Of several lines
  about a file, the last one is valid. A file that cannot be read has only the first three, and the
  reason.

The two other files are only appended to, and their bytes reach the disk before the index names
them. N grows when they are written again without what is not used any more.
"""

import gc
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from simsiam.data.files.image_notes import ImageNotes

INDEX = "index.jsonl"
FORMAT = 3  # formats 1 and 2 were of square images, in other files
UNREADABLE_LENGTH = 4  # items in the line of a file that cannot be read


@dataclass
class Header:
    """The first line of an index.

    Attributes:
        source: the folder or the list of the images, for `python main.py cache`.
        size: S, the side of the clean images.
        stored_side: the largest shorter side of the whole images.
        conversion: how pixels became RGB of 8 bits.
        number: N in the names of the other files.
    """

    source: str
    size: int
    stored_side: int
    conversion: list[Any]
    number: int = 0
    format: int = FORMAT

    @property
    def whole_file(self) -> str:
        return f"whole.{self.number}.uint8"

    @property
    def clean_file(self) -> str:
        return f"clean.{self.number}.uint8"

    @property
    def clean_bytes(self) -> int:
        """Bytes of a clean image."""
        return 3 * self.size**2


class FileState(NamedTuple):
    """What shows that a file has changed: its size in bytes and its modification time in ns."""

    size: int
    mtime: int


class Entry(NamedTuple):
    """What the index says about a file."""

    state: FileState
    digest: str = ""  # SHA-256 of the file
    original_size: tuple[int, int] = (0, 0)  # height and width in the file
    stored_size: tuple[int, int] = (0, 0)  # height and width of the stored image
    offset: int = 0  # in the file of whole images
    slot: int = 0  # how many clean images come before this one
    notes: ImageNotes = ImageNotes()
    failure: str = ""  # why the file cannot be read, or "" if it can be read

    @property
    def whole_bytes(self) -> int:
        height, width = self.stored_size
        return 3 * height * width


@dataclass
class Index:
    """The content of an index.

    Attributes:
        entries: what it says about each path.
        num_replaced: number of lines that later lines replaced.
        is_cut_off: whether the last line is incomplete.
        whole_bytes, clean_slots: how much of the two other files the lines name.
    """

    header: Header | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    num_replaced: int = 0
    is_cut_off: bool = False
    whole_bytes: int = 0
    clean_slots: int = 0

    def add(self, path: str, entry: Entry) -> None:
        """Add an entry, in place of an earlier one of the same path."""
        if path in self.entries:
            self.num_replaced += 1
        self.entries[path] = entry
        if not entry.failure:
            self.whole_bytes = max(self.whole_bytes, entry.offset + entry.whole_bytes)
            self.clean_slots = max(self.clean_slots, entry.slot + 1)


def read_index(folder: Path) -> Index:
    """Return the index of a cache, without entries whose pixels are missing.

    The result is empty if the index is missing or damaged.
    """
    index = Index()
    # Nothing here becomes garbage. Looking for garbage would take most of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        lines = (folder / INDEX).read_bytes().split(b"\n")
        header = Header(**json.loads(lines[0]))
        if header.format != FORMAT:
            return Index()
        whole_size = os.stat(folder / header.whole_file).st_size
        clean_size = os.stat(folder / header.clean_file).st_size
        index.header = header
        index.is_cut_off = lines[-1] != b""
        # To parse all lines together takes a third of the time.
        for values in json.loads(b"[" + b",".join(lines[1:-1]) + b"]"):
            path, entry = parse_values(values)
            ends = (entry.offset + entry.whole_bytes, (entry.slot + 1) * header.clean_bytes)
            is_stored = ends[0] <= whole_size and ends[1] <= clean_size
            if entry.failure or is_stored:
                index.add(path, entry)
            else:
                index.is_cut_off = True
    except (OSError, ValueError, LookupError, TypeError):
        return Index()
    finally:
        if was_enabled:
            gc.enable()
    return index


def format_header(header: Header) -> str:
    """Return the first line of an index, with its line break."""
    return json.dumps(asdict(header)) + "\n"


def format_line(path: str, entry: Entry) -> str:
    """Return the line of a file, with its line break."""
    values: list[Any] = [path, *entry.state]
    if entry.failure:
        values.append(entry.failure)
    else:
        values += [entry.digest, *entry.original_size, *entry.stored_size, entry.offset, entry.slot]
        values.append(_unusual_notes(entry.notes))
    # A path may have bytes that are not UTF-8, which Python holds as surrogates. JSON escapes them.
    return json.dumps(values) + "\n"


def _unusual_notes(notes: ImageNotes) -> dict[str, Any]:
    """Return those of the notes that differ from the defaults."""
    unusual: dict[str, Any] = {}
    for name, value in notes._asdict().items():
        if value != ImageNotes._field_defaults[name]:
            unusual[name] = value
    return unusual


def parse_values(line: list[Any]) -> tuple[str, Entry]:
    """Return path and entry from the values of a line.

    Raises:
        ValueError: the line is damaged; also TypeError and LookupError.
    """
    path, size, mtime, *values = line
    state = FileState(size, mtime)
    if len(values) == UNREADABLE_LENGTH - 3:
        return path, Entry(state, failure=values[0])
    digest, height, width, stored_height, stored_width, offset, slot, notes = values
    entry = Entry(
        state=state,
        digest=digest,
        original_size=(height, width),
        stored_size=(stored_height, stored_width),
        offset=offset,
        slot=slot,
        notes=ImageNotes(**notes) if notes else ImageNotes(),
    )
    return path, entry


def format_lines(entries: Iterable[tuple[str, Entry]]) -> str:
    """Return the lines of several files."""
    return "".join(format_line(path, entry) for path, entry in entries)
