"""Images decoded once into a NumPy memory map, in a cache folder of two files.

- `images.npy`: (N, 3, C, C) uint8, of the images that could be read, one after another; the rest of it is unused.
- `manifest.jsonl`: first the source files (path, size, time of change), C, and what the caller keeps with them; then,
  as it is decoded, a line for each file: the SHA-256 of its content, or "unreadable".

An interrupted decoding goes on; when a source changes, all of them are decoded anew.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from simsiam.data.images import read_images, try_to_read
from utils.console import print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import lock_folder, write_text

IMAGES, MANIFEST, UNREADABLE = "images.npy", "manifest.jsonl", "unreadable"


class ImageCache(NamedTuple):
    """A finished cache, open for reading."""

    images: Tensor  # (n, 3, C, C) uint8, on disk
    decoded: list[int]  # (n,) which of the source files they are from
    manifest: dict[str, Any]
    digest: str  # of the paths and contents of all images


def open_cache(folder: Path) -> ImageCache:
    """Open what `decode_images` has left in a folder; UserError if nothing complete is there."""
    manifest, done = _read_manifest(folder)
    complete = bool(done) and len(done) == len(manifest["sources"])
    check(complete, f"{folder}: no complete cache of images: run this again")
    decoded = [i for i, line in enumerate(done) if line != UNREADABLE]
    lines = "\n".join(f"{manifest['sources'][i][0]} {done[i]}" for i in decoded)
    digest = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]
    return ImageCache(map_images(folder / IMAGES, len(decoded)), decoded, manifest, digest)


def map_images(file: Path, n: int) -> Tensor:
    """The first n images of an .npy file, read only when they are indexed: a memory map, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(open_memmap(file, "r")[:n])


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest and its lines for the files that are decoded; nothing if it or the images are missing or damaged."""
    try:
        first, *done = (folder / MANIFEST).read_text().split("\n")[:-1]  # without a line that was cut off
        open_memmap(folder / IMAGES, "r")  # which raises for a short file; "r+" would fill it up with zeros
        return json.loads(first), done
    except (OSError, ValueError, EOFError):
        return {}, []


def decode_images(folder: Path, root: Path, files: Sequence[Path], side: int, facts: dict[str, Any]) -> dict[Path, str]:
    """Make `folder` the cache of some image files below `root`: the central square of each, resized to (3, C, C).

    Nothing happens if it is their cache already. A second process waits for the first. `side` is C, `facts` are JSON
    values to keep in the manifest. Returns the images that cannot be read, and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"another process is decoding the images of {root}: waiting for it", wait=True):
            return _update(folder, root, files, side, facts)
    except OSError as error:
        where = os.fsdecode(error.filename or folder)
        raise UserError(f"{where}: {error.strerror}: mend that, or give another --cache-dir") from None


def _stat(root: Path, file: Path) -> list[str | int]:
    """[path, size in bytes, time of change in ns]"""
    try:
        state = os.stat(root / file)
    except OSError:
        return [str(file), -1, 0]
    return [str(file), state.st_size, state.st_mtime_ns]


def _update(folder: Path, root: Path, files: Sequence[Path], side: int, facts: dict[str, Any]) -> dict[Path, str]:
    """`decode_images`, by the one process that holds the lock."""
    manifest = {"side": side, "sources": [_stat(root, file) for file in files], **facts}
    old, done = _read_manifest(folder)
    if not old and os.listdir(folder):
        print_line(f"{folder} is damaged: all images are decoded again")
    if old != manifest:
        done = []
    unreadable = [file for file, line in zip(files, done, strict=False) if line == UNREADABLE]
    bad = {file: why for file in unreadable if isinstance(why := try_to_read(root / file, side), str)}
    if len(bad) < len(unreadable):  # one is mended, as by a new permission, which changes no time of the file
        done, bad = [], {}
    if not done:
        _make_images(folder, (len(files), 3, side, side))
    start, row = len(done), len(done) - len(bad)
    if start == len(files):
        return bad
    if start:
        print_line(f"{start:,} of {len(files):,} images are decoded already")
    write_text(folder / MANIFEST, "\n".join([json.dumps(manifest), *done, ""]))
    images = open_memmap(folder / IMAGES, "r+")
    with open(folder / MANIFEST, "a") as lines:
        chunks = read_images(root, files[start:], side)
        for chunk in track_progress(chunks, len(files) - start, f"decoding images of {root}"):
            for file, read in chunk:
                if isinstance(read, str):
                    bad[file] = read
                else:
                    images[row] = read[0].numpy()
                    row += 1
            images.flush()  # before they are recorded as decoded, whatever is cut off when
            lines.writelines(f"{UNREADABLE if isinstance(read, str) else read[1]}\n" for _, read in chunk)
            lines.flush()
            os.fsync(lines.fileno())
    print_line(f"decoded {len(files):,} images to {side} x {side} pixels, in {folder}")
    return bad


def _make_images(folder: Path, shape: tuple[int, ...]) -> None:
    """Replace what is in the folder by an empty `images.npy`."""
    for file in folder.iterdir():
        file.unlink()  # rather than overwritten: a run that reads it may go on
    need, free = math.prod(shape) / 2**30, shutil.disk_usage(folder).free / 2**30
    what = f"{folder}: the decoded images take {need:.1f} GiB, and {free:.1f} are free"
    check(need <= free, f"{what}: make room, or give another --cache-dir")
    open_memmap(folder / IMAGES, "w+", np.uint8, shape)
    with open(folder / IMAGES, "r+b") as file:  # a full disk is an error now; under a memory map it would be a SIGBUS
        os.posix_fallocate(file.fileno(), 0, os.stat(file.fileno()).st_size)
