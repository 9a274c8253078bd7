"""Clean images, without augmentation, of one size: for kNN, linear classifiers and embeddings."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.crop_loader import count_threads, start_threads
from simsiam.data.files.images import load_rgb

CLEAN_MARGIN = 8 / 7  # torchvision's usual evaluation resizes to 256 pixels and crops 224


def resize_clean(image: Tensor, size: int) -> Tensor:
    """Return the central square of an image as torchvision's usual evaluation takes it.

    The shorter side is resized to 8/7 of the square's side, and the square is cut from the middle.

    Args:
        image: (h, w, 3) uint8.
        size: S, the side of the square in pixels.

    Returns:
        (3, S, S) uint8.
    """
    height, width = image.shape[:2]
    shorter_side = round(size * CLEAN_MARGIN)
    # torchvision's Resize rounds the longer side down.
    if height <= width:
        new_height = shorter_side
        new_width = shorter_side * width // height
    else:
        new_height = shorter_side * height // width
        new_width = shorter_side
    channels_first = image.permute(2, 0, 1)[None]
    resized = interpolate(channels_first, (new_height, new_width), mode="bilinear", antialias=True)
    top = round((new_height - size) / 2)
    left = round((new_width - size) / 2)
    return resized[0, :, top : top + size, left : left + size].contiguous()


class LazyImages:
    """N images of one size that are read when they are needed.

    It has the operations of a tensor (N, 3, S, S) uint8 that the program uses.

    Args:
        read: returns the images (n, 3, S, S) at some indices.
        indices: (N,) int64, what `read` is called with.
        size: S.
    """

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(self, read: Callable[[Sequence[int]], Tensor], indices: Tensor, size: int) -> None:
        self._read = read
        self._indices = indices
        self.shape = torch.Size((len(indices), 3, size, size))

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def nbytes(self) -> int:
        """The memory that all images would take."""
        return self.shape.numel()

    def __getitem__(self, part: slice | Tensor) -> "LazyImages":
        return LazyImages(self._read, self._indices[part], self.shape[-1])

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Read the images at some indices (n,); `dim` must be 0."""
        assert dim == 0
        return self._read(self._indices[indices].tolist())

    def split(self, n: int) -> Iterator[Tensor]:
        """Read all images in chunks of n."""
        for indices in self._indices.split(n):
            yield self._read(indices.tolist())


class CleanFiles:
    """Reads image files as clean images, in threads.

    Args:
        root: folder of the files.
        files: paths relative to `root`.
        size: S.
        conversion: how pixels become RGB of 8 bits.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        size: int,
        conversion: PixelConversion = PixelConversion(),
    ) -> None:
        self.root = root
        self.files = files
        self.size = size
        self.conversion = conversion
        self._pool: ThreadPoolExecutor | None = None

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return clean images (n, 3, S, S)."""
        if self._pool is None:
            self._pool = start_threads(count_threads())
        return torch.stack(list(self._pool.map(self._read_one, indices)))

    def _read_one(self, index: int) -> Tensor:
        with open(self.root / self.files[index], "rb") as file:
            image = load_rgb(file, self.conversion).image
        return resize_clean(torch.from_numpy(np.asarray(image).copy()), self.size)
