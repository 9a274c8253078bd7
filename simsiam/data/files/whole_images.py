"""Cut crops out of whole images of any shape: out of stored pixels, or out of image files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simsiam.data.files.resizing import Box, cut_boxes
from simsiam.data.files.source_files import SourceFiles

# A JPEG may be decoded at a half, a quarter or an eighth of its size. It is, if even the smallest
# crop then has this many times the pixels of the view on each side.
MIN_DRAFT_RATIO = 4


class WholeImages(ABC):
    """N images of any shape, of which crops are cut."""

    cached: bool  # whether the pixels are stored, or files are decoded each time

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def read_sizes(self, indices: Tensor) -> Tensor:
        """Return height and width of some original images in pixels, (n, 2) int64."""

    @abstractmethod
    def cut(self, index: int, boxes: Sequence[Box], crops: Tensor) -> None:
        """Cut crops out of an image, resized as torchvision resizes them.

        Args:
            index: which image.
            boxes: V boxes in pixels of the original image.
            crops: (V, 3, S, S) uint8, which is overwritten.
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
    cached = True

    def __len__(self) -> int:
        return len(self.offsets)

    def read_sizes(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.original_sizes[indices.numpy()])

    def cut(self, index: int, boxes: Sequence[Box], crops: Tensor) -> None:
        offset = int(self.offsets[index])
        height, width = self.stored_sizes[index].tolist()
        image = self.pixels[offset : offset + height * width * 3].view(height, width, 3)
        cut_boxes(image, self.original_sizes[index].tolist(), boxes, crops)


@dataclass(frozen=True)
class ImageFiles(WholeImages):
    """Images that are decoded each time."""

    files: SourceFiles
    cached = False

    def __len__(self) -> int:
        return len(self.files)

    def read_sizes(self, indices: Tensor) -> Tensor:
        return torch.tensor([self.files.read_size(index) for index in indices.tolist()])

    def cut(self, index: int, boxes: Sequence[Box], crops: Tensor) -> None:
        smallest_side = min(min(box.height, box.width) for box in boxes)
        reduction = smallest_side / (MIN_DRAFT_RATIO * crops.shape[-1])
        # The boxes were drawn for this size. If the file turns out to be damaged, they take the
        # corresponding parts of the image that takes its place.
        original_size = self.files.read_size(index)
        cut_boxes(self.files.load(index, reduction), original_size, boxes, crops)
