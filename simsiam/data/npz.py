"""Load a data set of arrays in an .npz file, with the names of Keras or of MedMNIST.

| names | train images | their labels | test images | their labels |
|---|---|---|---|---|
| Keras | x_train | y_train | x_val, else x_test | y_val, else y_test |
| MedMNIST | train_images | train_labels | val_images, else test_images | val_labels, ... |

Only the train images are required. Images are uint8 of shape (N, S, S, 3), (N, 3, S, S) or, if they
are grey, (N, S, S). Labels are whole numbers of shape (N,) or (N, 1). The array `classes` (C,) may
hold names: label i has the name classes[i].
"""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from simsiam.config.options import DataOptions
from simsiam.data.array_conversion import (
    CLASSES_ARRAY,
    convert_images,
    convert_labels,
    name_classes,
)
from simsiam.data.class_choice import SplitLabels, unify_labels
from simsiam.data.dataset import ImageDataset, Splits, take_first
from simsiam.data.listing.list_file import LIST_SUFFIXES
from simsiam.data.pixel_range import warn_of_low_contrast
from utils import distributed
from utils.console import print_line
from utils.errors import UserError, require
from utils.text import printable

# Names of the images and of the labels of a split: those of Keras, then those of MedMNIST.
NAME_PATTERNS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
TEST_SPLITS = ("val", "test")  # in the order of preference
MAX_LISTED_ARRAYS = 10  # names of arrays in a message
MAX_REASON_LENGTH = 200  # letters that are shown of numpy's own messages


class ArrayNames(NamedTuple):
    """The names of the arrays of a data set. The file may lack the arrays of labels."""

    train: str
    train_labels: str
    test: str | None
    test_labels: str | None


def load_arrays(options: DataOptions) -> Splits:
    """Return the train and the test split. Rank 0 prints which arrays are used.

    The file may contain pickled code. It is refused, and never run.

    Raises:
        UserError: if the file or an array in it is not as the module's docstring says.
    """
    file = options.path
    where = printable(file)
    require(
        not file.is_dir(),
        f"--data-dir {where} is a folder, but --dataset arrays reads an .npz file. "
        "Pass --dataset folder for a folder of images.",
    )
    require(
        file.is_file(), f"--data-dir {where}: no such file. --dataset arrays needs an .npz file."
    )
    require(
        file.suffix.lower() not in LIST_SUFFIXES,
        f"--data-dir {where} is not an .npz file. Pass --dataset folder for a list of images.",
    )
    with open(file, "rb") as content, _explain_damage(where):
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        # Without this check numpy would advise to load other files as pickles.
        require(zipfile.is_zipfile(content), f"{where} is not an .npz file (no zip archive).")
        content.seek(0)
        with np.load(content, allow_pickle=False) as opened:
            available = [str(name) for name in opened.files]
            names = find_arrays(available, where)
            if options.test_images == 0:
                names = names._replace(test=None, test_labels=None)
            arrays: dict[str, np.ndarray] = {}
            unused: list[str] = []
            for name in available:
                if name in (*names, CLASSES_ARRAY):
                    arrays[name] = opened[name]
                else:
                    unused.append(name)
    if distributed.rank() == 0:
        _print_used_arrays(where, names, unused)

    # Convert the images.
    conversion = options.conversion
    train_images = convert_images(where, names.train, arrays[names.train], conversion)
    require(len(train_images) > 0, f"{where}: {names.train} has no image.")
    test_images = train_images[:0]
    if names.test is not None:
        test_images = convert_images(where, names.test, arrays[names.test], conversion)
    train_side = train_images.shape[-1]
    test_side = test_images.shape[-1]
    require(
        train_side == test_side,
        f"{where}: the images of {names.train} are {train_side} pixels wide, but those of "
        f"{names.test} {test_side}.",
    )

    # Only labels that occur are classes.
    labels = unify_labels(
        _read_labels(arrays, names.train_labels, len(train_images), where),
        _read_labels(arrays, names.test_labels, len(test_images), where),
    )
    train = ImageDataset(train_images, labels.train, labels.classes, digest=digest)
    test = ImageDataset(test_images, labels.test, labels.classes, digest=digest)
    if distributed.rank() == 0:
        warn_of_low_contrast(train.images, where, conversion.pixel_range)
    return take_first(options, train, test)


def _read_labels(
    arrays: dict[str, np.ndarray], name: str | None, num_images: int, where: str
) -> SplitLabels:
    """Return the labels of a split, without classes if the file has none."""
    file_labels = None
    if name is not None and name in arrays:
        file_labels = convert_labels(where, name, arrays[name], num_images)
    if file_labels is None:
        return SplitLabels(f"{where}: {name}", (), torch.full((num_images,), -1))
    occurring = np.unique(file_labels)
    classes = name_classes(where, arrays.get(CLASSES_ARRAY), occurring)
    indices = torch.from_numpy(np.searchsorted(occurring, file_labels))
    return SplitLabels(f"{where}: {name}", classes, indices)


@contextmanager
def _explain_damage(where: str) -> Iterator[None]:
    """Turn an exception that numpy or zipfile raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise  # It has its own message already.
    except Exception as error:  # noqa: BLE001  (numpy and zipfile raise any)
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
        raise UserError(f"{where} is not an .npz file of plain arrays ({reason}).") from None


def find_arrays(available: Sequence[str], where: str) -> ArrayNames:
    """Choose the arrays of the train and the test split by their names.

    Args:
        available: the names of all arrays in the file.
        where: the name of the file, for error messages.

    Raises:
        UserError: if there are no train images.
    """
    train = _find_split("train", available)
    if train is None:
        expected = " or ".join(images.format("train") for images, _ in NAME_PATTERNS)
        listed = _list_names(available) or "no arrays"
        raise UserError(f"{where}: no {expected} in it; there are {listed}.")
    for split in TEST_SPLITS:
        test = _find_split(split, available)
        if test is not None:
            return ArrayNames(*train, *test)
    return ArrayNames(*train, test=None, test_labels=None)


def _find_split(split: str, available: Sequence[str]) -> tuple[str, str] | None:
    """Return the names of a split's images and labels, or None if there are no images."""
    for images_pattern, labels_pattern in NAME_PATTERNS:
        images = images_pattern.format(split)
        if images in available:
            return images, labels_pattern.format(split)
    return None


def _print_used_arrays(where: str, names: ArrayNames, unused: Sequence[str]) -> None:
    """Print which arrays are used, and which are not.

    If all are used, nothing is printed for x_train and x_test, or for train images alone.
    """
    if names.test is None:
        is_obvious = True
    else:
        is_obvious = names.train == "x_train" and names.test == "x_test"
    if is_obvious and not unused:
        return
    message = f"training on {names.train}"
    if names.test is not None:
        message += f", testing on {names.test}"
    if unused:
        message += f"; not used: {_list_names(unused)}"
    print_line(f"{where}: {message}")


def _list_names(names: Sequence[str]) -> str:
    listed = [printable(name) for name in names[:MAX_LISTED_ARRAYS]]
    if len(names) > MAX_LISTED_ARRAYS:
        listed.append("...")
    return ", ".join(listed)
