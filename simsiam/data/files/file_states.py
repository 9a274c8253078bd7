"""Sizes and modification times of many files, which show whether one has changed."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from simsiam.data.cache.entries import FileState, wrap_time
from utils.console import show_progress

CHUNK_FILES = 1000  # that a thread looks at one after another
THREADS = 32  # they wait for the disk or the network most of the time
NO_FILE = FileState(-1, 0)  # such as a link to a missing file
STATE = np.dtype([("size", np.int64), ("mtime", np.int64)])  # the fields of a `FileState`


def read_states(root: Path, files: Sequence[str]) -> np.ndarray:
    """Return size and modification time of files below `root`, in their order: (N,) STATE."""
    folder = str(root)
    states = np.empty(len(files), STATE)

    def read_chunk(start: int) -> range:
        """Fill in the states of a chunk of files. Return their indices."""
        chunk = files[start : start + CHUNK_FILES]
        for i, file in enumerate(chunk, start=start):
            try:
                status = os.stat(os.path.join(folder, file))
                states[i] = (status.st_size, wrap_time(status.st_mtime_ns))
            except OSError:
                states[i] = NO_FILE
        return range(start, start + len(chunk))

    starts = range(0, len(files), CHUNK_FILES)
    with ThreadPoolExecutor(THREADS) as pool:
        chunks: Iterable[range] = pool.map(read_chunk, starts)
        if len(files) > THREADS * CHUNK_FILES:
            chunks = show_progress(chunks, len(files), "files looked at")
        for _ in chunks:
            pass  # `map` raises an error of a thread when its result is taken.
    return states
