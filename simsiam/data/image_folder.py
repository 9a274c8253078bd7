"""Load a folder of your own images as a data set.

Any of these layouts will do:

- `DIR/train/CLASS/*` and `DIR/val/CLASS/*` (or `test/`), as torchvision has them.
- `DIR/CLASS/*`: there are no test images.
- `DIR/train/*` or `DIR/*`: there are no labels.

The images are decoded once; see `simsiam.data.image_cache`.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simsiam.config.options import FOLDER_IMAGE_SIZE, DataOptions
from simsiam.data.cache_manifest import IMAGES
from simsiam.data.dataset import (
    Splits,
    evenly_spaced,
    make_blank_split,
    stored_side,
)
from simsiam.data.folder_messages import raise_or_print_unreadable, warn_of_unused_bits
from simsiam.data.held_out import choose_held_out
from simsiam.data.image_cache import decode_images, map_images, open_cache, read_16_bit_ranges
from simsiam.data.listing import ImageFolder
from simsiam.data.pixel_range import warn_of_low_contrast
from simsiam.data.split_folders import (
    TEST_NAMES,
    SplitFolders,
    find_split_folders,
    print_split_folders,
)
from utils.console import print_line
from utils.errors import require
from utils.text import printable

MAX_LISTED_CLASSES = 3  # unknown classes that a message names


def prepare_folder(options: DataOptions) -> None:
    """Decode the images that are not in the cache yet, and print warnings about them.

    Raises:
        UserError: if there are no images, or if one cannot be read and `skip_bad_images` is not
            set.
    """
    root = _absolute_root(options)
    splits = _list_splits(options)
    image_folders = [splits.train]
    if splits.test is not None:
        image_folders.append(splits.test)

    # Decode the train images, then the test images.
    files = []
    labels = []
    # Why a path cannot be read. Sub-folders have full paths here, files have paths below `root`.
    unreadable: dict[Path, str] = {}
    for images in image_folders:
        subfolder = images.root.relative_to(root)  # such as "train"
        files += [subfolder / file for file in images.files]
        labels += images.labels.tolist()
        unreadable.update(images.unreadable_folders)

    metadata: dict[str, Any] = {
        "train": len(splits.train),
        "labels": labels,
        "classes": list(splits.train.classes),
    }
    if options.parsed_pixel_range is not None:
        metadata["pixel_range"] = list(options.parsed_pixel_range)
    cache = _cache_folder(options)
    side = _cache_side(options)
    unreadable_files = decode_images(cache, root, files, side, metadata)

    num_readable = len(files) - len(unreadable_files)
    unreadable.update(unreadable_files)
    raise_or_print_unreadable(unreadable, num_readable, root, options.skip_bad_images)

    # Warn of images that use few of the possible values. One of the two warnings is enough.
    has_warned = warn_of_unused_bits(read_16_bit_ranges(cache), root)
    if not has_warned:
        pixels = map_images(cache / IMAGES, num_readable, side)
        warn_of_low_contrast(pixels, printable(root), options.parsed_pixel_range)


def load_folder(options: DataOptions) -> Splits:
    """Return the train and the test split as memory maps, after `prepare_folder`."""
    train, test = open_cache(_cache_folder(options))
    return train, replace(test, held_out=options.held_out_images > 0)


def make_placeholders(options: DataOptions) -> Splits:
    """Return blank splits with as many images as `prepare_folder` would decode."""
    splits = _list_splits(options)
    side = _cache_side(options)
    classes = splits.train.classes
    test_labels = splits.train.labels[:0]
    if splits.test is not None:
        test_labels = splits.test.labels
    train = make_blank_split(side, splits.train.labels, classes)
    test = make_blank_split(side, test_labels, classes)
    return train, replace(test, held_out=options.held_out_images > 0)


# ---------------------------------------------------------------- listing the images


class ListedSplits(NamedTuple):
    """The image files of the train and the test split, labelled by the same classes."""

    train: ImageFolder
    test: ImageFolder | None


def _list_splits(options: DataOptions) -> ListedSplits:
    """List the images of both splits and label them. Print which folders and files are left out."""
    root = _absolute_root(options)
    split_folders = find_split_folders(root, with_test=options.held_out_images == 0)
    train = ImageFolder(split_folders.train, "--data-dir")
    test = None
    if split_folders.test is not None:
        test = ImageFolder(split_folders.test, "--data-dir")

    if split_folders.train == root:  # There is no train/.
        _check_no_class_is_a_split(train)
    _print_left_out(root, split_folders, train, test)

    classes = _choose_classes(train)
    if test is not None and classes:
        _check_test_classes(test, train)
    _index_labels(train, classes)
    if test is not None:
        _index_labels(test, classes)

    train = _spread_evenly(train, options.train_images, "--train-images")
    if test is not None:
        test = _spread_evenly(test, options.test_images, "--test-images")

    if options.held_out_images > 0:
        return _hold_out(train, options.held_out_images)
    return ListedSplits(train, test)


def _check_no_class_is_a_split(train: ImageFolder) -> None:
    """Raise UserError if a folder of test images, such as val/, would be taken for a class."""
    split_names = [name for name in train.classes if name.lower() in TEST_NAMES]
    require(
        not split_names,
        f"{', '.join(split_names)} in {printable(train.root)} looks like a split, not a class, "
        "but there is no train/. Move the images to train on into train/, or rename the class.",
    )


def _print_left_out(
    root: Path, split_folders: SplitFolders, train: ImageFolder, test: ImageFolder | None
) -> None:
    print_split_folders(root, split_folders)
    train.report_skipped()
    if test is not None:
        test.report_skipped()


def _choose_classes(train: ImageFolder) -> tuple[str, ...]:
    """Return the classes of the train images, or none if any image is outside their folders."""
    num_unlabelled = int((train.labels < 0).sum())
    if not train.classes or num_unlabelled == 0:
        return train.classes
    print_line(
        f"{printable(train.root)}: {num_unlabelled} of {len(train)} images are in no class's "
        "folder. The images are used without labels."
    )
    return ()


def _check_test_classes(test: ImageFolder, train: ImageFolder) -> None:
    """Raise UserError if the test images have a class that the train images do not have."""
    unknown = [name for name in test.classes if name not in set(train.classes)]
    listed = ", ".join(unknown[:MAX_LISTED_CLASSES])
    where = printable(test.root)
    require(not unknown, f"{where}: {listed} is no class of {printable(train.root)}.")


def _index_labels(images: ImageFolder, classes: tuple[str, ...]) -> None:
    """Replace the label of each image by its index in `classes`, or by -1 without classes."""
    index_of_class = {name: i for i, name in enumerate(classes)}
    new_labels = [index_of_class.get(name, -1) for name in images.classes]
    new_labels.append(-1)  # The old label -1 indexes this last entry, so it stays -1.
    images.labels = torch.tensor(new_labels)[images.labels]
    images.classes = classes


def _spread_evenly(images: ImageFolder, n: int | None, flag: str) -> ImageFolder:
    """Return n images, spread evenly over the sorted files, or all images if n is None."""
    if n is None:
        return images
    total = len(images)
    require(n <= total, f"{flag} {n} is more than the {total} images in {printable(images.root)}.")
    return images.subset(evenly_spaced(n, total).tolist())


def _hold_out(train: ImageFolder, n: int) -> ListedSplits:
    """Split n images off the train images. They become the test images."""
    held_out = choose_held_out(train.labels, n).tolist()
    excluded = set(held_out)
    remaining = [i for i in range(len(train)) if i not in excluded]
    return ListedSplits(train.subset(remaining), train.subset(held_out))


# ---------------------------------------------------------------- the cache of decoded images


def _absolute_root(options: DataOptions) -> Path:
    return Path(os.path.abspath(options.path))


def _cache_side(options: DataOptions) -> int:
    """Return the side of the decoded images in pixels."""
    return stored_side(options.image_size or FOLDER_IMAGE_SIZE)


def _cache_folder(options: DataOptions) -> Path:
    """Return the folder of the decoded images.

    Its name is a hash of the options that decide which images there are and what they look like.
    """
    key = [
        str(_absolute_root(options)),
        str(_cache_side(options)),
        str(options.train_images),
        str(options.test_images),
    ]
    # The names of caches must not change, and some caches are older than these two options.
    # Therefore the options are in the key only where they are used.
    if options.held_out_images > 0:
        key.append(f"held out: {options.held_out_images}")
    if options.pixel_range is not None:
        key.append(options.pixel_range)
    text = "\n".join(key)
    # A path may have bytes that are not UTF-8, which Python holds as surrogates.
    name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    default_parent = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    parent = Path(options.cache_dir or default_parent)
    return parent.expanduser() / name
