"""Weighted k-nearest-neighbour classification (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB of float32


def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """The class that the k most similar bank entries vote for, each with weight exp(cosine / temperature).

    Rows are expected to be L2-normalised. Memory is flat in Q: the queries go in chunks.

    Args:
        features: (Q, F) queries.
        bank: (N, F).
        bank_labels: (N,) int64, in 0 .. num_classes - 1.
        k: how many neighbours vote.
        temperature: the smaller, the more the nearest count.

    Returns:
        (Q,) int64 predicted classes.

    Raises:
        ValueError: if k is not in 1 .. N, or the temperature is not positive.
    """
    return knn_predict_all(features, bank, bank_labels, num_classes, [(k, temperature)])[0]


@torch.no_grad()
def knn_predict_all(
    features: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, protocols: Sequence[tuple[int, float]]
) -> Tensor:
    """`knn_predict` for several (k, temperature) at the cost of one: the neighbours are searched once.

    Returns:
        (P, Q) int64 predicted classes, a row for each protocol.

    Raises:
        ValueError: as `knn_predict`.
    """
    for k, temperature in protocols:
        if not 1 <= k <= len(bank):
            raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank)} images")
        if not temperature > 0:
            raise ValueError(f"the kNN temperature must be positive, not {temperature}")
    most = max(k for k, _ in protocols)
    chunks = []
    for q in features.split(max(1, CHUNK_ELEMENTS // len(bank))):
        similarity, nearest = (q @ bank.T).topk(most, dim=1)  # (q, most) each, the most similar first
        votes = [_vote(similarity[:, :k].float(), bank_labels[nearest[:, :k]], num_classes, t) for k, t in protocols]
        chunks.append(torch.stack(votes))
    return torch.cat(chunks, dim=1)


def _vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """(q, k) similarities and labels of the neighbours -> (q,) classes."""
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest weighs 1: no over- or underflow
    votes = torch.zeros(len(labels), num_classes, device=labels.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
