"""Detection of a collapsed representation, and of a training that has diverged."""

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from simsiam.callbacks.knn import KNNMonitor
from simsiam.collapse import (
    LOST_RANK_MEASUREMENTS,
    has_lost_rank,
    is_collapsed,
    lost_rank_threshold,
)
from simsiam.resumable_module import ResumableModule
from utils.distributed import print_on_rank_zero
from utils.errors import COLLAPSED_STATUS, NOT_FINITE_STATUS, RunError


class CollapseMonitor(pl.Callback):
    """Warn once when the representation has collapsed: `z_std` and `rankme` are low.

    Without BN in the heads, `z_std` is low in a healthy run too, so a low rank of the features must
    confirm the collapse. If no callback measures `rankme`, only a `z_std` near 0 counts.

    Another warning comes once when a `KNNMonitor` has measured a very low rank twice in a row,
    whatever `z_std` is. It never ends the run, because the rank may rise again when the learning
    rate falls.

    A loss that is not finite is reported like a collapse.

    A run that resumes does not repeat a warning.

    Args:
        stop: whether to end a run that has collapsed or diverged instead of warning.
        print_fn: takes a warning; None to print it on rank 0.

    Raises:
        RunError: `stop` is set and the representation has collapsed, or the loss is not finite. It
            is a RuntimeError. Its status is COLLAPSED_STATUS or NOT_FINITE_STATUS.
        ValueError: at the end of an epoch, if the module logs no `z_std`.
    """

    # Key of the state in checkpoints. By default Lightning would take the name of a subclass.
    state_key = "CollapseMonitor"  # pyright: ignore[reportAssignmentType]

    def __init__(self, stop: bool = False, print_fn: Callable[[str], Any] | None = None) -> None:
        self.stop = stop
        self.print_fn = print_fn or print_on_rank_zero
        self._forget()

    def _forget(self) -> None:
        """Begin a run: nothing has been measured, and the user has not been warned."""
        self.warned = False  # of a collapse or a divergence
        self.warned_of_rank = False
        self.ranks: list[float] = []  # the latest effective ranks that a KNNMonitor has measured

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move behind every KNNMonitor, which must measure the rank of an epoch first."""
        order: list[Any] = list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        monitors = [i for i, callback in enumerate(order) if isinstance(callback, KNNMonitor)]
        position = order.index(self)
        if monitors and monitors[-1] > position:
            order.insert(monitors[-1], order.pop(position))
        trainer.callbacks = order  # pyright: ignore[reportAttributeAccessIssue]
        # An earlier `fit` may have left a state. That of a checkpoint is loaded after this hook.
        if stage == "fit":
            self._forget()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        z_std = self._current_z_std(trainer, pl_module)
        rank = self._current_rank(trainer)
        if self._has_diverged(trainer, pl_module, z_std):
            self._report(
                f"the training has diverged in epoch {epoch}: the loss is not finite. "
                "Usual cause: a too high learning rate",
                NOT_FINITE_STATUS,
            )
        elif is_collapsed(z_std, rank):
            self._report_collapse(epoch, z_std, rank)
        self._check_rank(trainer, epoch, z_std)

    def _has_diverged(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, z_std: float
    ) -> bool:
        if math.isfinite(z_std):
            return False
        # Of a batch of a single image, only z_std is not a number.
        loss = self._current_mean("train_loss", trainer, pl_module)
        return loss is None or not math.isfinite(loss)

    def _report_collapse(self, epoch: int, z_std: float, rank: float | None) -> None:
        symptoms = f"z_std is {z_std:.3f} (healthy: near 1)"
        if rank is not None:
            symptoms += f" and the effective rank of the features is {rank:.1f} (healthy: dozens)"
        message = (
            f"the representation has collapsed in epoch {epoch}: {symptoms}. "
            "Usual causes: no stop-gradient, no predictor, no BN in the heads, a too high weight "
            "decay or learning rate"
        )
        self._report(message, COLLAPSED_STATUS)

    def _report(self, message: str, status: int) -> None:
        """Warn once, or end the run with this exit status."""
        if self.stop:
            raise RunError(message, status)
        if not self.warned:
            self.print_fn(f"warning: {message}")
            self.warned = True

    def _check_rank(self, trainer: pl.Trainer, epoch: int, z_std: float) -> None:
        """Warn if the effective rank stays low. The warning of a collapse includes this one."""
        knn = self._find_knn_monitor(trainer)
        if knn is None or "rankme" not in knn.epoch_metrics:
            return
        rank = knn.epoch_metrics["rankme"]
        self.ranks = [*self.ranks, rank][-LOST_RANK_MEASUREMENTS:]
        if self.warned or self.warned_of_rank:
            return
        num_images, num_features = knn.bank_shape
        threshold = lost_rank_threshold(num_features, num_images)
        if has_lost_rank(self.ranks, threshold):
            self.print_fn(
                f"warning: the effective rank of the {num_features} features is only {rank:.1f} in "
                f"epoch {epoch} (healthy: well above {threshold:.2g}), although z_std is "
                f"{z_std:.3f}. While it is so low, the network hardly learns anything. The usual "
                "cause is a too high weight decay: start again with a lower one, or with a lower "
                "learning rate"
            )
            self.warned_of_rank = True

    def _current_z_std(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """Return the mean of z_std over the epoch so far."""
        z_std = self._current_mean("z_std", trainer, pl_module)
        if z_std is None:
            raise ValueError(
                "CollapseMonitor needs a module that logs z_std, as SimSiam does; "
                f"{type(pl_module).__name__} does not. In a subclass of SimSiam, each hook must "
                "call super()"
            )
        return z_std

    def _current_mean(
        self, name: str, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> float | None:
        """Return the mean of a metric over the epoch so far; None if the module does not log it."""
        means = trainer.callback_metrics
        # SimSiam logs its means after the last batch. None is logged yet if a validation has ended
        # the epoch early, or if the run resumes between the last batch and the end of the epoch.
        if name not in means and isinstance(pl_module, ResumableModule):
            means = pl_module.epoch_means()
        return float(means[name]) if name in means else None

    def _current_rank(self, trainer: pl.Trainer) -> float | None:
        """Return the effective rank of the features; None if it was not measured in this epoch."""
        knn = self._find_knn_monitor(trainer)
        if knn is not None:
            return knn.epoch_metrics.get("rankme")
        rank = trainer.callback_metrics.get("rankme")
        return None if rank is None else float(rank)

    def _find_knn_monitor(self, trainer: pl.Trainer) -> KNNMonitor | None:
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, KNNMonitor):
                return callback
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "warned": self.warned,
            "warned_of_rank": self.warned_of_rank,
            "ranks": self.ranks,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warned = state_dict["warned"]
        self.warned_of_rank = state_dict["warned_of_rank"]
        self.ranks = list(state_dict["ranks"])
