"""Keep what the index of a cache says about many millions of files in little memory (`Index`)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from simsiam.data.cache.entries import Entry, FileState, Header
from simsiam.data.file_paths import CHUNK_PATHS, FilePaths, PathsBuilder
from simsiam.data.files.notes_table import (
    NOTES,
    BandTexts,
    NotesTable,
    pack_notes,
    unpack_notes,
)

DIGEST_BYTES = 32  # of a SHA-256
# The fields of `Entry`, except for the reason why a file cannot be read: few files have one.
LINE = np.dtype(
    [
        ("size", np.int64),
        ("mtime", np.int64),
        ("digest", f"V{DIGEST_BYTES}"),
        ("original_size", np.int32, 2),
        ("stored_size", np.int32, 2),
        ("offset", np.int64),
        ("slot", np.int64),
        ("failed", np.bool_),
        ("notes", NOTES),
    ]
)
MISSING = -1  # in place of a line, for a file about which there is none


class Index:
    """The lines of an index, without an object for each of them.

    Attributes:
        header: the first line, or None for an empty index.
        paths: the path of each further line. Of several lines about a path, the last one is valid.
        lines: (N,) LINE, what the lines say.
        failures: why the file of a line cannot be read, for the lines that have `failed` set.
        bands: the texts to which the notes of the lines refer.
        is_cut_off: whether the last line is incomplete, or pixels are missing.
        whole_bytes, clean_slots: how much of the two other files the lines name.
    """

    def __init__(self, header: Header | None = None) -> None:
        self.header = header
        self.paths = FilePaths()
        self.lines = np.zeros(0, LINE)
        self.failures: dict[int, str] = {}
        self.bands: tuple[str, ...] = ("",)
        self.is_cut_off = False
        self.whole_bytes = 0
        self.clean_slots = 0

    def __len__(self) -> int:
        return len(self.lines)

    def find(self, files: FilePaths) -> np.ndarray:
        """Return the valid line (n,) int64 of each file, or MISSING."""
        found = np.full(len(files), MISSING, np.int64)
        if len(self) == 0:
            return found
        keys = np.concatenate([_hash_paths(chunk) for chunk in self.paths.chunks()])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for start, chunk in zip(range(0, len(files), CHUNK_PATHS), files.chunks(), strict=True):
            # Of the lines with the same key, the last one. It is nearly always one of the file.
            positions = np.searchsorted(keys, _hash_paths(chunk), side="right") - 1
            lines = order[positions]
            paths = self.paths.subset(torch.from_numpy(lines))
            for i, (file, path) in enumerate(zip(chunk, paths, strict=True)):
                if file != path:
                    lines[i] = self._search(file, keys, order, int(positions[i]))
            found[start : start + len(chunk)] = lines
        return found

    def _search(self, file: str, keys: np.ndarray, order: np.ndarray, last: int) -> int:
        """Return the last line of a file, or MISSING, among lines with the same key.

        Args:
            keys, order: the sorted keys, and the line of each.
            last: the last position with a key that is at most that of the file.
        """
        for position in range(last, -1, -1):
            if keys[position] != keys[last]:
                break
            line = int(order[position])
            if self.paths[line] == file:
                return line
        return MISSING

    def valid_lines(self) -> np.ndarray:
        """Return the lines (n,) int64 that no later line about the same file replaces."""
        return np.flatnonzero(self.find(self.paths) == np.arange(len(self)))

    def notes(self, lines: np.ndarray) -> NotesTable:
        """Return the notes about the files of some lines."""
        return NotesTable(self.lines["notes"][lines], self.bands)

    def entries(self, lines: np.ndarray) -> Iterator[tuple[str, Entry]]:
        """Yield path and entry of some lines (n,) int64."""
        for start in range(0, len(lines), CHUNK_PATHS):
            chunk = lines[start : start + CHUNK_PATHS]
            paths = self.paths.subset(torch.from_numpy(chunk))
            for path, line, values in zip(
                paths, chunk.tolist(), self.lines[chunk].tolist(), strict=True
            ):
                yield path, self._unpack(line, values)

    def _unpack(self, line: int, values: tuple) -> Entry:
        size, mtime, digest, original_size, stored_size, offset, slot, failed, notes = values
        if failed:
            return Entry(FileState(size, mtime), failure=self.failures[line])
        return Entry(
            state=FileState(size, mtime),
            digest=digest.hex(),
            original_size=tuple(original_size.tolist()),
            stored_size=tuple(stored_size.tolist()),
            offset=offset,
            slot=slot,
            notes=unpack_notes(notes, self.bands),
        )


class IndexBuilder:
    """Collects the lines of an `Index`.

    Args:
        index: whose lines come first.

    Attributes:
        bands: the texts to which the notes of the lines refer.
        whole_bytes, clean_slots: how much of the two other files the lines name.
    """

    def __init__(self, index: Index) -> None:
        self._header = index.header
        self._is_cut_off = index.is_cut_off
        self._paths = PathsBuilder()
        self._paths.extend(index.paths)
        self._num_lines = len(index)
        self._lines = index.lines.copy()  # and space for more
        self._failures = dict(index.failures)
        self.bands = BandTexts(index.bands)
        self.whole_bytes = index.whole_bytes
        self.clean_slots = index.clean_slots

    def add(self, entries: Sequence[tuple[str, Entry]]) -> None:
        """Append a line for each of some entries."""
        failures: dict[int, str] = {}
        for i, (_, entry) in enumerate(entries):
            if entry.failure:
                failures[i] = entry.failure
        lines = np.array([self._pack(entry) for _, entry in entries], LINE)
        self.add_lines([path for path, _ in entries], lines, failures)

    def add_lines(self, paths: Sequence[str], lines: np.ndarray, failures: dict[int, str]) -> None:
        """Append lines.

        Args:
            paths: n paths.
            lines: (n,) LINE, whose notes refer to the texts of `bands`.
            failures: why a file cannot be read, by its index in `paths`.

        Raises:
            ValueError: a path has the character NUL.
            TypeError: a path is no text.
        """
        if len(lines) == 0:
            return
        self._paths.add(paths)
        for i, failure in failures.items():
            self._failures[self._num_lines + i] = failure
        readable = lines[~lines["failed"]]
        if len(readable) > 0:
            ends = readable["offset"] + count_bytes(readable)
            self.whole_bytes = max(self.whole_bytes, int(ends.max()))
            self.clean_slots = max(self.clean_slots, int(readable["slot"].max()) + 1)
        stop = self._num_lines + len(lines)
        if stop > len(self._lines):
            # Little space is left over, and `resize` moves large arrays without a copy.
            self._lines.resize(max(stop, len(self._lines) * 9 // 8), refcheck=False)
        self._lines[self._num_lines : stop] = lines
        self._num_lines = stop

    def _pack(self, entry: Entry) -> tuple:
        """Return the values of a LINE."""
        return (
            *entry.state,
            bytes.fromhex(entry.digest),
            entry.original_size,
            entry.stored_size,
            entry.offset,
            entry.slot,
            bool(entry.failure),
            pack_notes(entry.notes, self.bands),
        )

    def build(self) -> Index:
        """Return the index. The builder cannot be used any more."""
        self._lines.resize(self._num_lines, refcheck=False)
        index = Index(self._header)
        index.paths = self._paths.build()
        index.lines = self._lines
        index.failures = self._failures
        index.bands = self.bands.as_tuple()
        index.is_cut_off = self._is_cut_off
        index.whole_bytes = self.whole_bytes
        index.clean_slots = self.clean_slots
        return index


def count_bytes(lines: np.ndarray) -> np.ndarray:
    """Return the bytes (n,) int64 of the whole image of each line."""
    return 3 * lines["stored_size"].astype(np.int64).prod(axis=1)


def _hash_paths(paths: Sequence[str]) -> np.ndarray:
    """Return a number (n,) int64 for each path, which hardly ever is that of another path."""
    return np.fromiter(map(hash, paths), np.int64, len(paths))
