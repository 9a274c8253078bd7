"""KNNMonitor with loaders of a user in two processes: features keep their labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from simsiam import KNNMonitor
from simsiam.callbacks.sharded_features import extract_batches
from simsiam.commands import launch
from tests.processes import Started, torchrun_environments
from utils import distributed

CLASSES = 9
IMAGES = 6 * CLASSES


def make_images() -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 8, 8) in clear clusters, and their labels. No two images are equal."""
    labels = torch.arange(IMAGES) % CLASSES
    clusters = one_hot(labels, 3 * 8 * 8).float()
    noise = torch.randn(clusters.shape, generator=torch.Generator().manual_seed(0)) / 100
    return (clusters + noise).reshape(IMAGES, 3, 8, 8), labels


def make_loader(kind: str) -> DataLoader[Any]:
    images = TensorDataset(*make_images())
    if kind == "distributed":
        return DataLoader(images, batch_size=5, sampler=DistributedSampler(images, shuffle=True))
    generator = torch.Generator().manual_seed(distributed.rank())
    return DataLoader(images, batch_size=5, shuffle=True, generator=generator)


def measure_with_loaders(args: list[str]) -> int:
    """Save the accuracy and the bank of this process in the folder args[0]."""
    folder, kind = args
    network = nn.Flatten()
    with launch.process_group(None, None, gpu=False):
        bank = extract_batches(network, make_loader(kind), torch.device("cpu"))
        queries = extract_batches(network, make_loader(kind), torch.device("cpu"))
        file = f"{folder}/{distributed.rank()}.pt"
        all_features = distributed.all_gather_rows(bank.features.clone())
        monitor = KNNMonitor(k=3)
        accuracies = [
            monitor._measure_accuracy(bank, queries, leave_one_out=False),
            monitor._measure_accuracy(queries, queries, leave_one_out=True),
        ]
        torch.save((all_features, bank.labels, accuracies), file)
    return 0


@pytest.mark.parametrize("kind", ["shuffled", "distributed"])
def test_features_of_each_process_keep_their_labels(kind: str, tmp_path: Path) -> None:
    """The loader gives each process the images in another order, or other images."""
    pair = [
        Started(measure_with_loaders, [str(tmp_path), kind], **environment)
        for environment in torchrun_environments()
    ]
    assert [process.communicate() for process in pair] == [("", ""), ("", "")]
    images, labels = make_images()
    for rank in (0, 1):
        features, bank_labels, accuracies = torch.load(tmp_path / f"{rank}.pt")
        assert accuracies == [100, 100]
        # The bank has each image once, with its label.
        nearest = torch.cdist(features, images.flatten(1)).argmin(dim=1)
        assert nearest.sort().values.tolist() == list(range(IMAGES))
        assert torch.equal(bank_labels, labels[nearest])
