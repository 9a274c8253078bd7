"""Accuracy in all and by class; the rank of features."""

import torch
from torch import Tensor

from utils import distributed
from utils.console import MANY_CLASSES, print_table


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(C, C) counts: row the true class, column the predicted one."""
    return (
        (truth * classes + predicted).bincount(minlength=classes**2).reshape(classes, classes).cpu()
    )


def accuracy(counts: Tensor) -> float:
    """Top-1 in percent, of a confusion matrix."""
    return 100 * counts.diagonal().sum().item() / counts.sum().item()


def per_class(counts: Tensor, classes: tuple[str, ...]) -> dict[str, float | None]:
    """Top-1 of each class in percent; None for a class without a test image."""
    right, total = counts.diagonal().tolist(), counts.sum(dim=1).tolist()
    return {
        name: 100 * r / n if n else None for name, r, n in zip(classes, right, total, strict=True)
    }


def print_classes(accuracies: dict[str, float | None]) -> None:
    """The accuracy of each class, the best first; of many classes the extremes."""
    known = sorted(((a, name) for name, a in accuracies.items() if a is not None), reverse=True)
    shown = known if len(known) <= MANY_CLASSES else [*known[:5], *known[-5:]]
    title = "each class" if shown == known else "the five best and the five worst classes"
    print_table(title, ("class", "accuracy %"), [(name, f"{a:.2f}") for a, name in shown])


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): the effective rank of features (N, F), 1 to F.

    The exponential of the entropy of the singular values, which come from F x F inner products in float64. With several
    processes, of the rows of all. A figure of quality that needs no labels: of two runs on the same images, the one of
    higher rank usually does better; near 1 is collapse. NaN for features that are not finite.
    """
    wide = features.double()
    products = distributed.all_reduce_mean(wide.T @ wide)
    if not products.isfinite().all():
        return float("nan")
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    p = singular / singular.sum() + 1e-7
    return float((-(p * p.log()).sum()).exp())
