"""kNN accuracy of the backbone's features, measured at the end of each epoch."""

from collections.abc import Callable
from math import inf
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.nn.functional import pad

from models.resnet import ResNet
from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import chunk_size, extract_features
from utils import distributed
from utils.knn import nearest, vote


def parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[ResNet, ViewsDataModule]:
    """The backbone and the data of a run, whose types Lightning does not know."""
    backbone, data = pl_module.backbone, trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(backbone, ResNet) and isinstance(data, ViewsDataModule)
    return backbone, data


class KNNMonitor(pl.Callback):
    """Classifies the test images by their nearest train images; logs `kNN_accuracy`, top-1 in percent.

    Pooled backbone features, L2-normalised; a clean bank of the train split, all test images (Wu et al. 2018; the
    SimSiam paper's monitor, App. D). Also measured once before training: `untrained`.

    Args:
        k: neighbours that vote.
        temperature: of their votes.
        every: epochs between measurements; the last epoch is always measured. 0 for never.
        report: called with a line of text for people.
    """

    def __init__(
        self, k: int = 200, temperature: float = 0.1, every: int = 1, report: Callable[[str], Any] = print
    ) -> None:
        self.k, self.temperature, self.every, self.report = k, temperature, every, report
        self.untrained: float | None = None
        self.latest: float | None = None  # of the epoch that just ended, if it was measured
        self.places: Tensor | None = None  # (Q, k), of each test image's neighbours, at the latest measurement

    @property
    def state_key(self) -> str:  # in checkpoints
        return "KNNMonitor"

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
            pl_module.log("kNN_accuracy", self.latest, logger=False)
            for logger in trainer.loggers:  # now, not after all callbacks: a checkpoint must find it in the curve
                logger.log_metrics({"kNN_accuracy": self.latest}, step=trainer.global_step - 1)

    def accuracy(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """Top-1 in percent. Several processes share the images out, and find what one would."""
        backbone, data = parts(trainer, pl_module)
        banked, asked = (distributed.shard(len(split), chunk_size(split.images)) for split in (data.train, data.test))
        with trainer.precision_plugin.forward_context():
            bank = extract_features(backbone, data.train.images, data.mean, data.std, part=banked)
            queries = extract_features(backbone, data.test.images, data.mean, data.std, part=asked)
        queries = distributed.all_gather_rows(queries, asked, (len(data.test), backbone.num_features))
        similarity, self.places = self._neighbours(queries, bank, banked.start, len(data.train))
        labels = data.train.labels[self.places]
        predicted = vote(similarity, labels, len(data.train.classes), self.temperature)
        right = (predicted == data.test.labels).sum().item()
        return distributed.broadcast_result(lambda: 100 * right / len(predicted))

    def _neighbours(self, queries: Tensor, bank: Tensor, start: int, of: int) -> tuple[Tensor, Tensor]:
        """Similarity and place (Q, k) of the nearest among `of` bank entries, of which each process has some.

        Which of equally similar ones count is open, as in a single process.

        Args:
            start: the place of the first that this one has.
        """
        similarity, found = nearest(queries, bank, min(self.k, len(bank)), of)
        places = found + start
        if distributed.world_size() == 1:
            return similarity, places
        missing = (0, self.k - similarity.shape[1])
        mine, shape = (
            slice(distributed.rank(), distributed.rank() + 1),
            (distributed.world_size(), len(queries), self.k),
        )
        every = [
            distributed.all_gather_rows(pad(x, missing, value=v)[None], mine, shape)
            for x, v in ((similarity, -inf), (places, 0))
        ]
        similarity, places = (x.transpose(0, 1).flatten(1) for x in every)  # (Q, processes * k)
        similarity, best = similarity.topk(self.k, dim=1)
        return similarity, places.gather(1, best)

    def state_dict(self) -> dict[str, Any]:
        return {"untrained": self.untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained = state_dict["untrained"]
