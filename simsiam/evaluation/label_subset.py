"""Choose the labelled images that fine-tuning uses: exact shares of every class."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from simsiam.evaluation.classifier import CHOICE_EPOCH
from utils.errors import require
from utils.philox import permutation


def compute_label_quotas(
    labels: Tensor, classes: tuple[str, ...], fraction: float, count: int | None
) -> list[int]:
    """Return how many labels each class keeps.

    Args:
        labels: (N,) int64 in 0 .. len(classes) - 1.
        classes: names of the classes.
        fraction: each class keeps this share of its labels. Not used if `count` is not None.
        count: number of labels, of which each class keeps an equal part.

    Returns:
        A quota for each class. Their sum is `count`, or `fraction` of all labels, rounded.

    Raises:
        UserError: a class would keep no label, or more than it has.
    """
    class_sizes = labels.bincount(minlength=len(classes)).tolist()
    if count is None:
        flag = f"--label-fraction {fraction:g}"
        ideal = [fraction * size for size in class_sizes]
        total = round(sum(ideal))
    else:
        flag = f"--label-count {count}"
        ideal = [count / len(class_sizes)] * len(class_sizes)
        total = count

    # Round down, and give the labels that remain to the classes with the largest remainders.
    quotas = [int(share) for share in ideal]
    by_remainder = sorted(range(len(ideal)), key=lambda c: quotas[c] - ideal[c])
    for c in by_remainder[: total - sum(quotas)]:
        quotas[c] += 1

    for name, quota, size in zip(classes, quotas, class_sizes, strict=True):
        require(quota >= 1, f"{flag} leaves class {name} without a label. Use more labels")
        require(
            quota <= size,
            f"{flag} asks for {quota} labels of class {name}, which has {size}. Use fewer labels",
        )
    return quotas


def choose_labels(labels: Tensor, quotas: Sequence[int], seed: int) -> Tensor:
    """Choose as many images of each class as its quota says.

    With the same seed, a larger quota includes the images of a smaller one.

    Args:
        labels: (N,) int64.
        quotas: for each class.
        seed: decides the choice.

    Returns:
        (n,) indices, ascending.
    """
    order = permutation(len(labels), CHOICE_EPOCH, seed=seed, device=labels.device)
    labels_in_order = labels[order]
    chosen: list[Tensor] = []
    for c, quota in enumerate(quotas):
        members = order[labels_in_order == c]
        chosen.append(members[:quota])
    return torch.cat(chosen).sort().values


def hash_indices(indices: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of indices, as int32 in little-endian order.

    The folder docs/splits has these digests of published choices.
    """
    numbers = indices.cpu().numpy().astype("<i4")
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
