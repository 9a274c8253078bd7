"""The images that a run uses, in a file that all processes of a run read."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import UserError
from utils.filesystem import write_text
from utils.text import printable


@dataclass(frozen=True)
class Selection:
    """The train and the test images of a run.

    Attributes:
        root: the folder of the files.
        cached: whether they are in the cache, or are decoded whenever they are needed.
        files: paths relative to `root`, those of the train images first.
        labels: of each file, an index into `classes` or -1.
        num_train: the number of train images.
        digest: a hash of the files, see `hash_files`.
    """

    root: str
    cached: bool
    files: list[str]
    labels: list[int]
    classes: list[str]
    num_train: int
    digest: str


def write_selection(file: Path, selection: Selection) -> None:
    """Write a selection, in place of an earlier one."""
    write_text(file, json.dumps(asdict(selection)))


def read_selection(file: Path) -> Selection:
    """Read a selection.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return Selection(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        where = printable(file.parent)
        raise UserError(
            f"{where} has no complete list of the images. Run the same command again."
        ) from None


def hash_files(files: Sequence[str], contents: Sequence[object]) -> str:
    """Return a hash of images, which is the same wherever their folder is.

    Args:
        files: the path of each image.
        contents: what stands for the content of each file: its SHA-256, its size, or None.
    """
    lines = [f"{file} {content}" for file, content in zip(files, contents, strict=True)]
    text = "\n".join(lines)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
