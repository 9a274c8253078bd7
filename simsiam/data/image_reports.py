"""Print what is special about the images of a folder or of a list."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simsiam.config.options import FOLDER_IMAGE_SIZE, DataOptions
from simsiam.data.cache.table import Index
from simsiam.data.dataset import make_blank_split
from simsiam.data.file_paths import FilePaths
from simsiam.data.files.cached_images import open_cache
from simsiam.data.files.notes_table import NotesTable
from simsiam.data.files.reading import DecodedImage, read_images
from simsiam.data.knn_labels import choose_comparison
from simsiam.data.listing.duplicates import describe_duplicates
from simsiam.data.listing.messages import warn_of_unused_bits
from simsiam.data.listing.sources import ListedSplits
from simsiam.data.pixel_range import warn_of_low_contrast
from utils.console import format_count, print_line
from utils.text import printable


def report_cached_images(
    options: DataOptions,
    splits: ListedSplits,
    files: FilePaths,
    index: Index,
    lines: np.ndarray,
    folder: Path,
) -> None:
    """Print warnings about decoded images, and what was done to those that are not plain RGB.

    Args:
        files: paths below `splits.root`, those of the train images first.
        index: of the cache in `folder`, which has all files.
        lines: (N,) int64, the line of each file.
    """
    readable = np.flatnonzero(~index.lines["failed"][lines])
    num_train = int((readable < len(splits.train)).sum())
    files = files.subset(torch.from_numpy(readable))
    lines = lines[readable]
    notes = index.notes(lines)
    # Warn of images that use few of the possible values. One of the two warnings is enough.
    has_warned = warn_of_unused_bits(notes, splits.source)
    if not has_warned:
        images, _ = open_cache(folder, index, lines)
        pixel_range = options.conversion.pixel_range
        warn_of_low_contrast(images, printable(splits.source), pixel_range)

    size = options.image_size or FOLDER_IMAGE_SIZE
    messages = notes.describe(size, options.conversion)
    test_name = "held-out images" if options.held_out_images > 0 else "test images"
    duplicates = describe_duplicates(
        files, index.lines["digest"][lines], num_train, test_name, _find_compared(splits)[readable]
    )
    if duplicates is not None:
        messages.append(duplicates)
    for message in messages:
        print_line(f"{printable(splits.source)}: {message}")


def _find_compared(splits: ListedSplits) -> np.ndarray:
    """Return which images (N,) bool kNN compares with each other (leave-one-out)."""
    classes = splits.train.classes
    train = make_blank_split(1, splits.train.labels, classes)
    test_labels = splits.train.labels[:0] if splits.test is None else splits.test.labels
    test = make_blank_split(1, test_labels, classes)
    is_compared = np.zeros(len(train) + len(test), np.bool_)
    comparison = choose_comparison(train, test)
    if comparison is not None and comparison.leave_one_out:
        start = len(train) if comparison.split is test else 0
        is_compared[start + comparison.indices.numpy()] = True
    return is_compared


def report_sample(options: DataOptions, splits: ListedSplits, sample: Sequence[str]) -> None:
    """Print the same for a few images of those that are decoded in each epoch.

    Files that cannot be read are left to the training, which names them.

    Args:
        sample: paths below `splits.root`.
    """
    size = options.image_size or FOLDER_IMAGE_SIZE
    decoded: list[DecodedImage] = []
    for chunk in read_images(splits.root, sample, size, options.conversion):
        decoded += [result for _, result in chunk if isinstance(result, DecodedImage)]
    if not decoded:
        return
    notes = NotesTable.of([image.notes for image in decoded])
    if not warn_of_unused_bits(notes, splits.source):
        pixels = torch.stack([image.pixels for image in decoded])
        warn_of_low_contrast(pixels, printable(splits.source), options.conversion.pixel_range)
    where = printable(splits.source)
    num_files = len(splits.train) + (len(splits.test) if splits.test is not None else 0)
    if num_files > len(decoded):
        where += f", {format_count(len(decoded), 'image')} looked at"
    for line in notes.describe(size, options.conversion):
        print_line(f"{where}: {line}")
