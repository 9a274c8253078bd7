"""The images that a run uses, in a file that all processes of a run map into memory.

The file begins with a line of JSON, see `_make_header`. Then come three arrays: where each path
begins (int64), the labels (int64) and the text of the paths, see `FilePaths.to_arrays`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from simsiam.data.file_paths import END, FilePaths
from utils.errors import UserError
from utils.filesystem import write_atomically
from utils.text import printable

FORMAT = 2  # format 1 was one JSON object, in a file with another suffix
OLD_SUFFIX = ".json"
ALIGNMENT = 64  # the arrays begin at a multiple of this number of bytes


@dataclass(frozen=True)
class Selection:
    """The train and the test images of a run.

    Attributes:
        root: the folder of the files.
        cached: whether they are in the cache, or are decoded whenever they are needed.
        files: paths relative to `root`, those of the train images first.
        labels: of each file, (N,) int64, an index into `classes` or -1.
        classes: the names of the classes.
        num_train: the number of train images.
        digest: a hash of the files, see `hash_files`.
    """

    root: str
    cached: bool
    files: FilePaths
    labels: Tensor
    classes: tuple[str, ...]
    num_train: int
    digest: str


def write_selection(file: Path, selection: Selection) -> None:
    """Write a selection, in place of an earlier one, unless the file has this selection already.

    A run on another machine may have mapped the file. On a network file system it could not read
    its file any more after that was replaced.
    """
    text, starts = selection.files.to_arrays()
    arrays = [starts, selection.labels.contiguous().numpy(), text]
    header = _make_header(selection, arrays)

    def write(partial: Path) -> None:
        with open(partial, "wb") as opened:
            opened.write(header)
            for array in arrays:
                array.tofile(opened)

    if not _begins_with(file, header):
        write_atomically(file, write)
        file.with_suffix(OLD_SUFFIX).unlink(missing_ok=True)


def _make_header(selection: Selection, arrays: list[np.ndarray]) -> bytes:
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    header: dict[str, Any] = {
        "format": FORMAT,
        "root": selection.root,
        "cached": selection.cached,
        "classes": selection.classes,
        "num_train": selection.num_train,
        "digest": selection.digest,
        "num_files": len(selection.files),
        "text_bytes": len(arrays[-1]),
        "content": content.hexdigest(),  # shows whether two files have the same content
    }
    line = json.dumps(header).encode()
    padding = -(len(line) + 1) % ALIGNMENT
    return line + b" " * padding + b"\n"


def _begins_with(file: Path, header: bytes) -> bool:
    try:
        with open(file, "rb") as opened:
            return opened.read(len(header)) == header
    except OSError:
        return False


def read_selection(file: Path) -> Selection:
    """Map a selection into memory.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        with open(file, "rb") as opened:
            return _read(opened)
    except (OSError, ValueError, TypeError, LookupError):
        where = printable(file.parent)
        raise UserError(
            f"{where} has no complete list of the images. Run the same command again."
        ) from None


def _read(opened: IO[bytes]) -> Selection:
    """Return the selection in a file.

    Raises:
        ValueError: the file is damaged; also TypeError and LookupError.
    """
    header = json.loads(opened.readline())
    header_bytes = opened.tell()
    num_files = header["num_files"]
    num_starts = num_files + 1
    if header["format"] != FORMAT:
        raise ValueError("another format")
    # Pages that this process writes to, which is none of them, would become its own copies. With
    # access "r", torch would warn of an array that is not writable.
    content = np.memmap(opened, np.uint8, "c", offset=0)
    arrays = content[header_bytes:]
    if len(arrays) != 8 * (num_starts + num_files) + header["text_bytes"]:
        raise ValueError("the file is cut off")
    starts, labels, text = np.split(arrays, [8 * num_starts, 8 * (num_starts + num_files)])
    starts = starts.view(np.int64)
    if starts[0] != 0 or starts[-1] != len(text):
        raise ValueError("the paths do not end where the file ends")
    return Selection(
        root=header["root"],
        cached=header["cached"],
        files=FilePaths.from_arrays(text, starts),
        labels=torch.from_numpy(labels.view(np.int64)),
        classes=tuple(header["classes"]),
        num_train=header["num_train"],
        digest=header["digest"],
    )


def hash_files(files: FilePaths, contents: Mapping[int, object]) -> str:
    """Return a hash of images, which is the same wherever their folder is.

    Each line of the hashed text has a path and what stands for the content of its file.

    Args:
        files: the path of each image.
        contents: what stands for the content of some files, by index: their SHA-256 or their size.
            For the other files it is None.
    """
    text, starts = files.to_arrays()
    hasher = hashlib.sha256()
    position = 0  # of the first file that is not hashed yet

    def add_lines(lines: bytes) -> None:
        if position > 0:
            hasher.update(b"\n")
        hasher.update(lines)

    for i, content in [*sorted(contents.items()), (len(files), None)]:
        if position < i:
            paths = text[starts[position] : starts[i]].tobytes()
            add_lines(paths.replace(END, b" None\n").removesuffix(b"\n"))
            position = i
        if i < len(files):
            path = text[starts[i] : starts[i + 1] - 1].tobytes()
            add_lines(path + f" {content}".encode())
            position = i + 1
    return hasher.hexdigest()[:16]


def hash_contents(files: FilePaths, digests: np.ndarray) -> str:
    """Return what `hash_files` returns if the content of each file is known.

    Args:
        digests: (N,) of 32 bytes, the SHA-256 of each file.
    """
    hasher = hashlib.sha256()
    start = 0
    for chunk in files.chunks():
        contents = digests[start : start + len(chunk)].tolist()
        lines = [f"{path} {content.hex()}" for path, content in zip(chunk, contents, strict=True)]
        if start > 0:
            hasher.update(b"\n")
        hasher.update("\n".join(lines).encode(errors="surrogateescape"))
        start += len(chunk)
    return hasher.hexdigest()[:16]
