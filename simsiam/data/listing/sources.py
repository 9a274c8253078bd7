"""List the image files of the train and of the test split, from a folder or from a list."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simsiam.config.options import DataOptions
from simsiam.config.split_names import TEST_NAMES, TRAIN_NAMES, choose_splits
from simsiam.data.class_choice import SplitLabels, index_labels, unify_labels
from simsiam.data.held_out import choose_held_out
from simsiam.data.listing.folder import ImageFolder
from simsiam.data.listing.image_list import ImageList
from simsiam.data.listing.list_file import ListFile
from simsiam.data.listing.split_folders import find_split_folders, print_splits
from simsiam.data.spread import evenly_spaced
from utils.console import format_count
from utils.errors import require
from utils.text import printable


class ListedSplits(NamedTuple):
    """The image files of the train and the test split, labelled by the same classes.

    Attributes:
        root: a folder that is or contains the `root` of each split.
        source: what messages call the data set: the folder, or the file with the list.
    """

    root: Path
    source: Path
    train: ImageList
    test: ImageList | None


def list_images(path: str | Path, flag: str) -> ImageList:
    """List the images of a folder, or of a .txt or a .csv, of whatever split.

    Args:
        flag: the option that named the path, for error messages.

    Raises:
        UserError: if there is nothing of the kind, or no image in it.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return ListFile(path, flag)
    return ImageFolder(path, flag)


def list_splits(options: DataOptions) -> ListedSplits:
    """List the images of both splits and label them. Print which folders and files are left out.

    Raises:
        UserError: if there are no train images, or fewer than the options ask for.
    """
    with_test = options.held_out_images == 0 and options.test_images != 0
    splits = _find_splits(options, with_test, report=True)
    train = splits.train
    test = splits.test
    if test is not None:
        test = _spread_evenly(test, options.test_images, "--test-images")
    if options.held_out_images > 0:
        train, test = _hold_out(train, options.held_out_images)
    return splits._replace(train=train, test=test)


def list_train(options: DataOptions) -> ImageList:
    """List and label the train images, those that would be held out included. Print nothing.

    Raises:
        UserError: as `list_splits`.
    """
    return _find_splits(options, with_test=False, report=False).train


# ---------------------------------------------------------------- finding the splits


def _find_splits(options: DataOptions, with_test: bool, report: bool) -> ListedSplits:
    """List the images of both splits, as many train images as the options ask for.

    Args:
        with_test: whether to list test images.
        report: whether to print what is left out.
    """
    path = Path(os.path.abspath(options.path))
    if path.is_file():
        splits = _split_list(path, with_test, report)
    else:
        splits = _split_folder(path, with_test, report)
    _unify(splits.train, splits.test)
    train = _spread_evenly(splits.train, options.train_images, "--train-images")
    return splits._replace(train=train)


def _split_folder(root: Path, with_test: bool, report: bool) -> ListedSplits:
    """List the images in the sub-folders of the splits, such as train/ and val/."""
    split_folders = find_split_folders(root, with_test)
    train = ImageFolder(split_folders.train, "--data-dir")
    test = None
    test_name = None
    if split_folders.test is not None:
        test = ImageFolder(split_folders.test, "--data-dir")
        test_name = f"{split_folders.test.name}/"

    if split_folders.train == root:  # There is no train/.
        _check_no_class_is_a_split(train)
    if report:
        print_splits(root, f"{split_folders.train.name}/", test_name, split_folders.unused)
        train.report_skipped()
        if test is not None:
            test.report_skipped()
    return ListedSplits(root, root, train, test)


def _check_no_class_is_a_split(train: ImageFolder) -> None:
    """Raise UserError if a folder of test images, such as val/, would be taken for a class."""
    split_names = [name for name in train.classes if name.lower() in TEST_NAMES]
    require(
        not split_names,
        f"{', '.join(split_names)} in {printable(train.root)} looks like a split, not a class, "
        "but there is no train/. Move the images to train on into train/, or rename the class.",
    )


def _split_list(path: Path, with_test: bool, report: bool) -> ListedSplits:
    """Split the images of a list by its column `split`. Without the column, train on all."""
    images = ListFile(path, "--data-dir")
    where = f"--data-dir {printable(path)}"
    names = images.split_names
    if names == ("",):
        if report:
            images.report_skipped()
        return ListedSplits(images.root, path, images, None)

    for name in names:
        require(
            name in TRAIN_NAMES + TEST_NAMES,
            f"{where}: the column split has {printable(name)!r}, but takes train, val or test.",
        )
    train_name, test_name = choose_splits(names, with_test)
    require(train_name is not None, f"{where}: no image in it has the split train.")
    assert train_name is not None

    unused = []
    for name in names:
        if name not in (train_name, test_name):
            num_images = len(_indices_of_split(images, name))
            unused.append(f"{format_count(num_images, 'image')} of {name}")
    if report:
        print_splits(path, train_name, test_name, unused)
        images.report_skipped()
    test = None
    if test_name is not None:
        test = _select_split(images, test_name)
    return ListedSplits(images.root, path, _select_split(images, train_name), test)


def _select_split(images: ListFile, name: str) -> ImageList:
    """Return the images of a split, with the classes that occur among them."""
    selected = images.subset(_indices_of_split(images, name))
    occurring = selected.labels[selected.labels >= 0].unique().tolist()
    classes = tuple(selected.classes[i] for i in occurring)
    selected.labels = index_labels(_labels_of(selected), classes)
    selected.classes = classes
    selected.title = f"{selected.title} ({name})"
    return selected


def _indices_of_split(images: ListFile, name: str) -> Tensor:
    return (images.splits == images.split_names.index(name)).nonzero().flatten()


# ---------------------------------------------------------------- labels and parts


def _unify(train: ImageList, test: ImageList | None) -> None:
    """Label both splits by the same classes."""
    test_labels = SplitLabels("", (), torch.empty(0, dtype=torch.int64))
    if test is not None:
        test_labels = _labels_of(test)
    common = unify_labels(_labels_of(train), test_labels)
    train.labels = common.train
    train.classes = common.classes
    if test is not None:
        test.labels = common.test
        test.classes = common.classes


def _labels_of(images: ImageList) -> SplitLabels:
    return SplitLabels(images.title, images.classes, images.labels, images.unlabelled)


def _spread_evenly(images: ImageList, n: int | None, flag: str) -> ImageList:
    """Return n images, spread evenly over the list, or all images if n is None."""
    if n is None:
        return images
    total = len(images)
    require(
        n <= total, f"{flag} {n} is more than the {total} images in {printable(images.source)}."
    )
    return images.subset(evenly_spaced(n, total))


def _hold_out(train: ImageList, n: int) -> tuple[ImageList, ImageList]:
    """Split n images off the train images. They become the test images."""
    held_out = choose_held_out(train.labels, n)
    is_remaining = torch.ones(len(train), dtype=torch.bool)
    is_remaining[held_out] = False
    return train.subset(is_remaining.nonzero().flatten()), train.subset(held_out)
