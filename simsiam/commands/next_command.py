"""Choose the command that the end of a run advises."""

from simsiam.config.evaluation_options import LinearOptions, NeighboursOptions
from simsiam.data.dataset import ImageDataset, knn_unavailable_reason


def choose_next_command(train: ImageDataset, test: ImageDataset) -> str:
    """Return the command to evaluate a finished run with, which can run on these images."""
    has_labels = knn_unavailable_reason(train, test) is None
    if has_labels and 0 < round(LinearOptions.held_out * len(train)) < len(train):
        return "linear"
    # Without test images, the queries are train images, and none is its own neighbour.
    candidates = len(train) if len(test) > 0 else len(train) - 1
    if candidates >= NeighboursOptions.k:
        return "neighbours"
    return "embed"
