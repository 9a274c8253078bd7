"""A folder of your own images as a data set, with labels if its sub-folders are classes.

`DIR/train/CLASS/*` with `val/` or `test/` beside it, as torchvision has it; `DIR/CLASS/*`; or
images without labels, in `DIR/train/` or in `DIR/`. They are decoded once, see
`simsiam.data.image_cache`.
"""

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import (
    Splits,
    choose_held_out,
    make_blank_split,
    stored_side,
    warn_of_low_contrast,
)
from simsiam.data.image_cache import (
    IMAGES,
    decode_images,
    map_images,
    open_cache,
    read_deep_ranges,
)
from simsiam.data.images import SUFFIXES
from simsiam.data.listing import (
    SYSTEM_FOLDERS,
    ImageFolder,
    report_bad,
    warn_of_unused_bits,
)
from utils.console import plural, print_line
from utils.errors import require
from utils.text import printable

DEFAULT_SIZE = (
    96  # side of the views: small enough for one GPU, and most images have as much to show
)
# Names of the folders of splits, in upper or lower case. The first one that is there is used.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test", "testing")

MAX_UNUSED = 5  # most folders that are listed as not used


def prepare_folder(options: DataOptions) -> None:
    """Decode what is not decoded yet, and print what a person should know about the images.

    Raises:
        UserError: if there are images that cannot be read, unless they are to be skipped.
    """
    root = _find_root(options)
    splits = _find_splits(options)
    files = [folder.folder.relative_to(root) / file for folder in splits for file in folder.files]
    labels = torch.cat([folder.labels for folder in splits]).tolist()
    facts: dict[str, Any] = {
        "train": len(splits[0]),
        "labels": labels,
        "classes": list(splits[0].classes),
    }
    if options.pixel_limits is not None:
        facts["pixel_range"] = list(options.pixel_limits)
    cache, side = _find_cache(options)
    bad = decode_images(cache, root, files, side, facts)
    closed = {path: reason for folder in splits for path, reason in folder.closed.items()}
    report_bad({**closed, **bad}, len(files) - len(bad), root, options.skip_bad_images)
    ranges = read_deep_ranges(cache)
    if not warn_of_unused_bits(ranges, root):
        images = map_images(cache / IMAGES, len(ranges), side)
        warn_of_low_contrast(images, printable(root), options.pixel_limits)


def load_folder(options: DataOptions) -> Splits:
    """Return both splits, on disk, once they are prepared."""
    train, test = open_cache(_find_cache(options)[0])
    return train, replace(test, held_out=options.held_out_images > 0)


def make_placeholders(options: DataOptions) -> Splits:
    """Return blank splits of as many images as would be decoded."""
    train, *test = _find_splits(options)
    test_labels = test[0].labels if test else train.labels[:0]
    _, side = _find_cache(options)
    blank_test = make_blank_split(side, test_labels, train.classes)
    blank_test = replace(blank_test, held_out=options.held_out_images > 0)
    return make_blank_split(side, train.labels, train.classes), blank_test


def _find_root(options: DataOptions) -> Path:
    return Path(os.path.abspath(options.path))


class SplitFolders(NamedTuple):
    """Which folders hold the images to train and to test on."""

    train: Path
    test: Path | None
    unused: list[str]  # what lies beside them, in words


def find_split_folders(root: Path, with_test: bool = True) -> SplitFolders:
    """Find `train/` and, for testing, `val/` or else `test/`, by any of their usual names.

    Without a folder for training, all images below `root` are for training.
    """
    try:
        with os.scandir(root) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
    except OSError:  # `ImageFolder` says what is wrong
        return SplitFolders(root, None, [])
    folders = sorted(name for name in is_folder if is_folder[name])
    train = _choose_split(folders, TRAIN_NAMES)
    if train is None:
        return SplitFolders(root, None, [])
    test = _choose_split(folders, TEST_NAMES) if with_test else None
    unused = []
    for name in folders:
        system = name.startswith(".") or name.lower() in SYSTEM_FOLDERS
        if name not in (train, test) and not system:
            unused.append(f"{printable(name)}/")
    files = is_folder.keys() - {*folders}
    images = sum(Path(name).suffix.lower() in SUFFIXES for name in files)
    if images:
        unused.append(f"{plural(images, 'image')} beside these folders")
    return SplitFolders(root / train, root / test if test else None, unused)


def _choose_split(folders: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the folder with the first of these names; lower case is preferred."""
    for name in names:
        matches = [folder for folder in folders if folder.lower() == name]
        if matches:
            return name if name in matches else matches[0]
    return None


def _announce_splits(root: Path, found: SplitFolders) -> None:
    usual = found.test is None or (found.train.name, found.test.name) == ("train", "val")
    if usual and not found.unused:
        return
    used = f"training on {printable(found.train.name)}/"
    if found.test is not None:
        used += f", testing on {printable(found.test.name)}/"
    if found.unused:
        unused = found.unused
        if len(unused) > MAX_UNUSED:
            unused = [*unused[:MAX_UNUSED], "..."]
        used += f"; not used: {', '.join(unused)}"
    print_line(f"{printable(root)}: {used}")


def _find_splits(options: DataOptions) -> list[ImageFolder]:
    """Return the train and perhaps the test images, labelled alike.

    There are as many as are asked for, spread evenly over a split. Prints which folders are used,
    and what in them is left out.
    """
    root = _find_root(options)
    found = find_split_folders(root, with_test=not options.held_out_images)
    splits = [ImageFolder(found.train, "--data-dir")]
    if found.test is not None:
        splits.append(ImageFolder(found.test, "--data-dir"))
    train = splits[0]
    classes = train.classes
    if found.train == root:
        named = [name for name in classes if name.lower() in TEST_NAMES]
        require(
            not named,
            f"{printable(root)}: {', '.join(named)}: no class, it seems, but a split, and there is "
            "no train/. Move the images to train on into train/, or rename the class",
        )
    _announce_splits(root, found)
    for folder in splits:
        folder.report_skipped()
    loose = int((train.labels < 0).sum())
    if classes and loose:
        images = f"{loose} of {len(train)} images lie in no class's folder, so none has a label"
        print_line(f"{printable(train.folder)}: {images}")
        classes = ()
    label = {name: i for i, name in enumerate(classes)}
    asked = (options.train_images, options.test_images)
    for folder, n in zip(splits, asked, strict=False):  # there may be no test split
        where = printable(folder.folder)
        strange = [name for name in folder.classes if classes and name not in label]
        unknown = f"{where}: {', '.join(strange[:3])} is no class of {printable(train.folder)}"
        require(not strange, unknown)
        # The last entry is for the label -1.
        new_labels = torch.tensor([*(label.get(name, -1) for name in folder.classes), -1])
        folder.labels = new_labels[folder.labels]
        folder.classes = classes
        if n is not None:
            flags = "--train-images or --test-images"
            require(n <= len(folder), f"{flags} {n}: {where} has {len(folder)}")
            folder.keep([i * len(folder) // n for i in range(n)])
    if options.held_out_images:
        chosen = choose_held_out(train.labels, options.held_out_images).tolist()
        held_out = copy.copy(train)
        held_out.keep(chosen)
        train.keep(sorted(set(range(len(train))) - set(chosen)))
        splits = [train, held_out]
    return splits


def _find_cache(options: DataOptions) -> tuple[Path, int]:
    """Return the folder of the decoded images, and C, their side."""
    side = stored_side(options.image_size or DEFAULT_SIZE)
    parts = [os.path.abspath(options.path), side, options.train_images, options.test_images]
    # Without these options the name is that of caches made before there were any.
    if options.held_out_images:
        parts.append(f"held out: {options.held_out_images}")
    if options.pixel_range is not None:
        parts.append(options.pixel_range)
    text = "\n".join(map(str, parts))
    name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "simsiam"
    return Path(options.cache_dir or usual).expanduser() / name, side
