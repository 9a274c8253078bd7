"""Choose the command that the end of a run advises."""

from simsiam.config.evaluation_options import NeighboursOptions
from simsiam.config.linear_options import LinearOptions
from simsiam.data.dataset import ImageDataset
from simsiam.data.knn_labels import choose_comparison, classifier_unavailable_reason


def choose_next_command(train: ImageDataset, test: ImageDataset) -> str:
    """Return the command to evaluate a finished run with, which can run on these images."""
    has_labels = classifier_unavailable_reason(train, test) is None
    if has_labels and 0 < round(LinearOptions.held_out * len(train)) < len(train):
        return "linear"
    comparison = choose_comparison(train, test)
    if comparison is not None and comparison.leave_one_out:
        return "knn"
    # Without test images, the queries are train images, and none is its own neighbour.
    candidates = len(train) if len(test) > 0 else len(train) - 1
    if candidates >= NeighboursOptions.k:
        return "neighbours"
    return "embed"
