"""Weighted kNN classification on cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

No classifier has to be trained, so this is a quick measure of a representation.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

# Similarities, or votes, that are computed at a time: 48 MiB of float32 on a CPU, 512 MiB on a GPU.
CHUNK_ELEMENTS = {"cpu": 3 * 2**22, "cuda": 2**27}

BLOCK = 64  # columns of which `topk_by_blocks` takes the maximum
BANK_TILE = 2048  # bank entries that `multiply_by_onednn` takes at a time
MIN_ONEDNN_QUERIES = 64  # of fewer queries, the copies would take more time than oneDNN saves


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
        k: From 1 to N; 0 for an empty bank.
        own: Index in the bank of each query's own entry, (Q,) int64, which gets the similarity
            -inf. An index outside of the bank stands for no such entry.

    Returns:
        Similarities (Q, k) float32, and indices in the bank (Q, k) int64.
    """
    if len(bank) == 0:
        no_neighbours = features.new_empty(len(features), 0, dtype=torch.float32)
        return no_neighbours, no_neighbours.long()
    chunk_elements = CHUNK_ELEMENTS.get(features.device.type, CHUNK_ELEMENTS["cpu"])
    chunk_size = chunk_elements // max(1, len(bank))  # queries in a chunk
    chunk_size = max(1, min(len(features), chunk_size))
    by_onednn = onednn_is_faster(features, bank)
    by_blocks = features.device.type == "cpu" and len(bank) >= 2 * k * BLOCK
    columns = len(bank)
    if by_blocks:
        columns = math.ceil(len(bank) / BLOCK) * BLOCK

    # All chunks share a buffer: to allocate each product would take a CPU a sixth of the time.
    buffer = features.new_empty(chunk_size, columns)
    buffer[:, len(bank) :] = -torch.inf
    similarities = features.new_empty(len(features), k, dtype=torch.float32)
    indices = features.new_empty(len(features), k, dtype=torch.int64)
    for start in range(0, len(features), chunk_size):
        rows = slice(start, start + chunk_size)
        queries = features[rows]
        padded_product = buffer[: len(queries)]
        product = padded_product[:, : len(bank)]
        if by_onednn:
            multiply_by_onednn(queries, bank, out=product)
        else:
            torch.mm(queries, bank.T, out=product)
        if own is not None:
            exclude_own(product, own[rows])
        if by_blocks:
            similarities[rows], indices[rows] = topk_by_blocks(padded_product, k)
        else:
            similarities[rows], indices[rows] = product.topk(k, dim=1)
    return similarities, indices


def exclude_own(product: Tensor, own: Tensor) -> None:
    """Set the similarity of each query to its own entry to -inf.

    Args:
        product: Similarities of the queries to the bank, (Q, N).
        own: Index of each query's own entry, (Q,) int64. One outside of the bank changes nothing.
    """
    rows = ((own >= 0) & (own < product.shape[1])).nonzero().flatten()
    product[rows, own[rows]] = -torch.inf


def topk_by_blocks(product: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what `product.topk(k, dim=1)` returns, except for the order of equal values.

    The k largest values of a row are in those k blocks of columns that have the largest maxima. So
    `topk`, which is slow, is needed only for the maxima and for the values in k blocks.

    Args:
        product: (Q, N) on a CPU, contiguous. N is a multiple of BLOCK and at least k * BLOCK.
        k: Number of values, from 1.

    Returns:
        Values (Q, k), the largest first, and their columns (Q, k) int64.
    """
    blocks = product.view(-1, BLOCK)  # (Q * N / BLOCK, BLOCK)
    blocks_per_row = product.shape[1] // BLOCK
    maxima = blocks.amax(dim=1).view(-1, blocks_per_row).topk(k, dim=1)
    first_blocks = torch.arange(0, len(blocks), blocks_per_row)  # index of each row's first block
    selected = maxima.indices + first_blocks[:, None]  # (Q, k)
    candidates = blocks.index_select(0, selected.flatten()).view(-1, k * BLOCK)

    # k maxima are not below the k-th one. So no smaller value is among the k largest. `topk` sorts
    # each value that is larger than most of those before it; without the small ones, that is rare.
    candidates.masked_fill_(candidates < maxima.values[:, -1:], -torch.inf)
    values, positions = candidates.topk(k, dim=1)
    block_numbers = maxima.indices.gather(1, positions // BLOCK)
    return values, block_numbers * BLOCK + positions % BLOCK


def onednn_is_faster(features: Tensor, bank: Tensor) -> bool:
    """Return whether `multiply_by_onednn` is at least as fast as `torch.mm` for these features.

    torch.mm calls MKL, which does not use AVX-512 on processors of AMD; oneDNN does. Few queries
    stay with torch.mm, because oneDNN needs a copy of the bank. The size of the bank does not
    matter, so that a bank that is split among processes gives the same similarities.
    """
    return (
        features.device.type == "cpu"
        and features.dtype == bank.dtype == torch.float32
        and len(features) >= MIN_ONEDNN_QUERIES
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def multiply_by_onednn(queries: Tensor, bank: Tensor, out: Tensor) -> None:
    """Write queries @ bank.T to `out` by oneDNN, in float32.

    The bank is taken in tiles, so that copies and results fit into the processor's cache. Autocast
    does not change the dtype of oneDNN's tensors.

    Args:
        queries: (Q, F) float32 on a CPU.
        bank: (N, F) float32 on a CPU.
        out: (Q, N) float32 on a CPU, which may be a part of a tensor.
    """
    copied_queries = queries.to_mkldnn()
    for start in range(0, len(bank), BANK_TILE):
        tile = bank[start : start + BANK_TILE].to_mkldnn()
        out[:, start : start + BANK_TILE] = linear(copied_queries, tile).to_dense()


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return the class with the largest sum of weights exp(similarity / temperature).

    Queries are taken in chunks, so that many classes need no memory for Q x C votes.

    Args:
        similarity: Similarities of the neighbours of each query, (Q, k), the highest first.
        labels: Labels of these neighbours, (Q, k) int64.
        num_classes: Number of classes.
        temperature: A positive number.

    Returns:
        (Q,) int64 classes.
    """
    chunk_elements = CHUNK_ELEMENTS.get(labels.device.type, CHUNK_ELEMENTS["cpu"])
    chunk_size = max(1, chunk_elements // num_classes)  # queries in a chunk
    predicted: list[Tensor] = []
    for some_similarity, some_labels in zip(
        similarity.split(chunk_size), labels.split(chunk_size), strict=True
    ):
        # Relative to the nearest neighbour, which gets the weight 1. So nothing overflows.
        relative_similarity = some_similarity - some_similarity[:, :1]
        weights = (relative_similarity / temperature).exp()
        votes = torch.zeros(len(some_labels), num_classes, device=labels.device)
        predicted.append(votes.scatter_add_(1, some_labels, weights).argmax(dim=1))
    return torch.cat(predicted)
