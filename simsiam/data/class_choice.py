"""Choose the classes of a data set from the labels of its train and of its test images."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils import distributed
from utils.console import format_count, print_line

MAX_LISTED_CLASSES = 3  # unknown classes that a message names


class SplitLabels(NamedTuple):
    """The labels of a split, as they are given.

    Attributes:
        source: what messages call the split.
        classes: the names of its classes.
        labels: (N,) int64, indices into `classes`, or -1 for an image without a label.
        unlabelled: what messages say of images without a label.
    """

    source: str
    classes: tuple[str, ...]
    labels: Tensor
    unlabelled: str = "have no label"

    @property
    def num_unlabelled(self) -> int:
        return int((self.labels < 0).sum())


class CommonLabels(NamedTuple):
    """Labels of both splits, as indices into the same classes, or -1.

    Attributes:
        classes: the names of the classes.
        train, test: (N,) int64.
    """

    classes: tuple[str, ...]
    train: Tensor
    test: Tensor


def unify_labels(train: SplitLabels, test: SplitLabels) -> CommonLabels:
    """Label both splits by the same classes. Print which labels are not used.

    The classes are those of the train images, unless test images have better labels: these are of
    at least two classes, and some train images have no label, all are of one class, or no test
    image has one of their classes. Then the classes are those of the test images, and the labels of
    the train images are not used. A single class of only a part of the train images is not used
    either.

    Args:
        test: has no labels if there are no test images.
    """
    problem = ""
    if train.classes and train.num_unlabelled > 0:
        problem = f"{train.num_unlabelled} of {len(train.labels)} images {train.unlabelled}"
    elif len(train.classes) == 1:
        problem = f"all images are of the class {train.classes[0]}"
    elif train.classes and test.classes and not set(test.classes) & set(train.classes):
        problem = "none of its classes is among those of the test images"
    is_useful = len(train.classes) > 0 and not problem

    if not is_useful and len(test.classes) > 1:
        if problem:
            _print_once(f"{train.source}: {problem}. The labels of its images are not used.")
        _print_unlabelled(test)
        return CommonLabels(test.classes, torch.full_like(train.labels, -1), test.labels)

    classes = train.classes
    if train.classes and train.num_unlabelled > 0:
        if len(train.classes) == 1:
            _print_once(f"{train.source}: {problem}. The images are used without labels.")
            classes = ()
        else:
            _print_once(f"{train.source}: {problem}. They are trained on, but left out of kNN.")
    if classes and test.classes:
        _print_unknown(test, train)
        _print_unlabelled(test)
    return CommonLabels(classes, index_labels(train, classes), index_labels(test, classes))


def _print_unknown(test: SplitLabels, train: SplitLabels) -> None:
    """Print how many test images have a class that the train images do not have."""
    unknown = [i for i, name in enumerate(test.classes) if name not in set(train.classes)]
    if not unknown:
        return
    num_images = int(torch.isin(test.labels, torch.tensor(unknown)).sum())
    listed = ", ".join(test.classes[i] for i in unknown[:MAX_LISTED_CLASSES])
    if len(unknown) > MAX_LISTED_CLASSES:
        listed += ", ..."
    _print_once(
        f"{test.source}: left out of kNN {format_count(num_images, 'image')} of "
        f"{format_count(len(unknown), 'class')} ({listed}) that the train images do not have"
    )


def _print_unlabelled(test: SplitLabels) -> None:
    if test.num_unlabelled > 0:
        images = format_count(test.num_unlabelled, "image")
        _print_once(f"{test.source}: left out of kNN {images} without a label")


def index_labels(split: SplitLabels, classes: tuple[str, ...]) -> Tensor:
    """Return labels (N,) int64 as indices into `classes`, or -1 for classes that are not in it."""
    index_of_class = {name: i for i, name in enumerate(classes)}
    new_labels = [index_of_class.get(name, -1) for name in split.classes]
    new_labels.append(-1)  # The old label -1 indexes this last entry, so it stays -1.
    return torch.tensor(new_labels)[split.labels]


def _print_once(line: str) -> None:
    """Print a line in the first of the processes, of which each may load the labels."""
    if distributed.rank() == 0:
        print_line(line)
