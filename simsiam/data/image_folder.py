"""A folder of one's own images as a data set: torchvision's ImageFolder layout, or images without labels.

`DIR/train/CLASS/*` with `val/` or `test/` beside it, `DIR/CLASS/*`, or images alone, in `DIR/train/` or in `DIR/`.
They are decoded once, into a cache (`utils.imagecache`).
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simsiam.data.dataset import ImageDataset, stored_side, without_images
from simsiam.data.image_cache import Cache, decode, open_cache
from simsiam.data.images import SUFFIXES, ImageFolder, report_bad
from utils.console import print_line
from utils.errors import check

SIZE = 96  # side of views, if nothing else is said: small enough for one GPU, and most images have as much to show
TESTS = ("val", "test")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


class Part(NamedTuple):
    """One split of a folder: its files, below the folder of the data set, and their labels, -1 for none."""

    files: list[Path]
    labels: list[int]


class Found(NamedTuple):
    """What a folder holds, before anything of it is decoded."""

    root: Path
    train: Part
    test: Part
    classes: tuple[str, ...]
    closed: list[str]  # sub-folders that cannot be read, and why

    @property
    def about(self) -> dict[str, Any]:
        """What is kept beside the images."""
        return {
            "train": len(self.train.files),
            "labels": self.train.labels + self.test.labels,
            "classes": list(self.classes),
        }


def find(data_dir: str, train_images: int | None = None, test_images: int | None = None) -> Found:
    """Look at what a folder holds.

    Args:
        train_images, test_images: take so many, spread evenly over the split; all if None.

    Raises:
        UserError: no such folder, no images, or classes of the test images that the train images do not have.
    """
    root = Path(os.path.abspath(Path(data_dir).expanduser()))
    split = (root / "train").is_dir()
    train = ImageFolder(root / "train" if split else root, "--data-dir")
    named = [name for name in train.classes if name.lower() in SPLITS]
    check(split or not named, f"{root}: {', '.join(named)}: no class, it seems; a split is named train, val or test")
    strange = [name for name in train.classes if not name.isprintable()]
    check(not strange, f"{train.folder}: {strange[:3]!a}: no text, which the name of a class is: rename it")
    _tell_unused(root, split)
    beside = [name for name in TESTS if split and (root / name).is_dir()]
    test = ImageFolder(root / beside[0], "--data-dir") if beside else None
    if test is not None:
        strange = sorted(set(test.classes) - set(train.classes)) if train.classes else []
        check(not strange, f"{test.folder}: {', '.join(strange[:3])} is no class of {train.folder}")
    classes = train.classes
    loose = int((train.labels < 0).sum())
    if classes and loose:
        print_line(f"{train.folder}: {loose} of {len(train)} images lie in no class's folder, so none has a label")
        classes = ()
    return Found(
        root,
        _part(root, train, classes, "train", train_images),
        _part(root, test, classes, "test", test_images),
        classes,
        train.closed + (test.closed if test else []),
    )


def _tell_unused(root: Path, split: bool) -> None:
    """Beside `train/`, folders that are no split may be meant to be classes."""

    def holds_images(folder: Path) -> bool:
        return folder.is_dir() and any(file.suffix.lower() in SUFFIXES for file in folder.iterdir())

    known = ("train", *TESTS)
    if beside := sorted(p.name for p in root.iterdir() if split and p.name not in known and holds_images(p)):
        print_line(f"{root}: only train/, and val/ or test/, are used; not {', '.join(beside[:5])}")


def _part(root: Path, folder: ImageFolder | None, classes: tuple[str, ...], name: str, n: int | None) -> Part:
    there = len(folder) if folder else 0
    check(n is None or n <= there, f"--{name}-images {n}: {root} has {there}")
    if folder is None:
        return Part([], [])
    place = {name: i for i, name in enumerate(classes)}
    own = [place.get(folder.classes[label], -1) if label >= 0 else -1 for label in folder.labels.tolist()]
    kept = range(there) if n is None else [i * there // n for i in range(n)]
    below = folder.folder.relative_to(root)
    return Part([below / folder.files[i] for i in kept], [own[i] for i in kept])


def cache_folder(
    cache_dir: str | None, data_dir: str, size: int | None, train_images: int | None, test_images: int | None
) -> Path:
    """Where these images are kept once they are decoded."""
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.path.abspath(Path(data_dir).expanduser())
    what = f"{root}\n{stored_side(size or SIZE)}\n{train_images}\n{test_images}"
    name = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()[:16]
    return Path(cache_dir or Path(own) / "simsiam").expanduser() / name


def prepare(found: Found, cache: Path, size: int | None, skip_bad: bool) -> None:
    """Decode what is not decoded yet, and say which images are bad.

    Raises:
        UserError: among others, bad images, unless `skip_bad`.
    """
    decode(cache, found.root, found.train.files + found.test.files, stored_side(size or SIZE), found.about)
    kept = open_cache(cache)
    report_bad(found.closed + kept.bad, len(kept.good), found.root, skip_bad)
    check(_trained(kept) > 0, f"{found.root}: no train image can be read")


def _trained(kept: Cache) -> int:
    """How many of the images are of the train split."""
    return sum(i < kept.about["train"] for i in kept.good)


def open_folder(cache: Path) -> tuple[ImageDataset, ImageDataset]:
    """The train and the test split of a cache that `prepare` has made, on disk."""
    kept = open_cache(cache)
    labels, n = torch.tensor(kept.about["labels"], dtype=torch.long)[kept.good], _trained(kept)
    classes = tuple(kept.about["classes"])
    train = ImageDataset(kept.images.part(0, n), labels[:n], classes)
    test = ImageDataset(kept.images.part(n, len(labels)), labels[n:], classes)
    return train, test if len(test) else without_images(train)


def blanks(found: Found, size: int | None) -> tuple[ImageDataset, ImageDataset]:
    """As many images as there are: zeros, which take no memory."""
    side = stored_side(size or SIZE)
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)

    def split(part: Part) -> ImageDataset:
        pixels: Tensor = blank.expand(len(part.files), -1, -1, -1)
        return ImageDataset(pixels, torch.tensor(part.labels, dtype=torch.long), found.classes)

    return split(found.train), split(found.test)
