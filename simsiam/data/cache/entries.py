"""The files in a folder of decoded images, and the lines of their index.

- `whole.N.uint8`: the pixels (h, w, 3) of whole images, one after another.
- `clean.N.uint8`: the clean images (3, S, S), one after another.
- `index.jsonl`: the first line is a JSON object, see `Header`. Each further line is a JSON list
  about a file: path, size in bytes, modification time in ns, and what `Entry` has. Of several lines
  about a file, the last one is valid. A file that cannot be read has only the first three, and the
  reason.

The two other files are only appended to, and their bytes reach the disk before the index names
them. N grows when they are written again without what is not used any more.
"""

import json
from dataclasses import asdict, dataclass
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


def wrap_time(nanoseconds: int) -> int:
    """Return a modification time that fits into 64 bits. Only dates after 2262 do not."""
    return (nanoseconds + 2**63) % 2**64 - 2**63


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
