"""One split of a data set (`ImageDataset`), and what all data sets have in common."""

import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from simsiam.config.augment_options import Normalize
from simsiam.config.options import SMALL_IMAGE, DataOptions
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.whole_images import WholeImages
from simsiam.data.spread import evenly_spaced
from utils.console import format_count
from utils.device import free_memory
from utils.distributed import local_world_size
from utils.errors import UserError, require
from utils.option_group import describe_invalid
from utils.text import printable

# Without --data-memory, the images may take this part of the free memory.
MEMORY_FRACTION = 0.5

# If the images take more bytes than this, their mean and std are measured on a part of them.
STATISTICS_BYTES = 2**32
# Of image files, this many images are measured, so that a start takes as long for any number.
STATISTICS_FILES = 4096
STATISTICS_CHUNK_BYTES = 2**23  # pixels counted together; torch.bincount copies them to int64

# (mean, std) of red, green and blue in ImageNet, on the scale of 0 to 1: torchvision's and timm's.
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_options(**fields: Any) -> DataOptions:
    """Return `DataOptions` with these fields.

    Raises:
        UserError: if a field has an unknown value or is out of its range.
    """
    try:
        return DataOptions(**fields)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set.

    Attributes:
        images: (N, 3, C, C) uint8, without augmentation.
        labels: (N,) int64, indices into `classes`, or -1 for an image without a label.
        classes: the names of the classes.
        on_disk: whether `images` is a memory map, which is read from the disk when indexed.
        digest: a hash of the user's own images. With it a later command checks that it got the
            same images. It is None for a published data set.
        held_out: whether these are training images that take the place of the test images.
        whole: the same images in their own shapes, of which views are cropped. It is None if views
            are cropped from `images`, and for a part of a split.
        paths: the file of each image, relative to the folder of the data set. It is None for a data
            set that has no file for each image.
    """

    images: Tensor | LazyImages
    labels: Tensor
    classes: tuple[str, ...]
    on_disk: bool = False
    digest: str | None = None
    held_out: bool = False
    whole: WholeImages | None = None
    paths: FilePaths | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """C, the side of the images in pixels."""
        return self.images.shape[-1]

    @property
    def image_cache(self) -> str | None:
        """How views are made: "on" from a cache, "off" from the files; None without files."""
        if self.whole is None:
            return None
        return "on" if self.whole.cached else "off"

    @property
    def evaluation_name(self) -> str:
        """What messages call this split if a run is evaluated on it."""
        return "held-out training images" if self.held_out else "test images"

    @property
    def labelled(self) -> bool:
        """Whether there are at least two classes and every image has a label."""
        return len(self.classes) > 1 and not bool((self.labels < 0).any())

    @property
    def labelled_indices(self) -> Tensor:
        """The indices (n,) int64 of the images that have a label."""
        return (self.labels >= 0).nonzero().flatten()

    def describe_classes(self) -> str:
        """Return text such as "10 classes", or "no labels" if there are no classes."""
        if not self.classes:
            return "no labels"
        return format_count(len(self.classes), "class")

    def first(self, n: int | None) -> "ImageDataset":
        """Return the first n images, or all if n is None."""
        return self.slice(0, n)

    def slice(self, start: int, stop: int | None) -> "ImageDataset":
        """Return the images from `start` up to, but without `stop`; up to the end if it is None."""
        return replace(
            self,
            images=self.images[start:stop],
            labels=self.labels[start:stop],
            whole=None,
            paths=self.paths[start:stop] if self.paths is not None else None,
        )

    def images_at(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, which may be on another device than the images.

        Args:
            indices: (n,) int64.

        Returns:
            (n, 3, C, C) uint8 on the device of `indices`.
        """
        images = self.images.index_select(0, indices.to(self.images.device))
        return images.to(indices.device)

    def subset(self, indices: Tensor) -> "ImageDataset":
        """Return the images at `indices` (n,), their labels and their paths, in memory."""
        images = self.images_at(indices)
        labels = self.labels[indices.to(self.labels.device)]
        paths = self.paths.subset(indices) if self.paths is not None else None
        return replace(self, images=images, labels=labels, paths=paths, on_disk=False, whole=None)

    def labelled_part(self) -> "ImageDataset":
        """Return the images that have a label. They are in memory, unless these are all images."""
        indices = self.labelled_indices
        return self if len(indices) == len(self) else self.subset(indices)

    def names(self, labels: list[int]) -> list[str]:
        """Return the class name of each label, and "" for the label -1."""
        return [self.classes[label] if 0 <= label < len(self.classes) else "" for label in labels]


Splits = tuple[ImageDataset, ImageDataset]  # train and test; the test split may be empty


def name_class(folder: str) -> str:
    """Return the name of the class whose images are in a folder.

    Two spellings of a letter in Unicode, composed and decomposed, give the same name. Characters
    that cannot be printed are escaped, because the name is printed, saved in checkpoints and
    written into HTML pages.
    """
    return printable(unicodedata.normalize("NFC", folder))


def default_stem(size: int) -> str:
    """Return the stem of a backbone for views of side `size`."""
    return "cifar" if size <= SMALL_IMAGE else "imagenet"


def make_blank_split(side: int, labels: Tensor, classes: tuple[str, ...]) -> ImageDataset:
    """Return a split with a blank image for each label. All share the memory of one image."""
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    return ImageDataset(blank.expand(len(labels), -1, -1, -1), labels, classes)


def take_first(options: DataOptions, train: ImageDataset, test: ImageDataset) -> Splits:
    """Shorten the splits to the first --train-images and the first --test-images.

    Raises:
        UserError: if a split has fewer images than its flag asks for.
    """
    _check_count("--train-images", options.train_images, len(train))
    _check_count("--test-images", options.test_images, len(test))
    return train.first(options.train_images), test.first(options.test_images)


def _check_count(flag: str, n: int | None, available: int) -> None:
    if n is not None:
        require(n <= available, f"{flag} {n} is too many: the data set has {available}.")


def place_on_device(splits: Splits, device: torch.device, memory: float | None) -> Splits:
    """Move the labels of both splits to a device, and the images if those of both splits fit there.

    Args:
        memory: GiB that the images may take, or None for `MEMORY_FRACTION` of the free memory.
    """
    if memory is not None:
        available = memory * 2**30
    else:
        available = free_memory(device) * MEMORY_FRACTION
        if device.type == "cpu":
            # The processes on this machine share its memory. Each has its own copy of the images.
            available /= local_world_size()

    train, test = splits
    reads_files = any(isinstance(s.images, LazyImages) and s.images.from_files for s in splits)
    if not reads_files and train.images.nbytes + test.images.nbytes <= available:
        train = _move_images(train, device)
        test = _move_images(test, device)
    train = replace(train, labels=train.labels.to(device))
    test = replace(test, labels=test.labels.to(device))
    return train, test


def _move_images(split: ImageDataset, device: torch.device) -> ImageDataset:
    # If the device is the CPU, `to` without `copy` would return the memory map itself.
    images = split.images.to(device, copy=split.on_disk)
    return replace(split, images=images, on_disk=False)


def choose_statistics(
    images: Tensor | LazyImages, normalize: Normalize, n: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (3,) of the channels, with which to normalise.

    Args:
        images: (N, 3, C, C) uint8, which are measured only if `normalize` is "dataset".
        normalize: the value of `--normalize`.
        n: as for `channel_statistics`.

    Raises:
        UserError: see `channel_statistics`.
    """
    if normalize == "imagenet":
        mean, std = IMAGENET_STATISTICS
    else:
        mean, std = channel_statistics(images, n)
    return torch.tensor(mean), torch.tensor(std)


def channel_statistics(
    images: Tensor | LazyImages, n: int | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, on the scale of 0 to 1.

    A channel whose pixels all have the same value gets a standard deviation of 1. It is 0 after
    normalisation. Images of two stains, saved as red and green, have such a channel.

    How often each of the values 0 to 255 occurs is counted. This takes little memory, and the
    result is exact. If the images take more than `STATISTICS_BYTES`, the pixels of a part of them
    are counted, spread evenly over all.

    Args:
        images: (N, 3, C, C) uint8.
        n: number of images whose pixels are counted, if there are more.

    Raises:
        UserError: if every channel is constant.
    """
    bytes_per_image = 3 * images.shape[-1] ** 2
    n = min(n or len(images), len(images), STATISTICS_BYTES // bytes_per_image)
    images_per_chunk = max(1, STATISTICS_CHUNK_BYTES // bytes_per_image)
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for indices in evenly_spaced(n, len(images)).split(images_per_chunk):
        for channel, pixels in enumerate(images.index_select(0, indices).unbind(1)):
            counts[channel] += pixels.flatten().bincount(minlength=256)

    frequency = counts.double() / counts.double().sum(dim=1, keepdim=True)  # (3, 256)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (frequency * level).sum(dim=1)
    variance = (frequency * (level - mean[:, None]) ** 2).sum(dim=1)
    std = variance.sqrt()
    require(bool((std > 0).any()), "All pixels of these images are equal: nothing can be learned.")
    std[std == 0] = 1
    return tuple(mean.tolist()), tuple(std.tolist())
