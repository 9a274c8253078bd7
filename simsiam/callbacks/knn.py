"""kNN accuracy and effective rank of the backbone's features, measured at the end of each epoch."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.resnet import ResNet, fold_batch_norm
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import ImageDataset, knn_unavailable_reason
from simsiam.evaluation.features import chunk_size, compute_dtype, extract_features
from simsiam.evaluation.metrics import rankme
from simsiam.inputs import get_labelled_images
from utils import distributed
from utils.knn import nearest, vote
from utils.trainer import is_last_epoch

RANKME_IMAGES = 25_600  # as many as its paper takes
Batches = Iterable[Sequence[Any]]  # images (B, 3, S, S), labels (B,), and whatever else
Progress = Callable[[Iterable[Tensor], int, str], Iterable[Tensor]]


class Labelled(NamedTuple):
    """Features of a split's images on this process, and the labels of all of them."""

    features: Tensor  # (n, F)
    labels: Tensor  # (N,)


def parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[ResNet, ViewsDataModule]:
    """The backbone and the data of a run, with their types."""
    backbone, data = pl_module.backbone, trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(backbone, ResNet) and isinstance(data, ViewsDataModule)
    return backbone, data


class KNNMonitor(pl.Callback):
    """Measure the backbone's features: log `kNN_accuracy` (top-1 in percent) and `rankme`.

    Features are pooled backbone features of clean images, L2-normalised for kNN (Wu et al. 2018;
    the SimSiam paper's monitor, App. D). The bank and the queries are the train and the test split
    of a `ViewsDataModule`, or the images of two loaders. `rankme` is that of the bank's first
    25,600 features; of images without labels it is all that is logged.

    It is measured before training, every so many epochs and after the last one. In an epoch
    without a measurement, `trainer.callback_metrics` has the latest values, for callbacks such as
    `EarlyStopping`; loggers get measured values alone.

    Args:
        k: neighbours that vote; all of a smaller bank.
        temperature: of their votes, as in `utils.knn.knn_predict`.
        every: epochs between measurements; 0 for none at all.
        bank, queries: loaders of (images, labels, ...), with float images (B, 3, S, S) as the
            network takes them and whole numbers from 0 as labels (B,). None for the datamodule's.
        print_fn: takes a line of text for the user; None for `print`.
        progress: takes chunks of images, their number and a label, and yields the chunks while it
            shows a progress bar; None for no bar.
        compile: compile the network that gives the features, on a GPU.

    Raises:
        ValueError: before training, if there is nothing to measure on; when measuring, if a loader
            gives something else.
    """

    state_key = "KNNMonitor"  # pyright: ignore[reportAssignmentType]  (in checkpoints)

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.1,
        every: int = 1,
        bank: Batches | None = None,
        queries: Batches | None = None,
        print_fn: Callable[[str], Any] | None = None,
        progress: Progress | None = None,
        compile: bool = False,
    ) -> None:
        if (bank is None) != (queries is None):
            raise ValueError(
                "KNNMonitor: give both bank and queries, loaders of (images, labels), or neither"
            )
        self.k = k
        self.temperature = temperature
        self.every = every
        self.bank = bank
        self.queries = queries
        self.print_fn = print if print_fn is None else print_fn
        self.progress = progress
        self.compile = compile
        self.folded: ResNet | None = None  # on a GPU, the network that gives the features
        self.untrained: float | None = None  # kNN accuracy before training
        self.seconds = 0.0  # duration of the latest measurement
        self.latest: dict[str, float] = {}  # measured in the epoch that just ended
        self.indices: Tensor | None = None  # (Q, k) each query's neighbours in the bank
        self._known: dict[str, float] = {}  # the latest measurement, whenever that was
        self._measured_epoch: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage != "fit":
            return
        if self.every and self.bank is None and not isinstance(data, ViewsDataModule):
            raise ValueError(
                "KNNMonitor has no images: KNNMonitor(bank=..., queries=...) takes loaders of "
                "(images, labels), clean and normalised; or train with a ViewsDataModule"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.latest = {}
        self._measured_epoch = None  # may be that of an earlier `fit`
        if not self.every or trainer.global_step > 0:
            return
        self._known = self.measure(trainer, pl_module)
        self.untrained = self._known.get("kNN_accuracy")
        if self.untrained is not None:
            for logger in trainer.loggers:
                logger.log_metrics({"kNN_accuracy": self.untrained}, step=0)
            self.print_fn(f"kNN of the untrained network: {self.untrained:.2f} %")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        self.latest = {}
        if self.every and (epoch % self.every == 0 or is_last_epoch(trainer) or not self._known):
            self.latest = self._known = self.measure(trainer, pl_module)
            self._measured_epoch = trainer.current_epoch
            pl_module.log_dict(self.latest)  # pyright: ignore[reportArgumentType]  (a dict of floats)
        else:
            self._offer_to_callbacks(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after the last epoch if `EarlyStopping` and its like have ended it unexpectedly."""
        last_epoch = trainer.current_epoch - 1  # Lightning counts the epochs that are completed
        if not self.every or last_epoch < 0 or self._measured_epoch == last_epoch:
            return
        self.latest = self._known = self.measure(trainer, pl_module)
        self._measured_epoch = last_epoch
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step - 1)
        self._offer_to_callbacks(trainer)

    def _offer_to_callbacks(self, trainer: pl.Trainer) -> None:
        """Let callbacks such as `EarlyStopping` see the latest values, without logging them."""
        values = {name: torch.tensor(value) for name, value in self._known.items()}
        trainer.callback_metrics.update(values)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return `kNN_accuracy` and `rankme` for the current weights, as far as they can be measured.

        Each process extracts the features of its share of the images and searches among them.
        """
        started = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            bank, queries = self._extract(trainer, pl_module)
        metrics: dict[str, float] = {}
        rank = rankme(bank.features[: RANKME_IMAGES // distributed.world_size()])
        if queries is not None:
            metrics["kNN_accuracy"] = self._accuracy(bank, queries)
        if math.isfinite(rank):
            metrics["rankme"] = rank
        self.seconds = time.perf_counter() - started
        return trainer.strategy.broadcast(metrics)  # from rank 0, so that all ranks agree

    def _accuracy(self, bank: Labelled, queries: Labelled) -> float:
        """Return top-1 in percent, and keep the neighbours."""
        # Votes take memory for each class, so count the classes that occur.
        classes, bank_labels = bank.labels.unique(return_inverse=True)
        unit_bank = normalize(bank.features, dim=1, out=bank.features)
        unit_queries = normalize(queries.features, dim=1, out=queries.features)
        unit_queries = distributed.all_gather_rows(unit_queries)
        start = distributed.shard(len(bank_labels)).start
        k = min(self.k, len(bank_labels))
        similarity, self.indices = nearest_in_shards(unit_queries, unit_bank, k, start)
        votes = vote(similarity, bank_labels[self.indices], len(classes), self.temperature)
        correct = (classes[votes] == queries.labels).sum().item()
        return 100 * correct / len(queries.labels)

    def remaining_seconds(self, epoch: int, epochs: int) -> float:
        """Estimate how long the measurements after epoch `epoch` of `epochs` will take."""
        if not self.every or epoch >= epochs:
            return 0.0
        measurements = -(-epochs // self.every) - epoch // self.every
        return self.seconds * measurements

    def _extract(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Labelled, Labelled | None]:
        """Return bank and queries; no queries where there are no labels to compare."""
        network = getattr(pl_module, "backbone", pl_module)
        if pl_module.device.type == "cuda" and isinstance(network, ResNet):
            network = self._fold(network)
        if self.bank is not None and self.queries is not None:
            bank = extract_batches(network, self.bank, pl_module.device)
            return bank, extract_batches(network, self.queries, pl_module.device)
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ViewsDataModule)  # `setup` has checked
        bank = self._extract_split(network, data, data.train)
        if knn_unavailable_reason(data.train, data.test) is not None:
            return bank, None
        return bank, self._extract_split(network, data, data.test)

    def _extract_split(
        self, network: nn.Module, data: ViewsDataModule, split: ImageDataset
    ) -> Labelled:
        images = split.images[distributed.shard(len(split))]
        chunks: Iterable[Tensor] = images.split(chunk_size(images))
        if self.progress is not None:
            chunks = self.progress(chunks, len(images), f"kNN, {len(split):,} images")
        features = extract_features(network, chunks, data.mean, data.std, False, len(images))
        return Labelled(features, split.labels)

    def _fold(self, backbone: ResNet) -> ResNet:
        """Return the backbone without BN layers, compiled once, with its current weights."""
        folded = fold_batch_norm(backbone)
        if self.folded is None:
            self.folded = folded
            if self.compile:
                self.folded.compile()
        else:
            self.folded.load_state_dict(folded.state_dict())
        return self.folded

    def state_dict(self) -> dict[str, Any]:
        return {"untrained": self.untrained, "seconds": self.seconds, "known": self._known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained = state_dict["untrained"]
        self.seconds = state_dict.get("seconds", 0.0)  # older checkpoints lack it, and `known`
        self._known = state_dict.get("known", {})


@torch.no_grad()
def extract_batches(network: nn.Module, batches: Batches, device: torch.device) -> Labelled:
    """Return features of this process's share of all images, and the labels of all."""
    dtype = compute_dtype(network)
    was_training = network.training
    network.eval()
    features = []
    labels = []
    for batch in batches:
        images, truth = get_labelled_images(batch)
        features.append(network(images.to(device, dtype)).float())
        labels.append(truth.to(device))
    network.train(was_training)
    if not labels:
        raise ValueError("KNNMonitor: a loader gives no batch")
    share = distributed.shard(sum(map(len, labels)))
    return Labelled(torch.cat(features)[share].clone(), torch.cat(labels))


def nearest_in_shards(queries: Tensor, shard: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    """`nearest` of a bank of which this process holds rows `start` and following; the queries are those of all.

    Only the k best of each shard are exchanged; equally similar entries may come in any order.
    """
    similarity, index = nearest(queries, shard, min(k, len(shard)))
    index = index + start
    if distributed.world_size() == 1:
        return similarity, index
    similarity, index = (
        distributed.all_gather_rows(x.T).T for x in (similarity, index)
    )  # (Q, processes * k)
    similarity, best = similarity.topk(k, dim=1)
    return similarity, index.gather(1, best)
