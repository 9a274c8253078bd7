"""Features of many images: each process of a run extracts and searches a share of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from models.eval_mode import eval_mode
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset
from simsiam.data.knn_labels import RANKME_IMAGES
from simsiam.data.spread import evenly_spaced
from simsiam.evaluation.features import choose_chunk_size, compute_dtype, extract_features
from simsiam.inputs import get_features, get_labelled_images
from utils import distributed
from utils.knn import nearest

# A process receives about this much when neighbours are exchanged: it limits the queries of a part.
# With 64 processes, 50,000 queries and k 200, all together would take 7.7 GB in each process.
EXCHANGE_BYTES = 2**28
BYTES_PER_NEIGHBOUR = 12  # a float32 similarity and an int64 index

Progress = Callable[[Iterable[Tensor], int, str], Iterable[Tensor]]  # see `KNNMonitor`
Batches = Iterable[Sequence[Any]]  # images (B, 3, S, S), labels (B,) and possibly more


class LabelledFeatures(NamedTuple):
    """Features of this process's share of a split, and the labels of the complete split."""

    features: Tensor  # (n, F)
    labels: Tensor  # (N,), N >= n


@torch.no_grad()
def extract_batches(network: nn.Module, batches: Batches, device: torch.device) -> LabelledFeatures:
    """Return the features of this process's share of a loader's images, and the labels of all.

    With a `DistributedSampler`, the images are those of all processes. With any other sampler each
    process has all images, but a loader that shuffles may give each process another order. So the
    features and labels of rank 0 are used.

    Args:
        network: (B, 3, S, S) -> (B, F) or (B, F, 1, 1).

    Raises:
        ValueError: the loader gives no batch, or something else than (images, labels, ...); or the
            network does not give features.
    """
    dtype = compute_dtype(network)
    features = []
    labels = []
    with eval_mode(network):
        for batch in batches:
            images, batch_labels = get_labelled_images(batch)
            features.append(get_features(network(images.to(device, dtype))).float())
            labels.append(batch_labels.to(device))
    if not labels:
        raise ValueError("KNNMonitor: a loader gives no batch")
    if isinstance(getattr(batches, "sampler", None), DistributedSampler):
        combine = distributed.all_gather_rows
    else:
        combine = distributed.broadcast_rows
    all_features = combine(torch.cat(features))
    all_labels = combine(torch.cat(labels))
    share = distributed.shard(len(all_labels))
    return LabelledFeatures(all_features[share].clone(), all_labels)


def extract_split(
    network: nn.Module,
    data: ViewsDataModule,
    split: ImageDataset,
    progress: Progress | None = None,
    indices: Tensor | None = None,
) -> LabelledFeatures:
    """Return the features of this process's share of a split, and the labels of all shares.

    Args:
        network: (B, 3, S, S) -> (B, F) or (B, F, 1, 1).
        data: has the mean and std of the images.
        progress: see `KNNMonitor`.
        indices: of the images to take, (N,) int64; None for all.
    """
    labels = split.labels
    chunks: Iterable[Tensor]
    if indices is not None and len(indices) < len(split):
        labels = labels[indices]
        share = indices[distributed.shard(len(labels))]
        parts = share.split(choose_chunk_size(split.images))
        chunks = (split.images_at(part) for part in parts)
    else:
        share = split.images[distributed.shard(len(labels))]
        chunks = share.split(choose_chunk_size(share))
    if progress is not None:
        chunks = progress(chunks, len(share), f"features of {len(labels):,} images")
    if len(share) == 0:
        # Fewer images than processes. A blank image, which is dropped, gives the feature size.
        chunks = [torch.zeros(1, 3, split.side, split.side, dtype=torch.uint8)]
    features = extract_features(
        network, chunks, data.mean, data.std, unit=False, n=max(1, len(share)), size=data.size
    )
    return LabelledFeatures(features[: len(share)], labels)


def choose_rank_rows(split: LabelledFeatures) -> Tensor:
    """Return this process's part of the RANKME_IMAGES features whose rank is measured.

    They are spread over the features of all processes, because the images of a folder are ordered
    by class. They are the same for any number of processes.
    """
    n = len(split.labels)
    if n <= RANKME_IMAGES:
        return split.features
    indices = evenly_spaced(RANKME_IMAGES, n)
    share = distributed.shard(n)
    in_share = (indices >= share.start) & (indices < share.stop)
    return split.features[indices[in_share] - share.start]


def nearest_in_shards(
    queries: Tensor, shard: Tensor, k: int, start: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each query's k nearest entries in a bank that is split among the processes.

    Each process finds the k nearest in its own part; only these are exchanged. Entries of equal
    similarity may come in any order.

    Args:
        queries: (Q, F), L2-normalised, the same in all processes.
        shard: (n, F), L2-normalised; this process's part of the bank.
        start: index of the part's first entry in the bank.
        own: index of each query in the bank (Q,), if the queries are part of it. Then a query is
            not its own neighbour, and k is less than the number of entries in the bank.

    Returns:
        Similarity and index in the bank, (Q, k) each, the most similar first.
    """
    own_in_shard = None if own is None else own - start
    similarity, index = nearest(queries, shard, min(k, len(shard)), own_in_shard)
    index = index + start  # from indices in the shard to indices in the bank
    if distributed.world_size() == 1:
        return similarity, index
    # A process receives the neighbours that each of the processes has found for a query.
    bytes_per_query = distributed.world_size() * k * BYTES_PER_NEIGHBOUR
    chunk = max(1, EXCHANGE_BYTES // bytes_per_query)
    merged: list[tuple[Tensor, Tensor]] = []
    for start_of_chunk in range(0, len(queries), chunk):
        part = slice(start_of_chunk, start_of_chunk + chunk)
        merged.append(_merge_neighbours(similarity[part], index[part], k))
    similarities, indices = zip(*merged, strict=True)
    return torch.cat(similarities), torch.cat(indices)


def _merge_neighbours(similarity: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest (Q, k) of the neighbours that all processes have found.

    Args:
        similarity, index: what this process has found, (Q, at most k) each.
    """
    # `all_gather_rows` joins rows. The transposed tensors are joined to (Q, processes * k).
    similarity = distributed.all_gather_rows(similarity.T).T
    index = distributed.all_gather_rows(index.T).T
    similarity, columns = similarity.topk(k, dim=1)
    return similarity, index.gather(1, columns)
