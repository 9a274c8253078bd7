"""Sizes and modification times of many files, which show whether one has changed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simsiam.data.files.cache_index import FileState
from utils.console import show_progress

CHUNK_FILES = 1000  # that a thread looks at one after another
THREADS = 32  # they wait for the disk or the network most of the time
NO_FILE = FileState(-1, 0)  # such as a link to a missing file


def read_states(root: Path, files: Sequence[str]) -> list[FileState]:
    """Return size and modification time of files below `root`, in their order."""
    folder = str(root)

    def read_chunk(start: int) -> list[FileState]:
        states: list[FileState] = []
        for i in range(start, min(start + CHUNK_FILES, len(files))):
            try:
                status = os.stat(os.path.join(folder, files[i]))
                states.append(FileState(status.st_size, status.st_mtime_ns))
            except OSError:
                states.append(NO_FILE)
        return states

    all_states: list[FileState] = []
    with ThreadPoolExecutor(THREADS) as pool:
        chunks: Iterator[list[FileState]] = pool.map(read_chunk, range(0, len(files), CHUNK_FILES))
        shown: Iterable[list[FileState]] = chunks
        if len(files) > THREADS * CHUNK_FILES:
            shown = show_progress(chunks, len(files), "files looked at")
        for chunk in shown:
            all_states += chunk
    return all_states
