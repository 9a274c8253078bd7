"""Cut crops out of whole images of any shape: out of stored pixels, or out of image files."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.images import load_rgb, read_size

# A JPEG may be decoded at a half, a quarter or an eighth of its size. It is, if even the smallest
# crop then has this many times the pixels of the view on each side.
MIN_DRAFT_RATIO = 2


class Box(NamedTuple):
    """A part of an image, in pixels of the original image."""

    top: int
    left: int
    height: int
    width: int


class WholeImages(ABC):
    """N images of any shape, of which crops are cut."""

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def read_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an original image in pixels."""

    @abstractmethod
    def cut(self, index: int, boxes: Sequence[Box], size: int) -> Tensor:
        """Return crops of an image, resized as torchvision resizes them.

        Args:
            index: which image.
            boxes: V boxes in pixels of the original image.
            size: S, the side of the results in pixels.

        Returns:
            (V, 3, S, S) uint8.
        """


@dataclass(frozen=True)
class StoredImages(WholeImages):
    """Images whose pixels are stored in one file, perhaps smaller than the originals.

    Attributes:
        pixels: all bytes of the file, uint8; the pixels (h, w, 3) of an image are contiguous.
        offsets: (N,) int64, where the pixels of each image begin.
        stored_sizes: (N, 2) int64, height and width of the stored images.
        original_sizes: (N, 2) int64, height and width of the original images.
    """

    pixels: Tensor
    offsets: np.ndarray
    stored_sizes: np.ndarray
    original_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def read_size(self, index: int) -> tuple[int, int]:
        height, width = self.original_sizes[index].tolist()
        return height, width

    def cut(self, index: int, boxes: Sequence[Box], size: int) -> Tensor:
        offset = int(self.offsets[index])
        height, width = self.stored_sizes[index].tolist()
        image = self.pixels[offset : offset + height * width * 3].view(height, width, 3)
        return _cut(image, self.read_size(index), boxes, size)


class ImageFiles(WholeImages):
    """Images that are decoded each time.

    Args:
        root: folder of the files.
        files: paths relative to `root`.
        conversion: how pixels become RGB of 8 bits.
    """

    def __init__(
        self, root: Path, files: Sequence[str], conversion: PixelConversion = PixelConversion()
    ) -> None:
        self.root = root
        self.files = files
        self.conversion = conversion
        # Height and width of each image, or 0 if its file was not opened yet.
        self._known_sizes = np.zeros((len(files), 2), np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def read_size(self, index: int) -> tuple[int, int]:
        height, width = self._known_sizes[index].tolist()
        if height == 0:
            height, width = read_size(self.root / self.files[index])
            self._known_sizes[index] = height, width
        return height, width

    def cut(self, index: int, boxes: Sequence[Box], size: int) -> Tensor:
        smallest_side = min(min(box.height, box.width) for box in boxes)
        reduction = smallest_side / (MIN_DRAFT_RATIO * size)
        with open(self.root / self.files[index], "rb") as file:
            image, _, original_size = load_rgb(file, self.conversion, reduction)
        pixels = torch.from_numpy(np.asarray(image).copy())  # (h, w, 3)
        return _cut(pixels, original_size, boxes, size)


def _cut(image: Tensor, original_size: tuple[int, int], boxes: Sequence[Box], size: int) -> Tensor:
    """Return crops (V, 3, S, S) of an image (h, w, 3) that may be smaller than the original.

    torch resizes uint8 images bilinearly and with antialiasing, as Pillow does, in a third of the
    time.
    """
    crops = torch.empty(len(boxes), 3, size, size, dtype=torch.uint8)
    for crop, box in zip(crops, boxes, strict=True):
        rows = _scale(box.top, box.height, original_size[0], image.shape[0])
        columns = _scale(box.left, box.width, original_size[1], image.shape[1])
        region = image[rows, columns].permute(2, 0, 1)[None]
        crop.copy_(interpolate(region, (size, size), mode="bilinear", antialias=True)[0])
    return crops


def _scale(start: int, length: int, original_side: int, side: int) -> slice:
    """Return the pixels of a side that a part of the original side covers, at least one."""
    ratio = side / original_side
    first = min(round(start * ratio), side - 1)
    end = max(first + 1, min(side, round((start + length) * ratio)))
    return slice(first, end)


def choose_stored_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return height and width of an image whose shorter side is at most `shorter_side`."""
    ratio = min(1.0, shorter_side / min(height, width))
    return max(1, math.floor(height * ratio + 0.5)), max(1, math.floor(width * ratio + 0.5))
