"""Detection of a collapsed representation."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from simsiam.callbacks.knn import KNNMonitor
from simsiam.config.options import is_collapsed
from utils.errors import RunError


class CollapseMonitor(pl.Callback):
    """Warn once when the representation has collapsed: `z_std` and `rankme` are low.

    Without BN in the heads `z_std` is low in a healthy run too, so the rank of the features
    decides. Where nobody measures `rankme`, a `z_std` near 0 does.

    Args:
        stop: end the run instead of warning.
        print_fn: takes the warning; None for `print`.

    Raises:
        RunError: a RuntimeError; `stop` is set and the representation has collapsed (exit
            status 3 of the program).
        ValueError: at the end of an epoch, if the module logs no `z_std`.
    """

    def __init__(self, stop: bool = False, print_fn: Callable[[str], Any] | None = None) -> None:
        self.stop = stop
        self.print_fn = print if print_fn is None else print_fn
        self.warned = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place behind a KNNMonitor, which measures the rank of the same epoch."""
        callbacks: list[Any] = list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        own_place = callbacks.index(self)
        for place, callback in enumerate(callbacks):
            if isinstance(callback, KNNMonitor) and place > own_place:
                callbacks.insert(place, callbacks.pop(own_place))
                own_place = place
        trainer.callbacks = callbacks  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.warned = False  # may be of an earlier `fit`

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "z_std" not in metrics:
            if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                return  # validation ended the epoch early: the module logs its means after this
            raise ValueError(
                "CollapseMonitor needs a module that logs z_std, as SimSiam does; "
                f"{type(pl_module).__name__} does not. The hooks of a subclass of SimSiam must "
                "call super()"
            )
        z_std = float(metrics["z_std"])
        rank = self._current_rank(trainer)
        if self.warned or not is_collapsed(z_std, rank):
            return
        measured = ""
        if rank is not None:
            measured = f" and the effective rank of the features {rank:.1f} (dozens)"
        message = (
            f"the representation has collapsed in epoch {trainer.current_epoch + 1}: "
            f"z_std is {z_std:.3f} (healthy: near 1){measured}. Usual causes: no stop-gradient, "
            "no predictor, no BN in the heads, a weight decay or learning rate too high"
        )
        if self.stop:
            raise RunError(message, status=3)
        self.print_fn(f"warning: {message}")
        self.warned = True

    def _current_rank(self, trainer: pl.Trainer) -> float | None:
        """Return the effective rank of the features; None if it was not measured in this epoch."""
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, KNNMonitor):
                return callback.latest.get("rankme")
        rank = trainer.callback_metrics.get("rankme")
        return None if rank is None else float(rank)
