"""Weighted k-nearest-neighbour classification (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB of float32


@torch.no_grad()
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
    if not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank)} images")
    if not temperature > 0:
        raise ValueError(f"the kNN temperature must be positive, not {temperature}")
    rows = max(1, CHUNK_ELEMENTS // len(bank))
    return torch.cat([_vote(q, bank, bank_labels, num_classes, k, temperature) for q in features.split(rows)])


def _vote(q: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    similarity, nearest = (q @ bank.T).topk(k, dim=1)  # (q, k) each
    similarity = similarity.float()
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest weighs 1: no over- or underflow
    votes = torch.zeros(len(q), num_classes, device=q.device)
    return votes.scatter_add_(1, labels[nearest], weights).argmax(dim=1)
