"""Detection of a collapsed representation."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from simsiam.loss import COLLAPSED
from utils.errors import RunFailure


class CollapseMonitor(pl.Callback):
    """Warns once, through `report`, when `z_std` falls; with `stop`, raises RunFailure with status 3 instead."""

    def __init__(self, stop: bool = False, report: Callable[[str], Any] = print) -> None:
        self.stop, self.report, self.warned = stop, report, False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "z_std" not in trainer.callback_metrics:
            raise ValueError(
                f"CollapseMonitor needs a module that logs z_std, as SimSiam does: {type(pl_module).__name__}"
            )
        z_std = float(trainer.callback_metrics["z_std"])
        if z_std >= COLLAPSED or self.warned:
            return
        message = (
            f"the representation has collapsed in epoch {trainer.current_epoch + 1}: z_std is {z_std:.3f} "
            "(healthy: near 1). Usual causes: no stop-gradient, no predictor, a weight decay or learning rate too high"
        )
        if self.stop:
            raise RunFailure(message, status=3)
        self.report(f"warning: {message}")
        self.warned = True
