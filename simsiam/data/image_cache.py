"""Images decoded once: a file of pixels in a cache folder, with an index of what they were decoded from.

`images-*.u8` holds (N, 3, C, C) uint8, one image after another. `index.jsonl` says what they are: a line of facts, then
a line for each block of images with their files (path, size, time of change, SHA-256, and why an image could not be
read) and the checksum of their pixels, then a closing line. While it is being made it is called `building.jsonl` and
grows by a line with each block, so that a kill loses no more than one.
"""

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from simsiam.data.images import read_image, try_to_read
from simsiam.data.memmap_images import MemmapImages
from utils.console import print_line, track_progress
from utils.errors import UserError, check
from utils.filesystem import check_writable, lock_folder, sync_folder

BLOCK, HELD = 256, 2**24  # images decoded, written and noted at once: at most so many, or so many bytes
WHOLE = 2**32  # bytes of pixels up to which all checksums are looked at, each time; of more, if the file was touched


class Source(NamedTuple):
    """An image file, as it was when it was decoded."""

    path: str
    size: int  # bytes; -1 where it cannot be looked at
    changed: int  # nanoseconds
    sha256: str | None = None
    why: str | None = None  # it could not be read


class Block(NamedTuple):
    """Some images, one after another."""

    crc32: int  # of their pixels
    sources: list[Source]

    @property
    def rows(self) -> int:
        """How many of them are there: those that could be read."""
        return sum(source.why is None for source in self.sources)


class Index(NamedTuple):
    """What an index file says."""

    facts: dict[str, Any]  # `side`, `pixels` (the name of the other file), `about` (whatever the caller noted)
    blocks: list[Block]
    touched: int | None  # when the pixels were written; None of an index that is not finished

    @property
    def sources(self) -> list[Source]:
        return [source for block in self.blocks for source in block.sources]


class Cache(NamedTuple):
    """An open cache."""

    images: MemmapImages
    about: dict[str, Any]
    good: list[int]  # which of the files that were asked for the images are
    bad: list[str]  # "FILE (WHY)" of the others
    digest: str  # of the names and the contents of all files


# ---------------------------------------------------------------- reading


def open_cache(folder: Path) -> Cache:
    """What `decode` has left in a folder.

    Raises:
        UserError: nothing whole is there.
    """
    index = _read_index(folder / "index.jsonl")
    if index is None or index.touched is None:
        raise UserError(f"{folder}: no whole cache of images: run this again")
    sources = index.sources
    good = [i for i, source in enumerate(sources) if source.why is None]
    digest = hashlib.sha256(
        "\n".join(f"{sources[i].path} {sources[i].sha256}" for i in good).encode(errors="surrogateescape")
    )
    images = MemmapImages(folder / index.facts["pixels"], index.facts["side"], len(good))
    bad = [f"{source.path} ({source.why})" for source in sources if source.why is not None]
    return Cache(images, index.facts["about"], good, bad, digest.hexdigest()[:16])


def _read_index(file: Path) -> Index | None:
    """None where there is none, or its first line is not ours. What follows a damaged line does not count."""
    facts, blocks, touched = None, [], None
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                content = json.loads(line)
                if facts is None:
                    facts = {name: content[name] for name in ("side", "pixels", "about")}
                elif "finished" in content:
                    touched = int(content["finished"])
                else:
                    blocks.append(Block(content["crc32"], [Source(*source) for source in content["sources"]]))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None if facts is None else Index(facts, blocks, touched)


def _sound(folder: Path, index: Index) -> list[bool]:
    """Of each block, whether its pixels are there as they were written."""
    file, row = folder / index.facts["pixels"], 3 * index.facts["side"] ** 2
    try:
        state = file.stat()
    except OSError:
        return [False] * len(index.blocks)
    expected = row * sum(block.rows for block in index.blocks)
    if index.touched == state.st_mtime_ns and expected == state.st_size > WHOLE:
        return [True] * len(index.blocks)
    with open(file, "rb") as pixels:
        return [zlib.crc32(pixels.read(block.rows * row)) == block.crc32 for block in index.blocks]


# ---------------------------------------------------------------- making


def decode(folder: Path, source: Path, files: list[Path], side: int, about: dict[str, Any]) -> None:
    """Make `folder` the cache of these files of the folder `source`, unless it is: their central square, (3, C, C).

    What an earlier call has decoded is taken over where its files have not changed. A second process waits.

    Args:
        side: C.
        about: plain values to be kept with the images.

    Raises:
        UserError: no room, or no right to write.
    """
    check_writable(folder, "--cache-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"another process is decoding the images of {source}: waiting for it", wait=True):
            _Making(folder, source, files, side, about).make()
    except OSError as error:
        where = os.fsdecode(error.filename or folder)
        raise UserError(f"{where}: {error.strerror}: mend that, or give another --cache-dir") from None


class _Making:
    """The making of one cache, by the one process that has its lock; arguments as of `decode`."""

    def __init__(self, folder: Path, source: Path, files: list[Path], side: int, about: dict[str, Any]) -> None:
        self.folder, self.source, self.side, self.about = folder, source, side, about
        self.row = 3 * side**2
        self.sources = [self._look(str(file)) for file in files]
        self.index, self.journal = folder / "index.jsonl", folder / "building.jsonl"
        self.known: dict[str, tuple[Source, int]] = {}  # path -> what a former cache has of it, and in which row
        self.former: MemmapImages | None = None

    def _look(self, path: str) -> Source:
        try:
            state = os.stat(self.source / path)
        except OSError:
            return Source(path, -1, 0)
        return Source(path, state.st_size, state.st_mtime_ns)

    def make(self) -> None:
        if self._is_there():
            return
        done, self.pixels = self._begun()
        rows = sum(block.rows for block in done)
        need = (len(self.sources) - sum(len(block.sources) for block in done)) * self.row
        free = shutil.disk_usage(self.folder).free
        check(
            need <= free,
            f"{self.folder}: the decoded images take {need / 2**30:.1f} GiB more, and {free / 2**30:.1f} are free: "
            "make room, or give another --cache-dir",
        )
        with open(self.pixels, "ab") as pixels:
            pixels.truncate(rows * self.row)  # what was written, but not noted
            self._note_all(done)
            with open(self.journal, "ab") as journal:
                for block in self._blocks(sum(len(block.sources) for block in done), pixels):
                    journal.write(_line(crc32=block.crc32, sources=block.sources))
                    journal.flush()
                pixels.flush()
                os.fsync(pixels.fileno())
                journal.write(_line(finished=os.stat(pixels.fileno()).st_mtime_ns))
                journal.flush()
                os.fsync(journal.fileno())
        os.replace(self.journal, self.index)
        sync_folder(self.folder)
        for old in set(self.folder.glob("images-*.u8")) - {self.pixels}:
            old.unlink()
        print_line(f"decoded {len(self.sources):,} images to {self.side} x {self.side} pixels, in {self.folder}")

    def _is_there(self) -> bool:
        """Whether the cache is whole, and of these files as they are now; else `known` is what can be used of it."""
        index = _read_index(self.index)
        if index is None or index.facts["side"] != self.side:
            return False
        sound = _sound(self.folder, index)
        if not all(sound) or index.touched is None:
            print_line(f"{self.folder} is damaged: the images concerned are decoded again")
        row = 0
        for block, whole in zip(index.blocks, sound, strict=True):
            for source in block.sources:
                if source.why is None:
                    if whole:
                        self.known[source.path] = (source, row)
                    row += 1
        if self.known:
            self.former = MemmapImages(self.folder / index.facts["pixels"], self.side, row)
        same = [source[:3] for source in index.sources] == [source[:3] for source in self.sources]
        whole = all(sound) and index.touched is not None and index.facts["about"] == self.about
        return same and whole and not any(self._mended(source) for source in index.sources)

    def _mended(self, source: Source) -> bool:
        """Whether a file that could not be read can be now: a right to read it changes no time."""
        return source.why is not None and not isinstance(self._read(source), str)

    def _begun(self) -> tuple[list[Block], Path]:
        """The blocks to go on after, of a making that was cut short, and the file of their pixels."""
        index = _read_index(self.journal)
        if index is not None and index.facts["side"] == self.side and index.facts["about"] == self.about:
            done, place = [], 0
            for block, whole in zip(index.blocks, _sound(self.folder, index), strict=True):
                now = self.sources[place : place + len(block.sources)]
                if not whole or [source[:3] for source in block.sources] != [source[:3] for source in now]:
                    break
                done.append(block)
                place += len(block.sources)
            if done:
                print_line(f"{place:,} of {len(self.sources):,} images are decoded already")
                return done, self.folder / index.facts["pixels"]
        return [], self.folder / f"images-{secrets.token_hex(4)}.u8"

    def _note_all(self, done: list[Block]) -> None:
        """Begin the journal anew with the blocks that count."""
        partial = self.journal.with_suffix(".partial")
        with open(partial, "wb") as journal:
            journal.write(_line(side=self.side, pixels=self.pixels.name, source=str(self.source), about=self.about))
            journal.writelines(_line(crc32=block.crc32, sources=block.sources) for block in done)
        os.replace(partial, self.journal)

    def _blocks(self, start: int, pixels: Any) -> Iterator[Block]:
        """Decode and write what is left, block by block."""
        size = max(1, min(BLOCK, HELD // self.row))
        rest = [self.sources[i : i + size] for i in range(start, len(self.sources), size)]
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes without the GIL
            for sources in track_progress(rest, len(self.sources) - start, f"decoding images of {self.source}"):
                read = list(pool.map(self._read, sources))
                images = [one[1].numpy() for one in read if not isinstance(one, str)]
                content = np.stack(images).data if images else b""
                pixels.write(content)
                pixels.flush()
                noted = [
                    source._replace(why=one) if isinstance(one, str) else source._replace(sha256=one[0])
                    for source, one in zip(sources, read, strict=True)
                ]
                yield Block(zlib.crc32(content), noted)

    def _read(self, source: Source) -> tuple[str, Tensor] | str:
        """SHA-256 and pixels of a file, or why not."""
        return try_to_read(self.source / source.path, self.side, lambda path, side: self._take(source, path, side))

    def _take(self, source: Source, path: Path, side: int) -> tuple[str, Tensor]:
        """From the former cache what has not changed in size and time, or else in content; decode the rest."""
        old, row = self.known.get(source.path, (None, 0))
        if old is not None and self.former is not None and old.sha256 and old[:3] == source[:3]:
            return old.sha256, self.former[row : row + 1][0]
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if old is not None and self.former is not None and old.sha256 == sha256:
                return sha256, self.former[row : row + 1][0]
            file.seek(0)
            return sha256, read_image(file, side)


def _line(**content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode(errors="surrogateescape")
