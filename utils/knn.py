"""Weighted k-nearest-neighbour classification on cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import torch
from torch import Tensor

CHUNK_ELEMENTS = {
    "cpu": 2**24,
    "cuda": 2**27,
}  # similarities held at once: 64 and 512 MiB of float32


def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """(Q,) int64 classes, for which the k most similar bank entries vote, each with weight exp(cosine / temperature).

    `features` are (Q, F) queries, L2-normalised, as the bank (N, F); `bank_labels` (N,) int64, in 0 .. num_classes - 1.
    In chunks, so that memory grows with Q x k only. ValueError unless k is in 1 .. N and the temperature positive.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank)} images")
    if not temperature > 0:
        raise ValueError(f"the kNN temperature must be positive, not {temperature}")
    similarity, found = nearest(features, bank, k)
    return vote(similarity, bank_labels[found], num_classes, temperature)


@torch.no_grad()
def nearest(features: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k bank entries most similar to each query, the most similar first: float32 similarity and index, (Q, k)."""
    elements = CHUNK_ELEMENTS.get(features.device.type, 2**24)
    rows = max(1, min(len(features), elements // max(1, len(bank))))  # queries at a time
    buffer = features.new_empty(
        rows, len(bank)
    )  # reused: allocating each product costs a CPU a sixth of the time
    chunks = [
        torch.mm(q, bank.T, out=buffer[: len(q)]).topk(k, dim=1) for q in features.split(rows)
    ]
    return torch.cat([c.values for c in chunks]).float(), torch.cat([c.indices for c in chunks])


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """(Q, k) similarities, the highest first, and labels of the neighbours -> (Q,) classes."""
    weights = (
        (similarity - similarity[:, :1]) / temperature
    ).exp()  # the nearest weighs 1, so that nothing overflows
    votes = torch.zeros(len(labels), num_classes, device=labels.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
