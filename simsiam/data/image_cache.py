"""Images decoded once into a NumPy memory map, in a cache folder of three files.

- `images.npy`: (N, 3, C, C) uint8, of the images that could be read, one after another; the rest of it is unused.
- `progress.npy`: (N,) records, for each source file whether it was decoded, and the SHA-256 of its content.
- `manifest.json`: the source files (path, size, time of change), C, and what the caller wants to keep with them.

An interrupted decoding goes on; when a source changes, all of them are decoded anew.
"""

import hashlib
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from simsiam.data.images import read_image, try_to_read
from utils.console import print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import check_writable, lock_folder, write_text

IMAGES, PROGRESS, MANIFEST = "images.npy", "progress.npy", "manifest.json"
PENDING, DECODED, UNREADABLE = range(3)
RECORD = np.dtype([("state", "u1"), ("sha256", "u1", 32)])
BLOCK_IMAGES, BLOCK_BYTES = 512, 2**26  # images decoded, written and recorded together: at most so many, or so large


class ImageCache(NamedTuple):
    """A finished cache, open for reading."""

    images: Tensor  # (n, 3, C, C) uint8, on disk
    decoded: list[int]  # (n,) which of the source files they are from
    manifest: dict[str, Any]
    digest: str  # of the paths and contents of all images


def open_cache(folder: Path) -> ImageCache:
    """Open what `decode_images` has left in a folder.

    Raises:
        UserError: nothing complete is there.
    """
    manifest, progress = _read_manifest(folder), _map_file(folder / PROGRESS, "r")
    images = _map_file(folder / IMAGES, "r")
    if manifest is None or progress is None or images is None or bool((progress["state"] == PENDING).any()):
        raise UserError(f"{folder}: no complete cache of images: run this again")
    decoded = np.flatnonzero(progress["state"] == DECODED).tolist()
    lines = (f"{manifest['sources'][i][0]} {progress['sha256'][i].tobytes().hex()}" for i in decoded)
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
    return ImageCache(map_images(folder / IMAGES, len(decoded)), decoded, manifest, digest)


def map_images(file: Path, n: int) -> Tensor:
    """The first n images of an .npy file, read only when they are indexed: a memory map, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(open_memmap(file, "r")[:n])


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "sources" in manifest else None


def _map_file(file: Path, mode: Any) -> np.memmap | None:
    """Map an .npy file; None if it is missing or shorter than its header says."""
    try:
        open_memmap(file, "r")  # which raises for a short file; "r+" would fill it up with zeros
        return open_memmap(file, mode)
    except (OSError, ValueError, EOFError, SyntaxError):
        return None


def decode_images(folder: Path, root: Path, files: list[Path], side: int, facts: dict[str, Any]) -> list[str]:
    """Make `folder` the cache of some image files below `root`: the central square of each, resized to (3, C, C).

    Nothing happens if it is their cache already. A second process waits for the first.

    Args:
        side: C.
        facts: JSON values to keep in the manifest.

    Returns:
        "FILE (WHY)" for each image that cannot be read.

    Raises:
        UserError: not enough disk space, or no permission to write.
    """
    check_writable(folder, "--cache-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"another process is decoding the images of {root}: waiting for it", wait=True):
            return _update(folder, root, {"side": side, "sources": [_stat(root, file) for file in files], **facts})
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


def _update(folder: Path, root: Path, manifest: dict[str, Any]) -> list[str]:
    """`decode_images`, by the one process that holds the lock."""
    old, shape = _read_manifest(folder), (len(manifest["sources"]), 3, manifest["side"], manifest["side"])
    progress, images = _map_file(folder / PROGRESS, "r+"), _map_file(folder / IMAGES, "r+")
    broken = progress is None or images is None or progress.shape != shape[:1] or images.shape != shape
    if old != manifest or broken:
        if old == manifest or (old is None and (folder / IMAGES).exists()):
            print_line(f"{folder} is damaged: all images are decoded again")
        progress, images = _begin(folder, manifest, shape)
    assert progress is not None and images is not None
    bad = _decode_pending(folder, root, manifest, progress, images)
    if None in bad:
        bad = _decode_pending(folder, root, manifest, *_begin(folder, manifest, shape))
    return [why for why in bad if why is not None]


def _begin(folder: Path, manifest: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.memmap, np.memmap]:
    """Replace what is in the folder by an empty cache: `progress` and `images`."""
    for file in folder.iterdir():
        file.unlink()  # rather than overwritten: a run that reads it may go on
    need, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    check(
        need <= free,
        f"{folder}: the decoded images take {need / 2**30:.1f} GiB, and {free / 2**30:.1f} are free: "
        "make room, or give another --cache-dir",
    )
    images = open_memmap(folder / IMAGES, "w+", np.uint8, shape)
    with open(folder / IMAGES, "r+b") as file:  # a full disk is an error now; under a memory map it would be a SIGBUS
        os.posix_fallocate(file.fileno(), 0, os.stat(file.fileno()).st_size)
    progress = open_memmap(folder / PROGRESS, "w+", RECORD, shape[:1])
    write_text(folder / MANIFEST, json.dumps(manifest))
    return progress, images


def _decode_pending(
    folder: Path, root: Path, manifest: dict[str, Any], progress: np.memmap, images: np.memmap
) -> list[str | None]:
    """Decode what is left, block by block.

    Returns:
        for each image that could not be read, "FILE (WHY)", or None if it can be read by now.
    """
    n, side, sources = len(progress), manifest["side"], manifest["sources"]
    pending = np.flatnonzero(progress["state"] == PENDING)
    start = int(pending[0]) if len(pending) else n
    row = int((progress["state"][:start] == DECODED).sum())
    if 0 < start < n:
        print_line(f"{start:,} of {n:,} images are decoded already")
    size = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // (3 * side**2)))
    blocks = [range(i, min(i + size, n)) for i in range(start, n, size)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
        for block in track_progress(blocks, n - start, f"decoding images of {root}"):
            records = np.zeros(len(block), RECORD)
            paths = (root / sources[i][0] for i in block)
            read = pool.map(lambda path: try_to_read(path, side, _hash_and_read), paths)
            for record, found in zip(records, read, strict=True):
                record["state"] = UNREADABLE if isinstance(found, str) else DECODED
                if not isinstance(found, str):
                    record["sha256"], images[row] = np.frombuffer(found[0], np.uint8), found[1].numpy()
                    row += 1
            images.flush()  # before they are recorded as decoded, whatever is cut off when
            progress[block.start : block.stop] = records
            progress.flush()
    if start < n:
        print_line(f"decoded {n:,} images to {side} x {side} pixels, in {folder}")
    unreadable = [sources[i][0] for i in np.flatnonzero(progress["state"] == UNREADABLE)]
    tried = [(path, try_to_read(root / path, side)) for path in unreadable]  # a permission changes no time of the file
    return [f"{path} ({why})" if isinstance(why, str) else None for path, why in tried]


def _hash_and_read(path: Path, side: int) -> tuple[bytes, Tensor]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        return digest, read_image(file, side)
