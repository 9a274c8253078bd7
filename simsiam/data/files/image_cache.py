"""Decode image files once, into a cache folder that later runs map into memory.

`simsiam.data.cache.entries` describes the files in a cache folder. Interrupted decoding
resumes. A file that changes is decoded again, and the others stay.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from simsiam.config.value_types import PixelConversion
from simsiam.data.cache.entries import INDEX, Entry, FileState, Header, format_line
from simsiam.data.cache.index import read_index, write_index
from simsiam.data.cache.table import MISSING, Index, IndexBuilder, count_bytes
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.file_states import read_states
from simsiam.data.files.reading import DecodedImage, ReadResult, read_images
from utils.console import print_line, show_progress
from utils.errors import UserError, require
from utils.filesystem import lock_folder
from utils.text import printable

MIN_GARBAGE_BYTES = 2**20  # a smaller cache is not written again to save space


def decode_images(
    folder: Path,
    root: Path,
    files: FilePaths,
    size: int,
    stored_side: int,
    conversion: PixelConversion = PixelConversion(),
    source: str = "",
    bytes_per_image: float = 0.0,
) -> Index:
    """Decode image files into a cache folder, unless it already holds them.

    If another process is decoding into the same folder, wait for it.

    Args:
        folder: the cache folder. It is created if it does not exist.
        root: folder of the image files.
        files: paths relative to `root`.
        size: S, the side of the clean images in pixels.
        stored_side: largest shorter side of the whole images in pixels.
        conversion: how pixels become RGB of 8 bits.
        source: what `python main.py cache` calls the data set.
        bytes_per_image: how much space an image is expected to take.

    Returns:
        The index, which has a line for each file.

    Raises:
        UserError: if the disk is full or the cache folder cannot be written.
    """
    waiting = f"Waiting for another process, which is decoding the images of {printable(root)}."
    header = Header(source or str(root), size, stored_side, json.loads(json.dumps(conversion)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, waiting, wait=True):
            writer = _CacheWriter(folder, root, files, header, conversion, bytes_per_image)
            writer.update()
            return writer.index
    except OSError as error:
        where = printable(os.fsdecode(error.filename or folder))
        advice = "Fix the cause, pass another --cache-dir, or pass --image-cache off."
        raise UserError(f"{where}: {error.strerror}. {advice}") from None


class _CacheWriter:
    """Decodes image files into a cache folder, whose lock the caller holds."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        files: FilePaths,
        header: Header,
        conversion: PixelConversion,
        bytes_per_image: float,
    ) -> None:
        self.folder = folder
        self.root = root
        self.files = files
        self.header = header
        self.conversion = conversion
        self.bytes_per_image = bytes_per_image
        self.index = Index()

    def update(self) -> None:
        """Keep what is still valid, and decode the rest."""
        self._load_index()
        states = read_states(self.root, self.files)
        outdated = self._find_outdated(states)
        if len(outdated) == 0:
            return

        num_valid = len(self.files) - len(outdated)
        self._check_space(len(outdated))
        self._prepare_files()
        if num_valid > 0:
            print_line(f"{num_valid:,} of {len(self.files):,} images are already decoded.")
        self._decode(self.files.subset(torch.from_numpy(outdated)), states[outdated])
        self._remove_garbage()
        failed = self.index.lines["failed"][self.index.find(self.files)]
        num_readable = len(self.files) - int(failed.sum())
        print_line(f"decoded {num_readable:,} images, in {printable(self.folder)}")

    def _find_outdated(self, states: np.ndarray) -> np.ndarray:
        """Return the indices (n,) int64 of the files that have to be decoded.

        Args:
            states: (N,) STATE, those of all files now.
        """
        found = self.index.find(self.files)
        in_index = np.flatnonzero(found != MISSING)
        is_current = np.zeros(len(self.files), np.bool_)
        lines = found[in_index]
        same_size = self.index.lines["size"][lines] == states["size"][in_index]
        same_time = self.index.lines["mtime"][lines] == states["mtime"][in_index]
        # A file may become readable without a change of its state, as after a chmod.
        is_readable = ~self.index.lines["failed"][lines]
        is_current[in_index] = same_size & same_time & is_readable
        return np.flatnonzero(~is_current)

    def _load_index(self) -> None:
        """Read the index, or begin an empty one."""
        existing = read_index(self.folder)
        if existing.header is not None:
            self.header.number = existing.header.number
            self.header.source = existing.header.source
        self.index = existing if existing.header == self.header else Index()

    def _prepare_files(self) -> None:
        """Make the files of a new cache, or drop lines of the index that are not valid."""
        if self.index.header is None:
            # Processes that have mapped the old files can still read them after they are unlinked.
            for file in self.folder.iterdir():
                if file.suffix in (".uint8", ".jsonl"):
                    file.unlink()
            self.index = Index(self.header)
            for name in (self.header.whole_file, self.header.clean_file):
                (self.folder / name).touch()
            write_index(self.folder, self.index)
        elif self.index.is_cut_off:
            write_index(self.folder, self.index)

    def _check_space(self, num_images: int) -> None:
        """Raise UserError unless the disk has room for some more images, as far as is known."""
        needed = num_images * max(self.bytes_per_image, self.header.clean_bytes)
        free = shutil.disk_usage(self.folder).free
        require(
            needed <= free,
            f"The decoded images take {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB "
            f"are free in {printable(self.folder)}. Free some space, pass another --cache-dir, or "
            "pass --image-cache off.",
        )

    def _decode(self, files: FilePaths, states: np.ndarray) -> None:
        """Append the pixels of some files, and their lines in the index.

        Args:
            states: (n,) STATE, those of these files.
        """
        header = self.header
        chunks = read_images(self.root, files, header.size, self.conversion, header.stored_side)
        title = f"decoding images of {printable(self.root)}"
        builder = IndexBuilder(self.index)
        self.index = Index(header)  # Free the memory of the old one.
        position = 0
        with (
            open(self.folder / header.whole_file, "r+b") as whole_file,
            open(self.folder / header.clean_file, "r+b") as clean_file,
            open(self.folder / INDEX, "a") as index_file,
        ):
            # An interrupted process may have written pixels without their lines in the index.
            _seek_to_end(whole_file, builder.whole_bytes)
            _seek_to_end(clean_file, builder.clean_slots * header.clean_bytes)
            for chunk in show_progress(chunks, len(files), title):
                new_entries: list[tuple[str, Entry]] = []
                for file, result in chunk:
                    state = FileState(*states[position].tolist())
                    position += 1
                    entry = _write_pixels(result, state, whole_file, clean_file, header)
                    new_entries.append((file, entry))
                builder.add(new_entries)
                # The pixels reach the disk before the index names them, so that the index is right
                # whenever the process is killed or the power fails.
                _flush_to_disk(whole_file)
                _flush_to_disk(clean_file)
                index_file.writelines(format_line(file, entry) for file, entry in new_entries)
                _flush_to_disk(index_file)
        self.index = builder.build()

    # ---------------------------------------------------------------- space that is not used

    def _remove_garbage(self) -> None:
        """Write the pixels again if more than half of them belong to files that are gone."""
        if self.index.whole_bytes < MIN_GARBAGE_BYTES:
            return
        used = self._find_used_lines()
        used_bytes = int(count_bytes(self.index.lines[used]).sum())
        if used_bytes * 2 >= self.index.whole_bytes:
            return

        unused_gib = (self.index.whole_bytes - used_bytes) / 2**30
        print_line(f"removing {unused_gib:.2f} GiB of files that have changed or are gone")
        old = self.header
        self.header = replace(old, number=old.number + 1)
        try:
            index = self._copy_pixels(used, old)
            write_index(self.folder, index)  # from here on the new files are valid
        except OSError as error:  # such as a full disk
            self._remove_files(self.header)
            self.header = old
            where = printable(self.folder)
            print_line(f"warning: {where} keeps the unused space ({error.strerror})")
            return
        self.index = index
        self._remove_files(old)

    def _copy_pixels(self, used: np.ndarray, old: Header) -> Index:
        """Copy the pixels of these lines from the old files to new ones. Return their index."""
        compact = IndexBuilder(Index(self.header))
        with (
            open(self.folder / old.whole_file, "rb") as whole,
            open(self.folder / old.clean_file, "rb") as clean,
            open(self.folder / self.header.whole_file, "wb") as new_whole,
            open(self.folder / self.header.clean_file, "wb") as new_clean,
        ):
            for path, entry in self.index.entries(used):
                if not entry.failure:
                    whole.seek(entry.offset)
                    new_whole.write(whole.read(entry.whole_bytes))
                    clean.seek(entry.slot * old.clean_bytes)
                    new_clean.write(clean.read(old.clean_bytes))
                    entry = entry._replace(offset=compact.whole_bytes, slot=compact.clean_slots)
                compact.add([(path, entry)])
            _flush_to_disk(new_whole)
            _flush_to_disk(new_clean)
        return compact.build()

    def _remove_files(self, header: Header) -> None:
        for name in (header.whole_file, header.clean_file):
            (self.folder / name).unlink(missing_ok=True)

    def _find_used_lines(self) -> np.ndarray:
        """Return the valid lines (n,) int64 about files of this run, or that exist."""
        is_used = np.zeros(len(self.index), np.bool_)
        is_used[self.index.find(self.files)] = True
        valid = self.index.valid_lines()
        others = valid[~is_used[valid]]
        paths = self.index.paths.subset(torch.from_numpy(others))
        for line, path in zip(others.tolist(), paths, strict=True):
            is_used[line] = os.path.exists(self.root / path)
        return np.flatnonzero(is_used)


def _write_pixels(
    result: ReadResult,
    state: FileState,
    whole_file: IO[bytes],
    clean_file: IO[bytes],
    header: Header,
) -> Entry:
    """Append the pixels of an image to both files, and return its entry."""
    if not isinstance(result, DecodedImage):
        return Entry(state, failure=result)
    assert result.whole is not None
    height, width, _ = result.whole.shape
    entry = Entry(
        state=state,
        digest=result.digest,
        original_size=result.original_size,
        stored_size=(height, width),
        offset=whole_file.tell(),
        slot=clean_file.tell() // header.clean_bytes,
        notes=result.notes,
    )
    whole_file.write(result.whole.contiguous().numpy().data)
    clean_file.write(result.pixels.numpy().data)
    return entry


def _seek_to_end(file: IO[bytes], size: int) -> None:
    """Cut a file off after `size` bytes, and write from there on."""
    file.truncate(size)
    file.seek(size)


def _flush_to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
