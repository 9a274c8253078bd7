"""Find out whether the labels of a data set allow to measure kNN accuracy, and how."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from simsiam.data.dataset import ImageDataset
from simsiam.data.spread import evenly_spaced, staggered

RANKME_IMAGES = 25_600  # as in the paper of RankMe (arXiv 2210.02885)

# At most this many train images are compared with each other. RankMe needs their features anyway.
MAX_COMPARED_TRAIN_IMAGES = RANKME_IMAGES


@dataclass(frozen=True)
class Comparison:
    """The images whose kNN accuracy is measured, and those that they are compared with.

    Attributes:
        split: has the images that are classified.
        indices: (Q,) int64, which of its images these are. All of them have a label.
        name: what messages call them, in the plural.
        leave_one_out: whether each of them is compared with the other ones. If not, it is compared
            with all train images.
    """

    split: ImageDataset
    indices: Tensor
    name: str
    leave_one_out: bool

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """(Q,) int64."""
        return self.split.labels[self.indices]

    def read_chunks(self, size: int) -> Iterator[Tensor]:
        """Yield the images that are classified in chunks of at most `size`, (B, 3, C, C) uint8."""
        for indices in self.indices.split(size):
            yield self.split.images_at(indices)


def choose_comparison(train: ImageDataset, test: ImageDataset) -> Comparison | None:
    """Return which images kNN compares; None if there are too few labels.

    Test images are compared with the train images, if these have labels. If only one of the splits
    has labels, its images are compared with each other (leave-one-out). No split needs a label for
    each image; images without one are left out. Train images are compared with each other only if
    no test image has a label, since they have been trained on, though without their labels.
    """
    test_indices = test.labelled_indices
    if train.labelled and len(test_indices) > 0:
        return Comparison(test, test_indices, test.evaluation_name, leave_one_out=False)
    if can_leave_one_out(test):
        return Comparison(test, test_indices, test.evaluation_name, leave_one_out=True)
    if not can_leave_one_out(train):
        return None
    indices = train.labelled_indices
    if len(indices) > MAX_COMPARED_TRAIN_IMAGES:
        indices = indices[staggered(MAX_COMPARED_TRAIN_IMAGES, len(indices))]
    return Comparison(train, indices, "train images", leave_one_out=True)


def describe_leave_one_out(
    comparison: Comparison, train: ImageDataset, test: ImageDataset
) -> list[str]:
    """Return the lines about images whose kNN accuracy is measured among themselves."""
    if comparison.split is test:
        has_some = len(train.labelled_indices) > 0
        reason = f"no labels of {'some' if has_some else 'the'} train images"
    elif len(test) == 0:
        reason = "no test images"
    elif len(test.labelled_indices) == 0:
        reason = "no labels of the test images"
    else:
        reason = f"{test.evaluation_name} of one class only"
    labelled = f"{len(comparison):,}"
    if len(comparison) < len(comparison.split.labelled_indices):
        labelled += " of the"
    return [
        f"{reason}: kNN is leave-one-out among",
        f"{labelled} {comparison.name} with labels",
    ]


def can_leave_one_out(split: ImageDataset) -> bool:
    """Return whether the labelled images of a split can be compared with each other.

    They are of at least two classes, of which at least one has two images.
    """
    labels = split.labels[split.labelled_indices]
    return 1 < len(labels.unique()) < len(labels)


def knn_unavailable_reason(train: ImageDataset, test: ImageDataset) -> str | None:
    """Return why kNN accuracy cannot be measured on these splits, or None if it can."""
    if choose_comparison(train, test) is not None:
        return None
    num_classes = [len(split.labels[split.labelled_indices].unique()) for split in (train, test)]
    if max(num_classes) == 0:
        return "no labels"
    return "one class only" if max(num_classes) == 1 else "no class has two images"


def classifier_unavailable_reason(train: ImageDataset, test: ImageDataset) -> str | None:
    """Return why no classifier can be trained and tested on these splits, or None if it can."""
    if len(train.classes) == 1:
        return "one class only"
    if not train.labelled:
        has_some = len(train.labelled_indices) > 0
        return "no labels of some train images" if has_some else "no labels of the train images"
    if len(test) == 0:
        return "no test images"
    if len(test.labelled_indices) == 0:
        return f"no labels of the {test.evaluation_name}"
    return None


def choose_bank(train: ImageDataset, comparison: Comparison | None) -> Tensor | None:
    """Return the indices of the train images that a measurement needs; None for all.

    RankMe needs no more than RANKME_IMAGES of them. kNN needs all, if it compares with them.

    Args:
        comparison: what `choose_comparison` has chosen.
    """
    if comparison is not None and not comparison.leave_one_out:
        return None
    if len(train) <= RANKME_IMAGES:
        return None
    if comparison is not None and is_in_bank(comparison, train):
        return comparison.indices
    return evenly_spaced(RANKME_IMAGES, len(train))


def is_in_bank(comparison: Comparison, train: ImageDataset) -> bool:
    """Return whether the images that are classified are those that `choose_bank` chooses."""
    return comparison.split is train and train.labelled


def count_measured_images(train: ImageDataset, test: ImageDataset) -> int:
    """Return how many images a measurement of kNN and RankMe reads."""
    comparison = choose_comparison(train, test)
    bank = choose_bank(train, comparison)
    count = len(train) if bank is None else len(bank)
    if comparison is not None and not is_in_bank(comparison, train):
        count += len(comparison)
    return count
