"""kNN accuracy and effective rank of the backbone's features, measured at the end of epochs."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from simsiam.callbacks.feature_network import FeatureNetwork
from simsiam.callbacks.sharded_features import (
    Batches,
    LabelledFeatures,
    Progress,
    choose_rank_rows,
    extract_batches,
    extract_split,
    nearest_in_shards,
)
from simsiam.config.run_options import DEFAULT_KNN_K, MonitorOptions
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.knn_labels import choose_bank, choose_comparison, is_in_bank
from simsiam.evaluation.metrics import rankme
from simsiam.inputs import check_counts
from utils import distributed
from utils.errors import require
from utils.knn import vote
from utils.trainer import is_last_epoch


class KNNMonitor(pl.Callback):
    """Measure the backbone's features: log `kNN_accuracy` (top-1 in percent) and `rankme`.

    The features are the pooled backbone features of clean images, the output of the module's
    `backbone`. Of a module without one, they are the output of its `forward`. For kNN they are
    L2-normalised (Wu et al. 2018; SimSiam paper, appendix D). The bank and the queries are the
    train and the test split of a `ViewsDataModule`, or the images of two loaders. `rankme` is the
    effective rank of 25,600 features of the bank. If there are no labels, only `rankme` is logged.
    If only one of the splits has labels, its images are both the bank and the queries, and no image
    is its own neighbour (leave-one-out), see `simsiam.data.knn_labels`. Images without a label are
    left out.

    The monitor measures before training (unless `before_training` is False), after every `every`-th
    epoch and after the last one. In an epoch without a measurement, `trainer.callback_metrics` has
    the latest values, which callbacks such as `EarlyStopping` read. Loggers only get measured
    values.

    Args:
        k: number of neighbours that vote; all images of the bank if it has fewer.
        temperature: each vote has the weight exp(cosine similarity / temperature).
        every: epochs between measurements; 0 for no measurement at all.
        bank, queries: loaders of (images, labels, ...), with float images (B, 3, S, S) as the
            network takes them and whole numbers from 0 as labels (B,). The same loader for both
            means leave-one-out. None for the images of the datamodule.
        print_fn: takes a line of text for the user; None to print it on rank 0.
        progress: takes chunks of images, the total number of images and a label, and yields the
            chunks while it shows a progress bar; None for no bar.
        compile: whether to compile the network that extracts the features, on a GPU.
        before_training: whether to measure the network before training, too.
        pretrained: whether training starts from trained weights. The accuracy before training is
            then printed as that of the starting network, and not of the untrained one.

    Raises:
        ValueError: if a number is out of range; before training, if there are no images; when
            measuring, if a loader gives something else than (images, labels, ...).
    """

    # Key of the state in checkpoints. By default Lightning would take the name of a subclass.
    state_key = "KNNMonitor"  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        k: int = DEFAULT_KNN_K,
        temperature: float = MonitorOptions.knn_t,
        every: int = 1,
        bank: Batches | None = None,
        queries: Batches | None = None,
        print_fn: Callable[[str], Any] | None = None,
        progress: Progress | None = None,
        compile: bool = False,
        pretrained: bool = False,
        before_training: bool = True,
    ) -> None:
        require(
            (bank is None) == (queries is None),
            "KNNMonitor: give both bank and queries, loaders of (images, labels), or neither",
        )
        check_counts("KNNMonitor", k=(k, 1), every=(every, 0))
        require(temperature > 0, f"KNNMonitor: temperature must be above 0, got {temperature!r}")
        self.k = k
        self.temperature = temperature
        self.every = every
        self.bank = bank
        self.queries = queries
        self.print_fn = print_fn or distributed.print_on_rank_zero
        self.progress = progress
        self.compile = compile
        self.pretrained = pretrained
        self.before_training = before_training
        self.initial: float | None = None  # kNN accuracy before training, in percent
        self.seconds = 0.0  # duration of the latest measurement
        self.epoch_metrics: dict[str, float] = {}  # of this epoch; empty if it has no measurement
        self.indices: Tensor | None = None  # (Q, k) neighbours of each query in the bank
        self.bank_shape = (0, 0)  # images and features of the bank in the latest measurement
        self._latest: dict[str, float] = {}  # metrics of the latest measurement
        self._measured_epoch: int | None = None  # epoch of that measurement, from 0
        self._network = FeatureNetwork(compile)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        if self.every and self.bank is None and not isinstance(data, ViewsDataModule):
            raise ValueError(
                "KNNMonitor has no images: KNNMonitor(bank=..., queries=...) takes loaders of "
                "(images, labels), clean and normalised; or train with a ViewsDataModule"
            )

    @property
    def has_measured(self) -> bool:
        """Whether this run has been measured, before it was resumed or since."""
        return bool(self._latest)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_metrics = {}
        # An earlier `fit` may have set these, perhaps for another model or precision.
        self._measured_epoch = None
        self._network = FeatureNetwork(self.compile)
        if trainer.global_step == 0:
            self._latest = self._measure_start(trainer, pl_module)
        self._offer_to_callbacks(trainer)  # They may look within the epoch, after a validation.

    def _measure_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, float]:
        if not self.every or not self.before_training:
            return {}
        metrics = self.measure(trainer, pl_module)
        self.initial = metrics.get("kNN_accuracy")
        if self.initial is not None:
            for logger in trainer.loggers:
                logger.log_metrics({"kNN_accuracy": self.initial}, step=0)
            name = "starting" if self.pretrained else "untrained"
            self.print_fn(f"kNN of the {name} network: {self.initial:.2f} %")
        return metrics

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_metrics = {}
        if self.every and self._is_due(trainer):
            self._measure_epoch(trainer, pl_module, trainer.current_epoch)
            # sync_dist changes nothing, since all processes have the same values. Without it,
            # Lightning warns.
            pl_module.log_dict(self.epoch_metrics, sync_dist=True)  # pyright: ignore[reportArgumentType]
        else:
            self._offer_to_callbacks(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Return whether to measure at the end of the current epoch."""
        # A checkpoint of an earlier version does not have the measurement before training.
        if self.before_training and not self.has_measured:
            return True
        return (trainer.current_epoch + 1) % self.every == 0 or is_last_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after an epoch that a callback such as `EarlyStopping` has made the last one."""
        last_epoch = trainer.current_epoch - 1  # by now, Lightning has counted it as completed
        if not self.every or last_epoch < 0 or self._measured_epoch == last_epoch:
            return
        self._measure_epoch(trainer, pl_module, last_epoch)
        step = trainer.global_step - 1  # at which Lightning logs the values of an epoch
        for logger in trainer.loggers:
            logger.log_metrics(self.epoch_metrics, step)
        self._offer_to_callbacks(trainer)

    def _measure_epoch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int
    ) -> None:
        self.epoch_metrics = self.measure(trainer, pl_module)
        self._latest = self.epoch_metrics
        self._measured_epoch = epoch

    def _offer_to_callbacks(self, trainer: pl.Trainer) -> None:
        """Let callbacks such as `EarlyStopping` see the latest values, without logging them."""
        values = {name: torch.tensor(value) for name, value in self._latest.items()}
        trainer.callback_metrics.update(values)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return `kNN_accuracy` and `rankme` for the current weights.

        `kNN_accuracy` is left out if there are no labels, and NaN if the features are not finite.
        `rankme` is left out if it is not finite.
        Each process extracts the features of its share of the images. The processes search the
        neighbours together.
        """
        started = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            bank, queries, leave_one_out = self._extract(trainer, pl_module)
        self.bank_shape = (len(bank.labels), bank.features.shape[1])
        metrics: dict[str, float] = {}
        # Measure the rank first: the accuracy normalises the features in place.
        rank = rankme(choose_rank_rows(bank))
        if queries is not None:
            compared = queries if leave_one_out else bank
            metrics["kNN_accuracy"] = self._measure_accuracy(compared, queries, leave_one_out)
        if math.isfinite(rank):
            metrics["rankme"] = rank
        self.seconds = time.perf_counter() - started
        return trainer.strategy.broadcast(metrics)  # from rank 0, so that all ranks agree

    def _measure_accuracy(
        self, bank: LabelledFeatures, queries: LabelledFeatures, leave_one_out: bool
    ) -> float:
        """Return top-1 in percent, and keep the neighbours in `self.indices`.

        Args:
            bank, queries: features of this process's share, labels of all images. The features are
                normalised in place, because they are not needed any more.
            leave_one_out: whether the bank is the queries, and no query is its own neighbour.
        """
        # Votes take memory for each class, so only count the classes that occur.
        classes, bank_labels = bank.labels.unique(return_inverse=True)
        unit_bank = normalize(bank.features, dim=1, out=bank.features)
        unit_queries = normalize(queries.features, dim=1, out=queries.features)
        unit_queries = distributed.all_gather_rows(unit_queries)  # (Q, F), of all processes
        start = distributed.shard(len(bank_labels)).start
        if leave_one_out:
            require(len(bank_labels) > 1, "KNNMonitor: a single image has no neighbour")
            k = min(self.k, len(bank_labels) - 1)
            own = torch.arange(len(bank_labels), device=bank_labels.device)
        else:
            k = min(self.k, len(bank_labels))
            own = None
        similarity, self.indices = nearest_in_shards(unit_queries, unit_bank, k, start, own)
        if bool(similarity.isnan().any()):
            return math.nan  # The features are not finite, so the votes would mean nothing.
        predicted = vote(similarity, bank_labels[self.indices], len(classes), self.temperature)
        correct = (classes[predicted] == queries.labels).sum().item()
        return 100 * correct / len(queries.labels)

    def remaining_seconds(self, epoch: int, epochs: int) -> float:
        """Return about how many seconds the remaining measurements of a run will take.

        Args:
            epoch: number of finished epochs.
            epochs: length of the run.
        """
        if not self.every or epoch >= epochs:
            return 0.0
        remaining = math.ceil(epochs / self.every) - epoch // self.every
        return self.seconds * remaining

    def _extract(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[LabelledFeatures, LabelledFeatures | None, bool]:
        """Extract the features of the bank and of the queries.

        Returns:
            bank: also used for the effective rank.
            queries: None without labels.
            leave_one_out: whether the queries are compared with each other, and not with the bank.
        """
        network = self._network.prepare(pl_module)
        if self.bank is not None and self.queries is not None:
            bank = extract_batches(network, self.bank, pl_module.device)
            if self.bank is self.queries:
                return bank, bank, True
            return bank, extract_batches(network, self.queries, pl_module.device), False
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ViewsDataModule)  # `setup` has checked it
        comparison = choose_comparison(data.train, data.test)
        chosen = choose_bank(data.train, comparison)
        bank = extract_split(network, data, data.train, self.progress, chosen)
        if comparison is None:
            return bank, None, False
        if is_in_bank(comparison, data.train):
            return bank, bank, comparison.leave_one_out
        queries = extract_split(network, data, comparison.split, self.progress, comparison.indices)
        return bank, queries, comparison.leave_one_out

    def state_dict(self) -> dict[str, Any]:
        return {
            "untrained": self.initial,  # checkpoints of earlier versions have this name
            "pretrained": self.pretrained,
            "seconds": self.seconds,
            "known": self._latest,  # checkpoints of earlier versions have this name
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial = state_dict["untrained"]
        # Checkpoints of earlier versions lack these three.
        self.pretrained = state_dict.get("pretrained", self.pretrained)
        self.seconds = state_dict.get("seconds", 0.0)
        self._latest = state_dict.get("known", {})
