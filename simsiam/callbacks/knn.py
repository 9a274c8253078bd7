"""kNN accuracy and effective rank of the backbone's features, measured at the end of each epoch."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.resnet import ResNet, fold_batch_norm
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset, why_no_knn
from simsiam.evaluation.features import chunk_size, extract_features
from simsiam.evaluation.metrics import rankme
from utils import distributed
from utils.knn import nearest, vote

RANKME_IMAGES = 25_600  # as many as its paper takes
Batches = Iterable[tuple[Tensor, Tensor]]  # images (B, 3, S, S) and labels (B,)
Labelled = tuple[Tensor, Tensor]  # features (n, F) and labels (N,)


def parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[ResNet, ViewsDataModule]:
    """The backbone and the data of a run, with their types."""
    backbone, data = pl_module.backbone, trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(backbone, ResNet) and isinstance(data, ViewsDataModule)
    return backbone, data


class KNNMonitor(pl.Callback):
    """Classifies images by their nearest neighbours; logs `kNN_accuracy`, top-1 in percent, and `rankme`.

    Of pooled, L2-normalised backbone features of clean images (Wu et al. 2018; the SimSiam paper's monitor, App. D),
    the train and test split of a `ViewsDataModule` or loaders' images. `rankme` is that of the bank's first 25,600
    features; it is all that is logged of images without labels. `untrained` is kNN before training.

    Args:
        k, temperature: of `knn_predict`.
        every: epochs between measurements; the last epoch is always measured. 0 for never.
        bank, queries: loaders of (images, labels), the images as the network takes them; None for the datamodule's.
        report: called with a line of text for the user.
        track: passes on chunks of images, of which there are so many, and shows its progress under that name.
        compile: compile the network that gives the features, on a GPU.

    Raises:
        ValueError: before training, if there is nothing to measure on.
    """

    state_key = "KNNMonitor"  # pyright: ignore[reportAssignmentType]  (in checkpoints)

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.1,
        every: int = 1,
        bank: Batches | None = None,
        queries: Batches | None = None,
        report: Callable[[str], Any] = print,
        track: Callable[[Iterable[Tensor], int, str], Iterable[Tensor]] = lambda chunks, n, what: chunks,
        compile: bool = False,
    ) -> None:
        if (bank is None) != (queries is None):
            raise ValueError("KNNMonitor: give both bank and queries, loaders of (images, labels), or neither")
        self.k, self.temperature, self.every = k, temperature, every
        self.report, self.track, self.compile = report, track, compile
        self.bank, self.queries = bank, queries
        self.folded: ResNet | None = None  # on a GPU, the network that gives the features
        self.untrained: float | None = None
        self.seconds = 0.0  # that the latest measurement took
        self.latest: dict[str, float] = {}  # figures of the epoch that just ended; empty if it was not measured
        self.places: Tensor | None = None  # (Q, k) indices of each query's neighbours in the bank

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.every and self.bank is None and not isinstance(data, ViewsDataModule):
            raise ValueError(
                "KNNMonitor has no images: KNNMonitor(bank=..., queries=...) takes loaders of (images, labels), "
                "clean and normalised; or train with a ViewsDataModule"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every and trainer.global_step == 0:
            self.untrained = self.measure(trainer, pl_module).get("kNN_accuracy")
            if self.untrained is not None:
                for logger in trainer.loggers:
                    logger.log_metrics({"kNN_accuracy": self.untrained}, step=0)
                self.report(f"kNN of the untrained network: {self.untrained:.2f} %")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every and (epoch % self.every == 0 or epoch == trainer.max_epochs)
        self.latest = self.measure(trainer, pl_module) if due else {}
        pl_module.log_dict(self.latest)  # pyright: ignore[reportArgumentType]  (a dict of floats)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """The figures of now. Each process extracts and searches its share of the images."""
        started = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            (bank, labels), (queries, truth), classes = self._extract(trainer, pl_module)
        figures, rank = dict[str, float](), rankme(bank[: RANKME_IMAGES // distributed.world_size()])
        if classes:
            bank, queries = (normalize(features, dim=1, out=features) for features in (bank, queries))
            queries = distributed.all_gather_rows(queries)
            start = distributed.shard(len(labels)).start
            similarity, self.places = nearest_in_shards(queries, bank, min(self.k, len(labels)), start)
            predicted = vote(similarity, labels[self.places], classes, self.temperature)
            figures["kNN_accuracy"] = 100 * (predicted == truth).sum().item() / len(truth)
        if math.isfinite(rank):
            figures["rankme"] = rank
        self.seconds = time.perf_counter() - started
        return trainer.strategy.broadcast(figures)  # of rank 0: the same for all

    def seconds_left(self, epoch: int, epochs: int) -> float:
        """About what the measurements will take that follow when so many epochs are done."""
        return self.seconds * (-(-epochs // self.every) - epoch // self.every) if self.every and epoch < epochs else 0.0

    def _extract(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Labelled, Labelled, int]:
        """Features of this process's share and labels of all, of bank and queries; classes, 0 without labels."""
        network = getattr(pl_module, "backbone", pl_module)
        if pl_module.device.type == "cuda" and isinstance(network, ResNet):
            network = self._fold(network)
        if self.bank is not None and self.queries is not None:
            bank, queries = (extract_batches(network, loader, pl_module.device) for loader in (self.bank, self.queries))
            return bank, queries, int(bank[1].max()) + 1
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ViewsDataModule)  # `setup` has seen to it

        def extract(split: ImageDataset) -> Labelled:
            images = split.images[distributed.shard(len(split))]
            chunks = self.track(images.split(chunk_size(images)), len(images), f"kNN, {len(split):,} images")
            return extract_features(network, chunks, data.mean, data.std, False, len(images)), split.labels

        why = why_no_knn(data.train, data.test)
        bank = extract(data.train)
        return bank, bank if why else extract(data.test), 0 if why else len(data.train.classes)

    def _fold(self, backbone: ResNet) -> ResNet:
        """The backbone without BN layers, compiled once and given the weights of now each time."""
        folded = fold_batch_norm(backbone)
        if self.folded is None:
            self.folded = folded
            if self.compile:
                self.folded.compile()
        else:
            self.folded.load_state_dict(folded.state_dict())
        return self.folded

    def state_dict(self) -> dict[str, Any]:
        return {"untrained": self.untrained, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained, self.seconds = state_dict["untrained"], state_dict.get("seconds", 0.0)


@torch.no_grad()
def extract_batches(network: nn.Module, batches: Batches, device: torch.device) -> Labelled:
    """Features of this process's share of all images, and labels of all."""
    was_training = network.training
    network.eval()
    found = [(network(images.to(device)).float(), labels) for images, labels in batches]
    network.train(was_training)
    features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found]).to(device)
    return features[distributed.shard(len(features))].clone(), labels


def nearest_in_shards(queries: Tensor, shard: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    """`nearest` of a bank of which this process holds rows `start` and following; the queries are those of all.

    Only the k best of each shard are exchanged; equally similar entries may come in any order.
    """
    similarity, index = nearest(queries, shard, min(k, len(shard)))
    index = index + start
    if distributed.world_size() == 1:
        return similarity, index
    similarity, index = (distributed.all_gather_rows(x.T).T for x in (similarity, index))  # (Q, processes * k)
    similarity, best = similarity.topk(k, dim=1)
    return similarity, index.gather(1, best)
