"""Detection of a collapsed representation."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from simsiam.callbacks.knn import KNNMonitor
from simsiam.collapse import is_collapsed
from simsiam.resumable_module import ResumableModule
from utils.errors import COLLAPSED_STATUS, RunError


class CollapseMonitor(pl.Callback):
    """Warn once when the representation has collapsed: `z_std` and `rankme` are low.

    Without BN in the heads, `z_std` is low in a healthy run too, so a low rank of the features must
    confirm the collapse. If no callback measures `rankme`, only a `z_std` near 0 counts.

    Args:
        stop: whether to end the run instead of warning.
        print_fn: takes the warning; None for `print`.

    Raises:
        RunError: `stop` is set and the representation has collapsed. It is a RuntimeError, and the
            exit status of the program is COLLAPSED_STATUS.
        ValueError: at the end of an epoch, if the module logs no `z_std`.
    """

    def __init__(self, stop: bool = False, print_fn: Callable[[str], Any] | None = None) -> None:
        self.stop = stop
        self.print_fn = print if print_fn is None else print_fn
        self.warned = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move behind every KNNMonitor, which must measure the rank of an epoch first."""
        callbacks: list[Any] = list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        monitors = [i for i, callback in enumerate(callbacks) if isinstance(callback, KNNMonitor)]
        position = callbacks.index(self)
        if monitors and monitors[-1] > position:
            callbacks.insert(monitors[-1], callbacks.pop(position))
        trainer.callbacks = callbacks  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.warned = False  # an earlier `fit` may have set it

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        z_std = self._current_z_std(trainer, pl_module)
        rank = self._current_rank(trainer)
        if self.warned or not is_collapsed(z_std, rank):
            return
        symptoms = f"z_std is {z_std:.3f} (healthy: near 1)"
        if rank is not None:
            symptoms += f" and the effective rank of the features is {rank:.1f} (healthy: dozens)"
        message = (
            f"the representation has collapsed in epoch {trainer.current_epoch + 1}: {symptoms}. "
            "Usual causes: no stop-gradient, no predictor, no BN in the heads, a too high weight "
            "decay or learning rate"
        )
        if self.stop:
            raise RunError(message, COLLAPSED_STATUS)
        self.print_fn(f"warning: {message}")
        self.warned = True

    def _current_z_std(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """Return the mean of z_std over the epoch so far."""
        means: Mapping[str, Tensor] = trainer.callback_metrics
        # SimSiam logs its means after the last batch. None is logged yet if a validation has ended
        # the epoch early, or if the run resumes between the last batch and the end of the epoch.
        if "z_std" not in means and isinstance(pl_module, ResumableModule):
            means = pl_module.epoch_means()
        if "z_std" not in means:
            raise ValueError(
                "CollapseMonitor needs a module that logs z_std, as SimSiam does; "
                f"{type(pl_module).__name__} does not. In a subclass of SimSiam, each hook must "
                "call super()"
            )
        return float(means["z_std"])

    def _current_rank(self, trainer: pl.Trainer) -> float | None:
        """Return the effective rank of the features; None if it was not measured in this epoch."""
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, KNNMonitor):
                return callback.epoch_metrics.get("rankme")
        rank = trainer.callback_metrics.get("rankme")
        return None if rank is None else float(rank)
