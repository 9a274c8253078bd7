"""The images of a data set (`ImageDataset`), and what follows from their size and number."""

import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from simsiam.config.options import DataOptions
from utils.console import print_line
from utils.device import free_memory
from utils.distributed import local_world_size
from utils.errors import UserError, require
from utils.option_group import describe_invalid
from utils.philox import permutation
from utils.text import printable

SMALL = 64  # pixels: up to here images are stored as large as they are trained on, as CIFAR's are
HELD_OUT_EPOCH = (
    2**32 - 2
)  # epoch of the permutation that chooses held-out images; no training gets here
MEMORY_SHARE = 0.5  # of the free memory, for the images, unless --data-memory says otherwise
LOW_CONTRAST = 32  # levels: images of fewer than these together are nearly flat
CONTRAST_IMAGES = 256  # on which the contrast is measured, spread evenly
STATISTICS_BYTES = (
    2**32
)  # of more images than these, mean and std are measured on some that are spread evenly


def make_options(**fields: Any) -> DataOptions:
    """UserError for an unknown data set or a value out of its range."""
    try:
        return DataOptions(**fields)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


@dataclass(frozen=True)
class ImageDataset:
    """One split."""

    images: Tensor  # (N, 3, C, C) uint8
    labels: Tensor  # (N,) int64 in 0 .. len(classes) - 1, or -1 for an image without label
    classes: tuple[str, ...]
    on_disk: bool = False  # `images` is a memory map, read when it is indexed
    digest: str | None = None  # of names and contents of one's own images, to recognise them by
    held_out: bool = False  # training images that take the place of the test images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """C."""
        return self.images.shape[-1]

    @property
    def kind(self) -> str:
        """What the images that a run is evaluated on are called."""
        return "held-out training images" if self.held_out else "test images"

    @property
    def labelled(self) -> bool:
        """Whether there are classes to tell apart and each image has one."""
        return len(self.classes) > 1 and not bool((self.labels < 0).any())

    def first(self, n: int | None) -> "ImageDataset":
        """The first n images, all if n is None."""
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def images_at(self, places: Tensor) -> Tensor:
        """The images at `places` (n,), on any device: (n, 3, C, C), on the device of `places`."""
        return self.images.index_select(0, places.to(self.images.device)).to(places.device)

    def subset(self, places: Tensor) -> "ImageDataset":
        """The images at `places` (n,) and their labels."""
        return replace(
            self,
            images=self.images_at(places),
            labels=self.labels[places.to(self.labels.device)],
            on_disk=False,
        )

    def names(self, labels: list[int]) -> list[str]:
        """The class names of labels; "" for -1."""
        return [self.classes[label] if 0 <= label < len(self.classes) else "" for label in labels]


Splits = tuple[ImageDataset, ImageDataset]  # train and test; the latter may be empty


def name_class(folder: str) -> str:
    """Return the name of a class by the name of its folder, or what stands for it.

    Composed and decomposed letters are the same name. What cannot be printed is escaped, because
    the name goes to the terminal, into checkpoints and onto pages.
    """
    return printable(unicodedata.normalize("NFC", folder))


def stored_side(size: int) -> int:
    """Side of the stored images for views of this size: beyond 64 with a margin, as ImageNet's 256 for 224."""
    return size if size <= SMALL else round(size * 8 / 7)


def default_stem(size: int) -> str:
    return "cifar" if size <= SMALL else "imagenet"


def make_blank_split(side: int, labels: Tensor, classes: tuple[str, ...]) -> ImageDataset:
    """An image of zeros for each label; they take no memory."""
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    return ImageDataset(blank.expand(len(labels), -1, -1, -1), labels, classes)


def take_first(options: DataOptions, *splits: ImageDataset) -> Splits:
    """As many images of the train and of the test split as are asked for; UserError if there are fewer."""
    asked = {"--train-images": options.train_images, "--test-images": options.test_images}
    for (flag, n), split in zip(asked.items(), splits, strict=True):
        require(n is None or n <= len(split), f"{flag} {n}: the data set has {len(split)}")
    train, test = (split.first(n) for split, n in zip(splits, asked.values(), strict=True))
    return train, test


def choose_held_out(labels: Tensor, n: int) -> Tensor:
    """Choose n images to hold out, of each class in proportion to its size, always the same ones.

    Images are ordered by a fixed permutation within their class; image r of the m in its class gets
    the number (r + 1/2) / m, and the n smallest numbers are taken.

    Args:
        labels: (N,) int64; -1 counts as a class of its own.

    Returns:
        (n,) indices, ascending.
    """
    require(
        n < len(labels),
        f"--held-out-images {n}: must be less than the {len(labels)} training images",
    )
    order = permutation(len(labels), HELD_OUT_EPOCH, seed=0)
    quantile = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        quantile[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
    first = torch.argsort(quantile[order], stable=True)[:n]
    return order[first].sort().values


def hold_out(train: ImageDataset, n: int) -> Splits:
    """Split n images off the train split (`choose_held_out`), to take the place of the test split."""
    chosen = choose_held_out(train.labels, n)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[chosen] = False
    held_out = replace(train.subset(chosen), held_out=True)
    return train.subset(rest.nonzero().flatten()), held_out


def knn_unavailable_reason(train: ImageDataset, test: ImageDataset) -> str | None:
    """Why kNN accuracy cannot be measured on these splits; None if it can."""
    if not train.labelled:
        return "one class only" if len(train.classes) == 1 else "no labels"
    if len(test) == 0:
        return "no test images"
    return None if test.labelled else f"no labels of the {test.kind}"


def place_on_device(splits: Splits, device: torch.device, memory: float | None) -> Splits:
    """Move both splits to the device if they fit into `memory` GiB (None: half of what is free); else their labels."""
    processes = (
        local_world_size() if device.type == "cpu" else 1
    )  # which share the memory, each with its own splits
    room = free_memory(device) * MEMORY_SHARE / processes if memory is None else memory * 2**30
    train, test = (replace(split, labels=split.labels.to(device)) for split in splits)
    if train.images.nbytes + test.images.nbytes <= room:
        train, test = (
            replace(x, images=x.images.to(device, copy=x.on_disk), on_disk=False)
            for x in (train, test)
        )
    return train, test


def warn_of_low_contrast(
    images: Tensor,
    where: str,
    pixel_range: tuple[float, float] | None,
) -> None:
    """Print a warning if all images (N, 3, C, C) uint8 of a set are nearly flat.

    Args:
        where: name of the set.
        pixel_range: values that became black and white, if `--pixel-range` was given.
    """
    n = min(len(images), CONTRAST_IMAGES)
    if n == 0:
        return
    sample = images[torch.arange(n) * len(images) // n]
    low, high = int(sample.min()), int(sample.max())
    if high - low >= LOW_CONTRAST or low == high:  # a single value is an error elsewhere
        return
    advice = f"If they use no others, --pixel-range {low}:{high} makes {low} black and {high} white"
    if pixel_range:
        advice = "Is --pixel-range {:g}:{:g} the right one?".format(*pixel_range)
    values = f"only the values {low} to {high} of 255, which is hardly any contrast"
    print_line(f"warning: the images of {where} use {values}. {advice}")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, 3, C, C) uint8 images, on the scale of 0 to 1, by counting."""
    level = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(3, 256, dtype=torch.int64)
    row = 3 * images.shape[-1] ** 2  # bytes
    n = min(len(images), STATISTICS_BYTES // row)
    for places in (torch.arange(n) * len(images) // n).split(
        max(1, 2**23 // row)
    ):  # 8 MiB: bincount makes int64 of it
        counts += torch.stack(
            [channel.flatten().bincount(minlength=256) for channel in images[places].unbind(1)]
        )
    share = counts.double() / counts.double().sum(dim=1, keepdim=True)  # (3, 256)
    mean = (share * level).sum(dim=1)
    std = (share * (level - mean[:, None]) ** 2).sum(dim=1).sqrt()
    require(
        bool((std > 0).all()),
        "these images have a channel of a single value: nothing can be learned from it",
    )
    return tuple(mean.tolist()), tuple(std.tolist())
