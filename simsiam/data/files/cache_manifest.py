"""The two files of a folder of decoded images, and the format of the manifest.

- `images.uint8`: the pixels (N, 3, C, C) of all readable images, without a header.
- `manifest.jsonl`: the first line is a JSON object with the source files (path, size, modification
  time), the side C, the conversion of pixels, the labels and the classes. Then comes a line for
  each source file that was tried so far: the SHA-256 of its content and a JSON object of those of
  its `ImageNotes` that differ from the defaults. If the file cannot be read, the line is
  "unreadable".
"""

import json
import os
from pathlib import Path
from typing import Any

from simsiam.data.files.image_notes import ImageNotes
from simsiam.data.files.images import ReadResult

IMAGES = "images.uint8"
MANIFEST = "manifest.jsonl"
UNREADABLE = "unreadable"
FORMAT = 2  # in the manifest; a cache of another format is built again


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON object of a manifest, and the line of each source file that was tried.

    Both are empty if the manifest or the images are missing or damaged.
    """
    try:
        text = (folder / MANIFEST).read_text()
        complete_lines = text.split("\n")[:-1]  # without a last line that was cut off
        manifest = json.loads(complete_lines[0])
        lines = complete_lines[1:]
        num_readable = len(lines) - lines.count(UNREADABLE)
        pixel_bytes = num_readable * bytes_per_image(manifest["side"])
        has_all_pixels = os.stat(folder / IMAGES).st_size >= pixel_bytes
        if has_all_pixels and len(lines) <= len(manifest["sources"]):
            return manifest, lines
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return {}, []


def bytes_per_image(side: int) -> int:
    """Return the number of bytes of a decoded image of side x side pixels."""
    return 3 * side**2


def describe_source(root: Path, file: Path) -> list[str | int]:
    """Return [path, size in bytes, modification time in ns] of a source file below `root`."""
    try:
        status = os.stat(root / file)
    except OSError:
        return [str(file), -1, 0]  # such as a link to a missing file
    return [str(file), status.st_size, status.st_mtime_ns]


def format_line(result: ReadResult) -> str:
    """Return the manifest's line of a source file."""
    if isinstance(result, str):
        return UNREADABLE
    unusual = {}
    for name, value in result.notes._asdict().items():
        if value != ImageNotes._field_defaults[name]:
            unusual[name] = value
    if not unusual:
        return result.digest
    return f"{result.digest} {json.dumps(unusual)}"


def parse_digest(line: str) -> str:
    """Return the digest of an image from its line in the manifest."""
    return line.split(" ", maxsplit=1)[0]


def parse_line(line: str) -> tuple[str, ImageNotes]:
    """Return `digest` and `notes` of a `DecodedImage` from its line in the manifest."""
    digest, _, text = line.partition(" ")
    return digest, ImageNotes(**json.loads(text or "{}"))
