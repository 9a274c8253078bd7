"""Decode the images of a folder once, into a cache folder that later runs map into memory.

`simsiam.data.files.cache_manifest` describes the files in a cache folder. Interrupted decoding
resumes. If any source file changes, all files are decoded again.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from simsiam.config.value_types import PixelConversion
from simsiam.data.dataset import ImageDataset, Splits
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.cache_manifest import (
    FORMAT,
    IMAGES,
    MANIFEST,
    UNREADABLE,
    bytes_per_image,
    describe_source,
    format_line,
    parse_digest,
    parse_line,
    read_manifest,
)
from simsiam.data.files.image_notes import ImageNotes
from simsiam.data.files.images import read_images, silence_pillow, try_to_read
from utils.console import print_line, track_progress
from utils.errors import UserError, require
from utils.filesystem import lock_folder, write_text
from utils.text import printable

# ---------------------------------------------------------------- reading a cache


def open_cache(folder: Path) -> Splits:
    """Open the train and the test split of a complete cache, as memory maps.

    Raises:
        UserError: if the cache is missing or incomplete, or no train image could be read.
    """
    manifest, lines = read_manifest(folder)
    is_complete = len(lines) > 0 and len(lines) == len(manifest["sources"])
    where = printable(folder)
    require(is_complete, f"{where} is no complete cache of images. Run the same command again.")

    # Collect the readable images. The file of pixels has them in this order.
    readable = []
    digests = []
    for i, line in enumerate(lines):
        if line != UNREADABLE:
            readable.append(i)
            digests.append(parse_digest(line))

    images = map_images(folder / IMAGES, len(readable), manifest["side"])
    labels = torch.tensor(manifest["labels"])[readable]
    classes = tuple(manifest["classes"])
    paths = [manifest["sources"][i][0] for i in readable]
    digest = _digest_contents(paths, digests)
    file_paths = FilePaths(paths)
    both = ImageDataset(images, labels, classes, on_disk=True, digest=digest, paths=file_paths)

    # The files of the train images come first.
    num_train = sum(1 for i in readable if i < manifest["train"])
    require(num_train > 0, f"None of the train images in {where} could be read.")
    return both.first(num_train), both.slice(num_train, None)


def map_images(file: Path, n: int, side: int) -> Tensor:
    """Map a file of n decoded images into memory, read-only.

    Returns:
        (n, 3, side, side) uint8. Pixels are read from the disk when they are indexed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=(n, 3, side, side)))


def read_notes(folder: Path) -> dict[Path, tuple[str, ImageNotes]]:
    """Return the digest and the notes of each readable image of a complete cache, by its path."""
    manifest, lines = read_manifest(folder)
    notes = {}
    for (path, _, _), line in zip(manifest["sources"], lines, strict=True):
        if line != UNREADABLE:
            notes[Path(path)] = parse_line(line)
    return notes


def _digest_contents(paths: Sequence[str], digests: Sequence[str]) -> str:
    """Return a hash of the paths and contents of images, the same wherever their folder is."""
    entries = [f"{path} {digest}" for path, digest in zip(paths, digests, strict=True)]
    text = "\n".join(entries)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


# ---------------------------------------------------------------- writing a cache


def decode_images(
    folder: Path,
    root: Path,
    files: Sequence[Path],
    side: int,
    metadata: dict[str, Any],
    conversion: PixelConversion = PixelConversion(),
) -> dict[Path, str]:
    """Decode image files into a cache folder, unless it already holds them.

    If another process is decoding into the same folder, wait for it.

    Args:
        folder: the cache folder. It is created if it does not exist.
        root: folder of the image files.
        files: paths relative to `root`, those of the train images first.
        side: side of the decoded images in pixels.
        metadata: further entries of the manifest: "train" (the number of train files), "labels"
            and "classes".
        conversion: how pixels become RGB of 8 bits.

    Returns:
        The files that cannot be read, each with the reason.

    Raises:
        UserError: if the disk is full or the cache folder cannot be written.
    """
    waiting = f"Waiting for another process, which is decoding the images of {printable(root)}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, waiting, wait=True):
            writer = _CacheWriter(folder, root, files, side, metadata, conversion)
            writer.update()
            return writer.unreadable
    except OSError as error:
        where = printable(os.fsdecode(error.filename or folder))
        advice = "Fix the cause, or pass another --cache-dir."
        raise UserError(f"{where}: {error.strerror}. {advice}") from None


class _CacheWriter:
    """Decodes image files into a cache folder, whose lock the caller holds.

    Attributes:
        lines: the manifest's lines of the files that were tried so far, in the order of `files`.
        unreadable: those of the tried files that cannot be read, each with the reason.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        files: Sequence[Path],
        side: int,
        metadata: dict[str, Any],
        conversion: PixelConversion,
    ) -> None:
        self.folder = folder
        self.root = root
        self.files = files
        self.side = side
        self.conversion = conversion
        sources = [describe_source(root, file) for file in files]
        self.manifest = {
            "format": FORMAT,
            "side": side,
            "sources": sources,
            "conversion": json.loads(json.dumps(conversion)),  # as the manifest gives it back
            **metadata,
        }
        self.lines: list[str] = []
        self.unreadable: dict[Path, str] = {}

    def update(self) -> None:
        """Keep what an earlier call decoded if it is still valid, and decode the rest."""
        self._load_progress()
        if not self.lines:
            self._remove_files()
        if len(self.lines) == len(self.files):
            return

        self._check_space()
        if self.lines:
            print_line(f"{len(self.lines):,} of {len(self.files):,} images are already decoded.")
        self._write_manifest()  # on a resume, this drops a last line that was cut off
        self._decode_remaining_files()
        self._report_decoded()

    def _load_progress(self) -> None:
        """Set `lines` and `unreadable` from an existing cache of the same files."""
        existing_manifest, lines = read_manifest(self.folder)
        if existing_manifest != self.manifest:
            return
        tried_files = self.files[: len(lines)]  # not all files, if the decoding was interrupted
        marked_unreadable = []
        for file, line in zip(tried_files, lines, strict=True):
            if line == UNREADABLE:
                marked_unreadable.append(file)

        # A file may have become readable with the same modification time, as after a chmod. Its
        # pixels would have to be inserted between others, so the cache starts from nothing.
        still_unreadable = self._find_unreadable(marked_unreadable)
        if len(still_unreadable) == len(marked_unreadable):
            self.lines = lines
            self.unreadable = still_unreadable

    def _find_unreadable(self, files: Sequence[Path]) -> dict[Path, str]:
        unreadable = {}
        with silence_pillow():
            for file in files:
                result = try_to_read(self.root / file, self.side, self.conversion)
                if isinstance(result, str):
                    unreadable[file] = result
        return unreadable

    def _remove_files(self) -> None:
        # A run that has mapped the old files can still read them after they are unlinked. It could
        # not if they were overwritten. The lock stays: it is on the folder, not on a file in it.
        for file in self.folder.iterdir():
            file.unlink()

    def _check_space(self) -> None:
        """Raise UserError unless the disk has room for the images that are still to decode."""
        remaining = len(self.files) - len(self.lines)
        needed = remaining * bytes_per_image(self.side)
        free = shutil.disk_usage(self.folder).free
        needed_gib = needed / 2**30
        free_gib = free / 2**30
        require(
            needed <= free,
            f"The decoded images take {needed_gib:.1f} GiB, but only {free_gib:.1f} GiB are free "
            f"in {printable(self.folder)}. Free some space, or pass another --cache-dir.",
        )

    def _write_manifest(self) -> None:
        all_lines = [json.dumps(self.manifest), *self.lines]
        write_text(self.folder / MANIFEST, "\n".join(all_lines) + "\n")

    def _decode_remaining_files(self) -> None:
        """Append the pixels and the manifest's lines of all files that were not tried yet."""
        remaining = self.files[len(self.lines) :]
        chunks = read_images(self.root, remaining, self.side, self.conversion)
        title = f"decoding images of {printable(self.root)}"
        pixel_path = self.folder / IMAGES
        manifest_path = self.folder / MANIFEST
        with open(pixel_path, "ab") as pixel_file, open(manifest_path, "a") as manifest_file:
            # An interrupted process may have written pixels without their lines in the manifest.
            recorded_images = len(self.lines) - len(self.unreadable)
            pixel_file.truncate(recorded_images * bytes_per_image(self.side))

            for chunk in track_progress(chunks, len(remaining), title):
                new_lines = []
                for file, result in chunk:
                    if isinstance(result, str):
                        self.unreadable[file] = result
                    else:
                        pixel_file.write(result.pixels.numpy().data)
                    new_lines.append(format_line(result))
                # The pixels reach the disk before the manifest records them, so that the manifest
                # is right whenever the process is killed or the power fails.
                _flush_to_disk(pixel_file)
                manifest_file.writelines(f"{line}\n" for line in new_lines)
                _flush_to_disk(manifest_file)
                self.lines += new_lines

    def _report_decoded(self) -> None:
        readable = len(self.files) - len(self.unreadable)
        size = f"{self.side} x {self.side} pixels"
        print_line(f"decoded {readable:,} images to {size}, in {printable(self.folder)}")


def _flush_to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
