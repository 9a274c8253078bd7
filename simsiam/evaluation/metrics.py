"""Accuracy in total and of each class, and the effective rank of features."""

import torch
from torch import Tensor

from utils import distributed
from utils.console import MANY_CLASSES, print_table

EXTREMES = 5  # of many classes, this many of the best and of the worst are printed
# The confusion matrix of more classes is not saved: that of 10,000 would take a gigabyte.
MAX_CONFUSION_CLASSES = 1000


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix (C, C): rows are true classes, columns predicted classes.

    Args:
        predicted, truth: (N,) int64 in 0 .. C - 1.
        classes: C.
    """
    cells = truth * classes + predicted
    counts = cells.bincount(minlength=classes**2)
    return counts.reshape(classes, classes).cpu()


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Return the top-1 accuracy of predicted classes (N,), in percent."""
    return 100 * (predicted == truth).sum().item() / len(truth)


def top_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return how often the true class is among the k most probable ones, in percent.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    best = logits.topk(k, dim=1).indices
    return 100 * (best == labels[:, None]).any(dim=1).float().mean().item()


def per_class(
    predicted: Tensor, truth: Tensor, classes: tuple[str, ...]
) -> dict[str, float | None]:
    """Return the accuracy of each class in percent; None for a class without a test image."""
    correct = truth[predicted == truth].bincount(minlength=len(classes)).tolist()
    total = truth.bincount(minlength=len(classes)).tolist()
    accuracies: dict[str, float | None] = {}
    for i, name in enumerate(classes):
        accuracies[name] = 100 * correct[i] / total[i] if total[i] else None
    return accuracies


def print_classes(accuracies: dict[str, float | None], classifier: str) -> None:
    """Print the accuracy of each class, best first. Of many classes, print the best and worst.

    Args:
        accuracies: in percent, by class; None for a class without a test image.
        classifier: names in the title what was measured, such as "kNN, k 200, T 0.1".
    """
    measured = [(value, name) for name, value in accuracies.items() if value is not None]
    ranking = sorted(measured, reverse=True)
    if len(ranking) <= MANY_CLASSES:
        title = "each class"
    else:
        title = f"the {EXTREMES} best and the {EXTREMES} worst classes"
        ranking = ranking[:EXTREMES] + ranking[-EXTREMES:]
    rows = [(name, f"{value:.2f}") for value, name in ranking]
    print_table(f"{title}, by {classifier}", ("class", "accuracy %"), rows)


def rankme(features: Tensor) -> float:
    """Return RankMe, the effective rank of features (Garrido et al. 2023, arXiv 2210.02885).

    RankMe is a measure of quality that needs no labels. Of two runs on the same images, the run
    of higher rank is usually better. A rank near 1 is a collapse.

    It is the exponential of the entropy of the singular values. They are computed from F x F inner
    products in float64, which are averaged over all processes.

    Args:
        features: (N, F); with several processes the rows of this process.

    Returns:
        The rank, in 1 .. F; NaN for features that are not finite.
    """
    features = features.double()
    products = distributed.all_reduce_mean(features.T @ features)
    if not products.isfinite().all():
        return float("nan")
    singular_values = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    p = singular_values / singular_values.sum() + 1e-7
    entropy = -(p * p.log()).sum()
    return float(entropy.exp())
