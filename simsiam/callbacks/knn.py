"""kNN accuracy of the backbone's features, measured at the end of each epoch."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from models.resnet import ResNet, fold_batch_norm
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import extract_features
from utils import distributed
from utils.knn import nearest, vote


def parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[ResNet, ViewsDataModule]:
    """The backbone and the data of a run, with their types."""
    backbone, data = pl_module.backbone, trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(backbone, ResNet) and isinstance(data, ViewsDataModule)
    return backbone, data


def log_epoch(trainer: pl.Trainer, pl_module: pl.LightningModule, metrics: Mapping[str, float]) -> None:
    """Log figures of the epoch that ends, at its last step and before any checkpoint of it is written."""
    pl_module.log_dict(metrics, logger=False)  # pyright: ignore[reportArgumentType]  (a dict of floats)
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), trainer.global_step - 1)


class KNNMonitor(pl.Callback):
    """Classifies the test images by their nearest train images; logs `kNN_accuracy`, top-1 in percent.

    Pooled, L2-normalised backbone features of clean images; the bank is the train split (Wu et al. 2018; the SimSiam
    paper's monitor, App. D). Also measured once before training: `untrained`.

    Args:
        k, temperature: of `knn_predict`.
        every: epochs between measurements; the last epoch is always measured. 0 for never.
        report: called with a line of text for the user.
        compile: compile the network that gives the features, on a GPU.
    """

    state_key = "KNNMonitor"  # pyright: ignore[reportAssignmentType]  (in checkpoints)

    def __init__(
        self,
        k: int = 200,
        temperature: float = 0.1,
        every: int = 1,
        report: Callable[[str], Any] = print,
        compile: bool = False,
    ) -> None:
        self.k, self.temperature, self.every, self.report, self.compile = k, temperature, every, report, compile
        self.folded: ResNet | None = None  # on a GPU, the network that gives the features
        self.untrained: float | None = None
        self.latest: float | None = None  # of the epoch that just ended; None if it was not measured
        self.places: Tensor | None = None  # (Q, k) indices of each test image's neighbours among the train images

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every and trainer.global_step == 0:
            self.untrained = self.accuracy(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({"kNN_accuracy": self.untrained}, step=0)
            self.report(f"kNN of the untrained network: {self.untrained:.2f} %")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every and (epoch % self.every == 0 or epoch == trainer.max_epochs)
        self.latest = self.accuracy(trainer, pl_module) if due else None
        if self.latest is not None:
            log_epoch(trainer, pl_module, {"kNN_accuracy": self.latest})

    def accuracy(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """Top-1 in percent. Each process extracts and searches its share of the images."""
        backbone, data = parts(trainer, pl_module)
        bank_part, query_part = distributed.shard(len(data.train)), distributed.shard(len(data.test))
        network = self._fold(backbone) if pl_module.device.type == "cuda" else backbone
        with trainer.precision_plugin.forward_context():
            bank = extract_features(network, data.train.images, data.mean, data.std, part=bank_part)
            queries = extract_features(network, data.test.images, data.mean, data.std, part=query_part)
        queries = distributed.all_gather_rows(queries)
        similarity, self.places = nearest_in_shards(queries, bank, self.k, bank_part.start)
        predicted = vote(similarity, data.train.labels[self.places], len(data.train.classes), self.temperature)
        correct = (predicted == data.test.labels).sum().item()
        return trainer.strategy.broadcast(100 * correct / len(predicted))  # of rank 0: one figure for all

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
        return {"untrained": self.untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained = state_dict["untrained"]


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
