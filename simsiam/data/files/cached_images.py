"""Open the images of a cache as memory maps."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsiam.data.cache.table import MISSING, Index
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.whole_images import StoredImages
from utils.errors import require
from utils.text import printable


def open_cache(
    folder: Path, index: Index, lines: np.ndarray
) -> tuple[Tensor | LazyImages, StoredImages]:
    """Return the clean images (N, 3, S, S) and the whole images of some files.

    Args:
        folder: the folder of the cache.
        index: its content, from `read_index`.
        lines: (N,) int64, the line of each file, from `Index.find`.

    Raises:
        UserError: an image is not in the cache.
    """
    is_complete = bool((lines != MISSING).all()) and not index.lines["failed"][lines].any()
    header = index.header
    require(
        is_complete and header is not None,
        f"{printable(folder)} is no complete cache of images. Run the same command again.",
    )
    assert header is not None
    whole = StoredImages(
        pixels=_map_file(folder / header.whole_file, (index.whole_bytes,)),
        offsets=index.lines["offset"][lines],
        stored_sizes=index.lines["stored_size"][lines],
        original_sizes=index.lines["original_size"][lines],
    )

    shape = (index.clean_slots, 3, header.size, header.size)
    clean = _map_file(folder / header.clean_file, shape)
    slots = torch.from_numpy(index.lines["slot"][lines])
    first = int(slots[0]) if len(slots) > 0 else 0
    if torch.equal(slots, torch.arange(first, first + len(slots))):
        return clean[first : first + len(slots)], whole

    def read(indices: Sequence[int]) -> Tensor:
        return clean[torch.tensor(indices, dtype=torch.int64)]

    return LazyImages(read, slots, header.size, from_files=False), whole


def _map_file(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Map a file into memory, read-only. Pixels are read from the disk when they are indexed."""
    if 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=shape))
