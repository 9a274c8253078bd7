"""Load your own image files as a data set: a folder, a .txt of paths, or a .csv.

Any of these layouts will do:

- `DIR/train/CLASS/*` and `DIR/val/CLASS/*` (or `test/`), as torchvision has them.
- `DIR/CLASS/*`: there are no test images.
- `DIR/train/*` or `DIR/*`: there are no labels.
- a list, see `simsiam.data.listing.list_file`.

The images are decoded once; see `simsiam.data.files.image_cache`.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from simsiam.config.options import FOLDER_IMAGE_SIZE, DataOptions
from simsiam.data.dataset import Splits, make_blank_split, stored_side
from simsiam.data.files.cache_manifest import IMAGES
from simsiam.data.files.image_cache import decode_images, map_images, open_cache, read_notes
from simsiam.data.files.image_notes import describe_notes
from simsiam.data.listing.duplicates import describe_duplicates
from simsiam.data.listing.list_file import hash_list
from simsiam.data.listing.messages import raise_or_print_unreadable, warn_of_unused_bits
from simsiam.data.listing.sources import ListedSplits, list_splits
from simsiam.data.pixel_range import warn_of_low_contrast
from utils.console import print_line
from utils.text import printable


def prepare_folder(options: DataOptions) -> None:
    """Decode the images that are not in the cache yet, and print warnings about them.

    Raises:
        UserError: if there are no images, or if one cannot be read and `skip_bad_images` is not
            set.
    """
    splits = list_splits(options)
    image_lists = [splits.train]
    if splits.test is not None:
        image_lists.append(splits.test)

    # Decode the train images, then the test images.
    files = []
    labels = []
    # Why a path cannot be read. Sub-folders have full paths here, files have paths below `root`.
    unreadable: dict[Path, str] = {}
    for images in image_lists:
        subfolder = images.root.relative_to(splits.root)  # such as "train"
        files += [subfolder / file for file in images.files]
        labels += images.labels.tolist()
        unreadable.update(images.unreadable_folders)

    metadata: dict[str, Any] = {
        "train": len(splits.train),
        "labels": labels,
        "classes": list(splits.train.classes),
    }
    cache = _cache_folder(options)
    side = stored_side(_image_size(options))
    unreadable_files = decode_images(cache, splits.root, files, side, metadata, options.conversion)

    num_readable = len(files) - len(unreadable_files)
    unreadable.update(unreadable_files)
    raise_or_print_unreadable(unreadable, num_readable, splits.source, options.skip_bad_images)
    _report_images(splits, files, options)


def _report_images(splits: ListedSplits, files: list[Path], options: DataOptions) -> None:
    """Print warnings about the decoded images, and what was done to those that are not plain RGB.

    Args:
        files: paths below `splits.root`, those of the train images first.
    """
    cache = _cache_folder(options)
    digests_and_notes = read_notes(cache)
    notes = [note for _, note in digests_and_notes.values()]
    # Warn of images that use few of the possible values. One of the two warnings is enough.
    has_warned = warn_of_unused_bits([note.range_16_bit for note in notes], splits.source)
    if not has_warned:
        pixels = map_images(cache / IMAGES, len(notes), stored_side(_image_size(options)))
        pixel_range = options.conversion.pixel_range
        warn_of_low_contrast(pixels, printable(splits.source), pixel_range)

    lines = describe_notes(notes, _image_size(options), options.conversion)
    readable = [(file, digests_and_notes[file][0]) for file in files if file in digests_and_notes]
    num_train = sum(1 for file in files[: len(splits.train)] if file in digests_and_notes)
    test_name = "held-out images" if options.held_out_images > 0 else "test images"
    duplicates = describe_duplicates(readable[:num_train], readable[num_train:], test_name)
    if duplicates is not None:
        lines.append(duplicates)
    for line in lines:
        print_line(f"{printable(splits.source)}: {line}")


def load_folder(options: DataOptions) -> Splits:
    """Return the train and the test split as memory maps, after `prepare_folder`."""
    train, test = open_cache(_cache_folder(options))
    return train, replace(test, held_out=options.held_out_images > 0)


def make_placeholders(options: DataOptions) -> Splits:
    """Return blank splits with as many images as `prepare_folder` would decode."""
    splits = list_splits(options)
    side = stored_side(_image_size(options))
    classes = splits.train.classes
    test_labels = splits.train.labels[:0]
    if splits.test is not None:
        test_labels = splits.test.labels
    train = make_blank_split(side, splits.train.labels, classes)
    test = make_blank_split(side, test_labels, classes)
    return train, replace(test, held_out=options.held_out_images > 0)


def _image_size(options: DataOptions) -> int:
    """Return the side of the views in pixels."""
    return options.image_size or FOLDER_IMAGE_SIZE


def _cache_folder(options: DataOptions) -> Path:
    """Return the folder of the decoded images.

    Its name is a hash of the options that decide which images there are and what they look like.
    """
    path = Path(os.path.abspath(options.path))
    key = [
        str(path),
        str(stored_side(_image_size(options))),
        str(options.train_images),
        str(options.test_images),
    ]
    # The names of caches must not change, and some caches are older than what follows.
    # Therefore it is in the key only where it is used.
    if options.held_out_images > 0:
        key.append(f"held out: {options.held_out_images}")
    if options.pixel_range is not None:
        key.append(options.pixel_range)
    default = DataOptions().conversion
    if options.conversion.background != default.background:
        key.append(f"background: {options.conversion.background}")
    if path.is_file():
        key.append(f"list: {hash_list(path)}")
    text = "\n".join(key)
    # A path may have bytes that are not UTF-8, which Python holds as surrogates.
    name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    default_parent = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    parent = Path(options.cache_dir or default_parent)
    return parent.expanduser() / name
