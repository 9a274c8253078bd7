"""What a data set consists of: images with labels, in memory, on a device or on disk."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simsiam.data.memmap_images import MemmapImages, Pixels
from utils.device import free_memory
from utils.errors import check

SMALL = 64  # pixels: up to here, images are stored as large as they are trained on, as CIFAR's are
ROOM = 0.5  # share of the free memory that images may take, if nothing else is said
COUNTED = 2**32  # bytes of images whose pixels are counted for mean and deviation: of more, images spread evenly


def stored_side(size: int) -> int:
    """Side of the images that are stored for views of this size: beyond 64 with a margin, as ImageNet's 256 for 224."""
    return size if size <= SMALL else round(size * 8 / 7)


def default_stem(size: int) -> str:
    return "cifar" if size <= SMALL else "imagenet"


@dataclass(frozen=True)
class ImageDataset:
    """One split: `images` (N, 3, C, C) uint8, `labels` (N,) int64 in 0 .. len(classes) - 1, or -1 where there is none.

    On disk, images are a `MemmapImages`, of which only slices and index tensors may be taken, as of a tensor.
    """

    images: Pixels
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """C."""
        return self.images.shape[-1]

    @property
    def labelled(self) -> bool:
        """Whether there is something to tell apart, for each image."""
        return len(self.classes) > 1 and not bool((self.labels < 0).any())

    def first(self, n: int | None) -> "ImageDataset":
        """The first n images, all if n is None."""
        images = self.images
        part = images.part(0, len(self) if n is None else n) if isinstance(images, MemmapImages) else images[:n]
        return ImageDataset(part, self.labels[:n], self.classes)

    def to(self, device: torch.device) -> "ImageDataset":
        return ImageDataset(self.images.to(device), self.labels.to(device), self.classes)

    def at(self, places: Tensor) -> Tensor:
        """The images at `places` (any shape, on any device): (*places.shape, 3, C, C), on the device of `places`."""
        found = self.images[places.flatten().to(self.images.device)]
        return found.to(places.device).unflatten(0, places.shape)

    def names(self, labels: list[int]) -> list[str]:
        """The class names of some of its labels, empty of what has none."""
        return [self.classes[label] if 0 <= label < len(self.classes) else "" for label in labels]


def without_images(like: ImageDataset) -> ImageDataset:
    """A split that is not there."""
    blank = torch.empty(0, 3, like.side, like.side, dtype=torch.uint8)
    return ImageDataset(blank, torch.empty(0, dtype=torch.long), like.classes)


def no_knn(train: ImageDataset, test: ImageDataset) -> str | None:
    """Why neighbours cannot be counted on these; None if they can."""
    if not train.labelled:
        return "one class only" if len(train.classes) == 1 else "no labels"
    if len(test) == 0:
        return "no test images"
    return None if test.labelled else "no labels of the test images"


def settle(
    splits: tuple[ImageDataset, ImageDataset], device: torch.device, memory: float | None, sharing: int = 1
) -> list[ImageDataset]:
    """Bring both splits onto the device if they fit into its memory; else images stay where they are.

    Args:
        memory: GiB that they may take; None for half of what is free.
        sharing: how many processes have such splits in that memory.
    """
    room = free_memory(device) * ROOM / sharing if memory is None else memory * 2**30
    if sum(images.images.nbytes for images in splits) > room:
        return [ImageDataset(images.images, images.labels.to(device), images.classes) for images in splits]
    return [_resident(images, device) for images in splits]


def _resident(images: ImageDataset, device: torch.device) -> ImageDataset:
    pixels = images.images
    whole = pixels.resident(device) if isinstance(pixels, MemmapImages) else pixels.to(device)
    return ImageDataset(whole, images.labels.to(device), images.classes)


def channel_statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, on the scale of 0 to 1, exact by counting.

    Of more than 4 GiB of images, those are counted that lie evenly spread over them.

    Args:
        images: (N, 3, C, C) uint8.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    counts = sum(
        torch.stack([chunk[:, c].flatten().bincount(minlength=256) for c in range(chunk.shape[1])])
        for chunk in _counted(images)
    )
    assert isinstance(counts, Tensor)
    share = counts.double() / counts.double().sum(dim=1, keepdim=True)  # (3, 256)
    mean = (share * level).sum(dim=1)
    std = ((share * (level - mean[:, None]) ** 2).sum(dim=1)).sqrt()
    check(bool((std > 0).all()), "these images have a channel of a single value: nothing can be learned from it")
    return tuple(mean.tolist()), tuple(std.tolist())


def _counted(images: Pixels) -> Iterator[Tensor]:
    row = 3 * images.shape[-1] ** 2
    step = max(1, 2**23 // row)  # a chunk of 8 MiB, of which counting makes eight times as much
    if images.nbytes <= COUNTED:
        yield from images.split(step)
        return
    n = COUNTED // row
    for places in (torch.arange(n) * len(images) // n).split(step):
        yield images[places]
