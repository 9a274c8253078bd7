"""A data set of arrays in an .npz file, with names as Keras or MedMNIST have them.

| names | images to train on | their labels | images to test on | their labels |
|---|---|---|---|---|
| Keras | x_train | y_train | x_val, else x_test | y_val, else y_test |
| MedMNIST | train_images | train_labels | val_images, else test_images | val_labels, ... |

Only the images to train on must be there. Images are uint8, (N, S, S, 3), (N, 3, S, S) or grey
(N, S, S). Labels are whole numbers, (N,) or (N, 1). The array `classes` may hold names (C,): label
i is called classes[i].
"""

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from simsiam.config.options import DataOptions
from simsiam.data.dataset import (
    ImageDataset,
    Splits,
    name_class,
    take_first,
    warn_of_low_contrast,
)
from simsiam.data.images import PixelRange, scale_pixels
from utils import distributed
from utils.console import print_line
from utils.errors import UserError, require
from utils.text import printable

STYLES = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))  # names of a split's images and labels
TEST_SPLITS = ("val", "test")  # the first one that is there is used
NAMES = "classes"
MAX_LISTED = 10  # most names of arrays in a line
SCALED_AT_ONCE = 1000  # images: scaling makes float32 of them


class ArrayNames(NamedTuple):
    """The names of the arrays that make up a data set; those of labels may be missing."""

    train: str
    train_labels: str
    test: str | None
    test_labels: str | None


def load_arrays(options: DataOptions) -> Splits:
    """Return both splits, without running anything that the file contains.

    Rank 0 prints which arrays are used.
    """
    file = options.path
    where = printable(file)
    require(file.is_file(), f"--data-dir {where}: no such file; --dataset arrays wants an .npz")
    with open(file, "rb") as content, _explain_damage(where):
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        # For other files numpy would advise to load them as a pickle.
        require(zipfile.is_zipfile(content), f"{where}: not an .npz file (no zip archive)")
        content.seek(0)
        with np.load(content, allow_pickle=False) as opened:
            names = find_arrays(opened.files, where)
            arrays: dict[str, np.ndarray] = {}
            unused: list[str] = []
            for name in map(str, opened.files):
                if name in (*names, NAMES):
                    arrays[name] = opened[name]
                else:
                    unused.append(name)
    if distributed.rank() == 0:
        _announce_arrays(where, names, unused)

    train_images = _read_images(where, names.train, arrays, options.pixel_limits)
    require(len(train_images) > 0, f"{where}: {names.train} has no image")
    train_labels = _read_labels(where, names.train_labels, arrays, len(train_images))
    test_images = train_images[:0]
    if names.test is not None:
        test_images = _read_images(where, names.test, arrays, options.pixel_limits)
    test_labels = None
    if train_labels is not None:  # labels of the test images alone are of no use
        test_labels = _read_labels(where, names.test_labels, arrays, len(test_images))
    labels = (train_labels, test_labels)
    classes, (train_labels, test_labels) = _number_classes(where, names, arrays, labels)
    train = _make_dataset(train_images, train_labels, classes, digest)
    test = _make_dataset(test_images, test_labels, classes, digest)
    sides = f"{names.train} is {train.side} pixels wide, {names.test} {test.side}"
    require(train.side == test.side, f"{where}: {sides}")
    if distributed.rank() == 0:
        warn_of_low_contrast(train.images, where, options.pixel_limits)
    return take_first(options, train, test)


@contextmanager
def _explain_damage(where: str) -> Iterator[None]:
    """Turn whatever numpy and zipfile raise for damaged files into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: not an .npz file of plain arrays ({reason})") from None


def find_arrays(there: Sequence[str], where: str) -> ArrayNames:
    """Choose the arrays to train and to test on among the names of those in a file.

    Raises:
        UserError: if there are none to train on.
    """
    train = _find_split("train", there)
    if train is None:
        wanted = " or ".join(images.format("train") for images, _ in STYLES)
        listed = _list_names(there) or "no arrays"
        raise UserError(f"{where}: no {wanted} in it; there are {listed}")
    for split in TEST_SPLITS:
        test = _find_split(split, there)
        if test is not None:
            return ArrayNames(*train, *test)
    return ArrayNames(*train, None, None)


def _find_split(split: str, there: Sequence[str]) -> tuple[str, str] | None:
    """Return the names of a split's images and labels, if the images are there."""
    for images, labels in STYLES:
        if images.format(split) in there:
            return images.format(split), labels.format(split)
    return None


def _announce_arrays(where: str, names: ArrayNames, unused: Sequence[str]) -> None:
    usual = names.test is None or (names.train, names.test) == ("x_train", "x_test")
    if usual and not unused:
        return
    used = f"training on {names.train}"
    if names.test is not None:
        used += f", testing on {names.test}"
    if unused:
        used += f"; not used: {_list_names(unused)}"
    print_line(f"{where}: {used}")


def _list_names(names: Sequence[str]) -> str:
    listed = [printable(name) for name in names[:MAX_LISTED]]
    if len(names) > MAX_LISTED:
        listed.append("...")
    return ", ".join(listed)


def _make_dataset(
    images: torch.Tensor, labels: np.ndarray | None, classes: tuple[str, ...], digest: str
) -> ImageDataset:
    """Return a split, with the label -1 if there are no labels."""
    numbers = torch.full((len(images),), -1) if labels is None else torch.from_numpy(labels)
    return ImageDataset(images, numbers, classes, digest=digest)


def _read_images(
    where: str,
    name: str,
    arrays: dict[str, np.ndarray],
    pixel_range: PixelRange,
) -> torch.Tensor:
    """Return images (N, 3, S, S) uint8."""
    x = arrays[name]
    if pixel_range and x.dtype.kind in "uif" and (x.dtype != np.uint8 or pixel_range[1] < 256):
        scaled = np.empty(x.shape, np.uint8)
        for start in range(0, len(x), SCALED_AT_ONCE):
            some = slice(start, start + SCALED_AT_ONCE)
            scaled[some] = scale_pixels(x[some], pixel_range)
        x = scaled
    advice = "images are uint8, 0 to 255; --pixel-range LOW:HIGH scales others"
    require(x.dtype == np.uint8, f"{where}: {name} is {x.dtype}: {advice}")
    images = torch.from_numpy(x)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    shape = images.shape
    right = len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 0
    shapes = "(N, S, S, 3), (N, 3, S, S) or (N, S, S) are images"
    require(right, f"{where}: {name} has shape {x.shape}: {shapes}")
    return images.expand(-1, 3, -1, -1).contiguous()


def _read_labels(
    where: str,
    name: str | None,
    arrays: dict[str, np.ndarray],
    n: int,
) -> np.ndarray | None:
    """Return labels (N,) int64, or None if there are none of use."""
    if name is None or name not in arrays:
        return None
    y = arrays[name]
    require(y.dtype.kind in "iu", f"{where}: {name} is {y.dtype}: labels are whole numbers")
    if y.ndim == 2 and y.shape[0] == n and y.shape[1] > 1:
        if distributed.rank() == 0:
            several = f"{name} has {y.shape[1]} labels for each image, where one can be used"
            print_line(f"{where}: {several}: the images are taken without labels")
        return None
    if y.ndim == 2 and y.shape[1] == 1:  # as Keras and MedMNIST have them
        y = y[:, 0]
    require(y.shape == (n,), f"{where}: {name} has shape {y.shape}, for {n} images")
    low = int(y.min(initial=0))
    high = int(y.max(initial=0))
    limits = f"{name} goes from {low} to {high}: labels count from 0, up to 2^63 - 1"
    require(0 <= low <= high < 2**63, f"{where}: {limits}")
    return y.astype(np.int64)


Labels = tuple[np.ndarray | None, np.ndarray | None]  # of the train and the test images


def _number_classes(
    where: str, names: ArrayNames, arrays: dict[str, np.ndarray], labels: Labels
) -> tuple[tuple[str, ...], Labels]:
    """Return the names of the classes that occur, and the labels as indices of these names."""
    train, test = labels
    if train is None:
        return (), labels
    occurring, train = np.unique(train, return_inverse=True)
    if test is not None:
        strange = np.setdiff1d(test, occurring)
        unknown = f"label {strange[:1].tolist()} of {names.test_labels}"
        require(len(strange) == 0, f"{where}: {unknown} is not in {names.train_labels}")
        test = np.searchsorted(occurring, test)
    if NAMES not in arrays:
        return tuple(map(str, occurring)), (train, test)
    given = arrays[NAMES]
    text = given.dtype.kind == "U" and given.ndim == 1
    require(text, f"{where}: {NAMES} are {given.dtype}: names are text, (C,)")
    highest = int(occurring[-1])
    count = f"the labels go to {highest}, and {NAMES} has {len(given)} names"
    require(highest < len(given), f"{where}: {count}")
    classes = tuple(name_class(name) for name in given[occurring].tolist())
    twice = [name for name, n in Counter(classes).items() if n > 1]
    require(not twice, f"{where}: {NAMES} has the name {twice[:1]} more than once")
    return classes, (train, test)
