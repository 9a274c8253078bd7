"""Features of many images: each process of a run extracts and searches a share of them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simsiam.evaluation.features import compute_dtype
from simsiam.inputs import get_labelled_images
from utils import distributed
from utils.knn import nearest

Batches = Iterable[Sequence[Any]]  # images (B, 3, S, S), labels (B,) and possibly more


class LabelledFeatures(NamedTuple):
    """Features of this process's share of a split, and the labels of the complete split."""

    features: Tensor  # (n, F)
    labels: Tensor  # (N,), N >= n


@torch.no_grad()
def extract_batches(network: nn.Module, batches: Batches, device: torch.device) -> LabelledFeatures:
    """Return the features of this process's share of a loader's images, and the labels of all.

    Args:
        network: (B, 3, S, S) -> (B, F).

    Raises:
        ValueError: the loader gives no batch, or something else than (images, labels, ...).
    """
    dtype = compute_dtype(network)
    was_training = network.training
    network.eval()
    features = []
    labels = []
    for batch in batches:
        images, batch_labels = get_labelled_images(batch)
        features.append(network(images.to(device, dtype)).float())
        labels.append(batch_labels.to(device))
    network.train(was_training)
    if not labels:
        raise ValueError("KNNMonitor: a loader gives no batch")
    all_labels = torch.cat(labels)
    share = distributed.shard(len(all_labels))
    return LabelledFeatures(torch.cat(features)[share].clone(), all_labels)


def nearest_in_shards(queries: Tensor, shard: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    """Return each query's k nearest entries in a bank that is split among the processes.

    Each process finds the k nearest in its own part; only these are exchanged. Entries of equal
    similarity may come in any order.

    Args:
        queries: (Q, F), L2-normalised, the same in all processes.
        shard: (n, F), L2-normalised; this process's part of the bank.
        start: index of the part's first entry in the bank.

    Returns:
        Similarity and index in the bank, (Q, k) each, the most similar first.
    """
    similarity, index = nearest(queries, shard, min(k, len(shard)))
    index = index + start  # from indices in the shard to indices in the bank
    if distributed.world_size() == 1:
        return similarity, index
    # `all_gather_rows` joins rows. The transposed tensors are joined to (Q, processes * k).
    similarity = distributed.all_gather_rows(similarity.T).T
    index = distributed.all_gather_rows(index.T).T
    similarity, columns = similarity.topk(k, dim=1)
    return similarity, index.gather(1, columns)
