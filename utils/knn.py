"""Weighted kNN classification on cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

No classifier has to be trained, so this is a quick measure of a representation.
"""

import torch
from torch import Tensor

# Similarities that are computed at a time: 64 MiB of float32 on a CPU, 512 MiB on a GPU.
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}


def choose_k(labels: Tensor, k: int = 200) -> int:
    """Return the largest sensible number of neighbours up to `k` for a bank with these labels.

    A typical class must have that many images. Otherwise, even if all images of a class are nearer
    than all others, images of other classes vote too. The typical number of images is the median
    over the classes that occur, so that a few rare classes do not decide for all.

    Args:
        labels: Labels of the bank, (N,) int64 with N > 0.
        k: Upper limit, at least 1.

    Returns:
        A number from 1 to `k`, and at most N.
    """
    _, images_by_class = labels.unique(return_counts=True)
    return min(k, int(images_by_class.median()))  # of two middle values, `median` is the lower one


def knn_predict(
    features: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    own: Tensor | None = None,
) -> Tensor:
    """Predict the class of each query by a vote of the k most similar images in the bank.

    Each vote has the weight exp(cosine similarity / temperature). Queries are taken in chunks, so
    memory grows with Q x k, not with Q x N.

    Args:
        features: Features of the queries, (Q, F), L2-normalised.
        bank: Features of the bank, (N, F), L2-normalised.
        bank_labels: Labels of the bank, (N,) int64, from 0 to num_classes - 1.
        num_classes: Number of classes.
        k: Number of neighbours that vote, from 1 to N.
        temperature: A low one gives more weight to the most similar images. Must be positive.
        own: Index of each query in the bank, (Q,) int64, if the queries are part of the bank. Then
            a query does not vote for itself, and k is from 1 to N - 1.

    Returns:
        (Q,) int64 classes.

    Raises:
        ValueError: `k` or `temperature` is out of range.
    """
    most = len(bank) if own is None else len(bank) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to the {most} images of the kNN bank, got {k}")
    if not temperature > 0:
        raise ValueError(f"the kNN temperature must be positive, got {temperature}")
    similarity, neighbours = nearest(features, bank, k, own)
    return vote(similarity, bank_labels[neighbours], num_classes, temperature)


@torch.no_grad()
def nearest(
    features: Tensor, bank: Tensor, k: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k bank entries that are most similar to each query, the most similar first.

    Args:
        features: (Q, F), L2-normalised.
        bank: (N, F), L2-normalised.
        k: From 1 to N.
        own: Index in the bank of each query's own entry, (Q,) int64, which gets the similarity
            -inf. An index outside of the bank stands for no such entry.

    Returns:
        Similarities (Q, k) float32, and indices in the bank (Q, k) int64.
    """
    chunk_elements = CHUNK_ELEMENTS.get(features.device.type, CHUNK_ELEMENTS["cpu"])
    chunk_size = chunk_elements // max(1, len(bank))  # queries in a chunk
    chunk_size = max(1, min(len(features), chunk_size))

    # All chunks share a buffer: to allocate each product would take a CPU a sixth of the time.
    buffer = features.new_empty(chunk_size, len(bank))
    similarities: list[Tensor] = []
    indices: list[Tensor] = []
    for start in range(0, len(features), chunk_size):
        queries = features[start : start + chunk_size]
        product = torch.mm(queries, bank.T, out=buffer[: len(queries)])
        if own is not None:
            own_of_chunk = own[start : start + chunk_size]
            rows = ((own_of_chunk >= 0) & (own_of_chunk < len(bank))).nonzero().flatten()
            product[rows, own_of_chunk[rows]] = -torch.inf
        top = product.topk(k, dim=1)
        similarities.append(top.values)
        indices.append(top.indices)
    return torch.cat(similarities).float(), torch.cat(indices)


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return the class with the largest sum of weights exp(similarity / temperature).

    Args:
        similarity: Similarities of the neighbours of each query, (Q, k), the highest first.
        labels: Labels of these neighbours, (Q, k) int64.
        num_classes: Number of classes.
        temperature: A positive number.

    Returns:
        (Q,) int64 classes.
    """
    # Relative to the nearest neighbour, which gets the weight 1. So nothing overflows.
    relative_similarity = similarity - similarity[:, :1]
    weights = (relative_similarity / temperature).exp()
    votes = torch.zeros(len(labels), num_classes, device=labels.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)
