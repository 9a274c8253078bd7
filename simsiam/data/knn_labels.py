"""Find out whether the labels of a data set allow to measure kNN accuracy, and how."""

from torch import Tensor

from simsiam.data.dataset import ImageDataset
from simsiam.data.spread import evenly_spaced

RANKME_IMAGES = 25_600  # as in the paper of RankMe (arXiv 2210.02885)


def knn_unavailable_reason(train: ImageDataset, test: ImageDataset) -> str | None:
    """Return why kNN accuracy cannot be measured on these splits, or None if it can.

    It is measured on the test images that have a label, see also `is_leave_one_out`.
    """
    if is_leave_one_out(train, test):
        return None
    if len(train.classes) == 1:
        return "one class only"
    if not train.labelled:
        return "no labels"
    if len(test) == 0:
        return "no test images"
    if len(test.labelled_indices) == 0:
        return f"no labels of the {test.evaluation_name}"
    return None


def classifier_unavailable_reason(train: ImageDataset, test: ImageDataset) -> str | None:
    """Return why no classifier can be trained and tested on these splits, or None if it can."""
    if is_leave_one_out(train, test):
        return "no labels of the train images"
    return knn_unavailable_reason(train, test)


def is_leave_one_out(train: ImageDataset, test: ImageDataset) -> bool:
    """Return whether kNN compares each test image with the other test images.

    It does so if the train images have no labels, but at least two test images have.
    """
    has_labels = len(test.classes) > 1 and len(test.labelled_indices) > 1
    return has_labels and not train.labelled


def choose_bank(train: ImageDataset, test: ImageDataset) -> Tensor | None:
    """Return the indices of the train images that a measurement needs; None for all.

    RankMe needs no more than RANKME_IMAGES of them. kNN needs all, if it compares with them.
    """
    compares_with_train = knn_unavailable_reason(train, test) is None
    if compares_with_train and not is_leave_one_out(train, test):
        return None
    if len(train) <= RANKME_IMAGES:
        return None
    return evenly_spaced(RANKME_IMAGES, len(train))


def count_measured_images(train: ImageDataset, test: ImageDataset) -> int:
    """Return how many images a measurement of kNN and RankMe reads."""
    bank = choose_bank(train, test)
    count = len(train) if bank is None else len(bank)
    if knn_unavailable_reason(train, test) is None:
        count += len(test.labelled_indices)
    return count
