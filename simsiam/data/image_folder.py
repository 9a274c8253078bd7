"""Load your own image files as a data set: a folder, a .txt of paths, or a .csv.

Any of these layouts will do:

- `DIR/train/CLASS/*` and `DIR/val/CLASS/*` (or `test/`), as torchvision has them.
- `DIR/CLASS/*`: there are no test images.
- `DIR/train/*` or `DIR/*`: there are no labels.
- a list, see `simsiam.data.listing.list_file`.

The images are decoded once into a cache, see `simsiam.data.files.image_cache`, or in each epoch.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsiam.config.options import FOLDER_IMAGE_SIZE, DataOptions
from simsiam.data.cache.index import read_index
from simsiam.data.cache.table import MISSING, Index
from simsiam.data.cache_folders import find_cache_folder, find_old_caches, name_selection
from simsiam.data.dataset import ImageDataset, Splits, make_blank_split
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.cache_choice import Choice, choose_mode, choose_sample, estimate_bytes
from simsiam.data.files.cached_images import open_cache
from simsiam.data.files.clean_images import CleanFiles
from simsiam.data.files.file_states import read_states
from simsiam.data.files.image_cache import decode_images
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.selection import (
    Selection,
    hash_contents,
    hash_files,
    read_selection,
    write_selection,
)
from simsiam.data.files.source_files import SourceFiles
from simsiam.data.files.whole_images import ImageFiles
from simsiam.data.image_reports import report_cached_images, report_sample
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.messages import raise_or_print_unreadable
from simsiam.data.listing.sources import ListedSplits, list_splits
from simsiam.data.listing.sources import list_train as list_train_files
from simsiam.data.spread import evenly_spaced
from utils.console import print_line
from utils.errors import UserError
from utils.text import printable

SIZED_FILES = 4096  # whose sizes are compared before a run resumes, if there is no cache


def prepare_folder(options: DataOptions) -> None:
    """List the images, decode those that a cache is to have, and print warnings about them.

    Raises:
        UserError: if there are no images, or if one cannot be read and `skip_bad_images` is not
            set.
    """
    splits = list_splits(options)
    files = _join_paths(splits)
    labels = torch.cat([images.labels for images in _image_lists(splits)])
    # Why a path cannot be read. Sub-folders have full paths here, files have paths below `root`.
    unreadable: dict[Path, str] = {}
    for images in _image_lists(splits):
        unreadable.update(images.unreadable_folders)

    folder = find_cache_folder(options)
    choice = _choose_mode(options, folder, splits.root, files)
    num_readable = len(files)
    if choice.mode == "on":
        index = _decode(options, folder, splits, files, choice)
        lines = index.find(files)
        failed = np.flatnonzero(index.lines["failed"][lines])
        for i in failed.tolist():
            unreadable[Path(files[i])] = index.failures[int(lines[i])]
        num_readable -= len(failed)
    else:
        print_line(f"{printable(splits.source)}: {choice.reason}")
        index = Index()
        lines = None
    raise_or_print_unreadable(unreadable, num_readable, splits.source, options.skip_bad_images)
    _save_selection(options, splits, files, labels, index, lines)
    if lines is not None:
        report_cached_images(options, splits, files, index, lines, folder)
    else:
        report_sample(options, splits, choose_sample(files))


def _image_lists(splits: ListedSplits) -> list[ImageList]:
    """Return the lists of the train images and of the test images, if there are any."""
    return [splits.train] if splits.test is None else [splits.train, splits.test]


def _join_paths(splits: ListedSplits) -> FilePaths:
    """Return the paths of all images below the root, those of the train images first."""
    files = FilePaths()
    for images in _image_lists(splits):
        subfolder = str(images.root.relative_to(splits.root))  # such as "train"
        if subfolder == ".":
            paths = images.files
        else:
            paths = images.files.below(subfolder)
        files = files + paths
    return files


def _choose_mode(options: DataOptions, folder: Path, root: Path, files: FilePaths) -> Choice:
    """Return whether this run keeps the images in the cache."""
    if options.image_cache == "off":
        return choose_mode("off", folder, 0, len(files), 0.0)
    num_missing = int((read_index(folder).find(files) == MISSING).sum())
    bytes_per_image = 0.0
    if num_missing > 0:
        size = image_size(options)
        bytes_per_image = estimate_bytes(root, choose_sample(files), size, stored_side(options))
    return choose_mode(options.image_cache, folder, num_missing, len(files), bytes_per_image)


def _decode(
    options: DataOptions, folder: Path, splits: ListedSplits, files: FilePaths, choice: Choice
) -> Index:
    """Decode the images that are not in the cache yet, in place of a cache of an earlier version.

    Returns:
        The index of the cache.
    """
    if choice.bytes_per_image > 0:  # images are missing
        print_line(f"{printable(splits.source)}: {choice.reason}")
    old_caches = find_old_caches(options)
    for old in old_caches:
        print_line(f"{printable(old.path)}, a cache of an earlier version, is replaced")
    index = decode_images(
        folder,
        splits.root,
        files,
        image_size(options),
        stored_side(options),
        options.conversion,
        source=str(splits.source),
        bytes_per_image=choice.bytes_per_image,
    )
    for old in old_caches:
        old.delete()
    return index


def _save_selection(
    options: DataOptions,
    splits: ListedSplits,
    files: FilePaths,
    labels: Tensor,
    index: Index,
    lines: np.ndarray | None,
) -> None:
    """Write down which images the run has, for `load_folder` in each process of the run.

    Args:
        index: of the cache.
        lines: (N,) int64, the line of each file, or None if the images are not in a cache.
    """
    num_train = len(splits.train)
    if lines is None:
        digest = hash_files(files, _read_some_sizes(splits.root, files))
    else:
        chosen = np.flatnonzero(~index.lines["failed"][lines])
        files = files.subset(torch.from_numpy(chosen))
        labels = labels[torch.from_numpy(chosen)]
        num_train = int((chosen < num_train).sum())
        digest = hash_contents(files, index.lines["digest"][lines[chosen]])
    selection = Selection(
        root=str(splits.root),
        cached=lines is not None,
        files=files,
        labels=labels,
        classes=splits.train.classes,
        num_train=num_train,
        digest=digest,
    )
    if selection.num_train == 0:
        raise UserError(f"None of the train images in {printable(splits.source)} could be read.")
    folder = find_cache_folder(options)
    try:
        write_selection(folder / name_selection(options), selection)
    except OSError as error:
        where = printable(os.fsdecode(error.filename or folder))
        raise UserError(f"{where}: {error.strerror}. Pass another --cache-dir.") from None


def _read_some_sizes(root: Path, files: FilePaths) -> dict[int, object]:
    """Return the sizes of SIZED_FILES files, by their indices.

    They stand for the contents of files that are decoded in each epoch. To look at all files of a
    large data set before each start would take minutes.
    """
    looked_at: list[int] = evenly_spaced(min(len(files), SIZED_FILES), len(files)).tolist()
    states = read_states(root, [files[i] for i in looked_at])
    return dict(zip(looked_at, states["size"].tolist(), strict=True))


def load_folder(options: DataOptions) -> Splits:
    """Return the train and the test split, after `prepare_folder`.

    Raises:
        UserError: the images are not prepared.
    """
    folder = find_cache_folder(options)
    selection = read_selection(folder / name_selection(options))
    n = selection.num_train
    index = read_index(folder) if selection.cached else Index()
    train = _load_split(options, index, selection, slice(0, n))
    test = _load_split(options, index, selection, slice(n, None))
    return train, replace(test, held_out=options.held_out_images > 0)


def _load_split(
    options: DataOptions, index: Index, selection: Selection, part: slice
) -> ImageDataset:
    files = selection.files[part]
    if selection.cached:
        images, whole = open_cache(find_cache_folder(options), index, index.find(files))
    else:
        sources = SourceFiles(
            Path(selection.root), files, options.conversion, options.skip_bad_images
        )
        size = image_size(options)
        images = LazyImages(CleanFiles(sources, size).read, range(len(files)), size)
        whole = ImageFiles(sources)
    return ImageDataset(
        images,
        selection.labels[part],
        selection.classes,
        on_disk=True,
        digest=selection.digest,
        whole=whole,
        paths=files,
    )


def make_placeholders(options: DataOptions) -> Splits:
    """Return blank splits with as many images as `prepare_folder` would find.

    Print whether it would decode them, and how much space they would take.
    """
    splits = list_splits(options)
    choice = _choose_mode(options, find_cache_folder(options), splits.root, _join_paths(splits))
    print_line(f"without --dry-run: {printable(splits.source)}: {choice.reason}")
    side = image_size(options)
    classes = splits.train.classes
    test_labels = splits.train.labels[:0]
    if splits.test is not None:
        test_labels = splits.test.labels
    train = make_blank_split(side, splits.train.labels, classes)
    test = make_blank_split(side, test_labels, classes)
    return train, replace(test, held_out=options.held_out_images > 0)


def list_train(options: DataOptions) -> ImageDataset:
    """Return a blank train split with all images that could be held out. Print nothing.

    Raises:
        UserError: as `prepare_folder`, but no image is opened.
    """
    train = list_train_files(options)
    return make_blank_split(image_size(options), train.labels, train.classes)


def image_size(options: DataOptions) -> int:
    """Return the side of the views in pixels."""
    return options.image_size or FOLDER_IMAGE_SIZE


def stored_side(options: DataOptions) -> int:
    """Return the largest shorter side of the images in a cache."""
    return options.stored_side or 2 * image_size(options)
