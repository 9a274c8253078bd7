"""The decoded images of a folder, in a cache folder of two files.

- `images.uint8`: the pixels (N, 3, C, C) of the images that could be read, one after another, as
  NumPy maps them.
- `manifest.jsonl`: in the first line the source files (path, size, time of change), C, labels and
  classes. Then, as it is decoded, a line for each file: the SHA-256 of its content and, of 16-bit
  pixels, the lowest and the highest value; or "unreadable".

Interrupted decoding resumes. If a source file changes, all of them are decoded again.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from simsiam.data.dataset import ImageDataset, Splits
from simsiam.data.images import Read, read_images, silence_pillow, try_to_read
from utils.console import print_line, track_progress
from utils.errors import UserError, require
from utils.filesystem import lock_folder, write_text
from utils.text import printable

IMAGES = "images.uint8"
MANIFEST = "manifest.jsonl"
UNREADABLE = "unreadable"


def open_cache(folder: Path) -> Splits:
    """Return both splits of what `decode_images` has left in a folder, on disk.

    Raises:
        UserError: if nothing complete is there.
    """
    manifest, lines = _read_manifest(folder)
    complete = bool(lines) and len(lines) == len(manifest["sources"])
    require(complete, f"{printable(folder)}: no complete cache of images: run this again")
    decoded = [i for i, line in enumerate(lines) if line != UNREADABLE]
    hashes = [line.split(" ")[0] for line in lines]
    content = "\n".join(f"{manifest['sources'][i][0]} {hashes[i]}" for i in decoded)
    digest = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]
    images = map_images(folder / IMAGES, len(decoded), manifest["side"])
    labels = torch.tensor(manifest["labels"])[decoded]
    both = ImageDataset(images, labels, tuple(manifest["classes"]), on_disk=True, digest=digest)
    first = sum(i < manifest["train"] for i in decoded)
    require(first > 0, f"{printable(folder)}: of the train images none can be read")
    return both.first(first), replace(both, images=images[first:], labels=labels[first:])


def map_images(file: Path, n: int, side: int) -> Tensor:
    """Return n images (3, side, side) as a memory map: read when indexed, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=(n, 3, side, side)))


def read_deep_ranges(folder: Path) -> list[tuple[int, int] | None]:
    """Return `DecodedImage.deep_range` of each decoded image of a complete cache."""
    _, *lines = (folder / MANIFEST).read_text().splitlines()
    ranges: list[tuple[int, int] | None] = []
    for line in lines:
        if line != UNREADABLE:
            _, *values = line.split(" ")
            ranges.append((int(values[0]), int(values[1])) if values else None)
    return ranges


def decode_images(
    folder: Path,
    root: Path,
    files: Sequence[Path],
    side: int,
    facts: dict[str, Any],
) -> dict[Path, str]:
    """Make `folder` the cache of `files` below `root`, unless it is already.

    Args:
        facts: what the manifest says beyond files and side; "pixel_range" is that of `read_image`.

    Returns:
        The files that cannot be read, and the reason.
    """
    waiting = f"another process is decoding the images of {printable(root)}: waiting for it"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, waiting, wait=True):
            return _update(folder, root, files, side, facts)
    except OSError as error:
        where = printable(os.fsdecode(error.filename or folder))
        message = f"{where}: {error.strerror}: mend that, or give another --cache-dir"
        raise UserError(message) from None


def _update(
    folder: Path,
    root: Path,
    files: Sequence[Path],
    side: int,
    facts: dict[str, Any],
) -> dict[Path, str]:
    """Do what `decode_images` says, in the process that holds the lock."""
    manifest = {"side": side, "sources": [_stat(root, file) for file in files], **facts}
    pixel_range = facts.get("pixel_range")
    old, lines = _read_manifest(folder)
    if old != manifest:
        lines = []
    recorded = zip(files, lines, strict=False)  # of an interrupted decoding, the first files alone
    unreadable = [file for file, line in recorded if line == UNREADABLE]
    bad: dict[Path, str] = {}
    with silence_pillow():
        for file in unreadable:
            result = try_to_read(root / file, side, pixel_range)
            if isinstance(result, str):
                bad[file] = result
    # A file may have become readable without a change of its time, as after a chmod.
    if not lines or len(bad) < len(unreadable):
        lines, bad = [], {}
        for file in folder.iterdir():
            file.unlink()  # rather than overwritten: a run that reads it may go on
    if len(lines) == len(files):
        return bad
    _check_space(folder, (len(files) - len(lines)) * 3 * side**2)
    if lines:
        print_line(f"{len(lines):,} of {len(files):,} images are decoded already")
    write_text(folder / MANIFEST, "\n".join([json.dumps(manifest), *lines, ""]))
    with open(folder / IMAGES, "ab") as pixel_file, open(folder / MANIFEST, "a") as manifest_file:
        pixel_file.truncate((len(lines) - len(bad)) * 3 * side**2)  # drop what was not recorded
        left = files[len(lines) :]
        chunks = read_images(root, left, side, pixel_range)
        title = f"decoding images of {printable(root)}"
        for chunk in track_progress(chunks, len(left), title):
            for file, result in chunk:
                if isinstance(result, str):
                    bad[file] = result
                else:
                    pixel_file.write(result.pixels.numpy().data)
            _sync(pixel_file)  # before they are recorded as decoded, whatever is cut off when
            manifest_file.writelines(_manifest_line(result) for _, result in chunk)
            _sync(manifest_file)
    good = len(files) - len(bad)
    print_line(f"decoded {good:,} images to {side} x {side} pixels, in {printable(folder)}")
    return bad


def _check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless the disk has room for that many bytes."""
    free = shutil.disk_usage(folder).free
    sizes = f"take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
    message = f"{printable(folder)}: the decoded images {sizes}"
    require(needed <= free, f"{message}: make room, or give another --cache-dir")


def _manifest_line(result: Read) -> str:
    if isinstance(result, str):
        return f"{UNREADABLE}\n"
    if result.deep_range is None:
        return f"{result.digest}\n"
    low, high = result.deep_range
    return f"{result.digest} {low} {high}\n"


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stat(root: Path, file: Path) -> list[str | int]:
    """Return [path, size in bytes, time of change in ns]."""
    try:
        state = os.stat(root / file)
    except OSError:
        return [str(file), -1, 0]
    return [str(file), state.st_size, state.st_mtime_ns]


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the manifest, and its lines for the files that are decoded.

    Both are empty if the manifest or the images are missing or damaged.
    """
    try:
        # The last part is empty, or a line that was cut off.
        first, *lines = (folder / MANIFEST).read_text().split("\n")[:-1]
        manifest = json.loads(first)
        good = len(lines) - lines.count(UNREADABLE)
        if os.stat(folder / IMAGES).st_size < good * 3 * manifest["side"] ** 2:
            return {}, []
        return manifest, lines
    except (OSError, ValueError, LookupError, TypeError):
        return {}, []
