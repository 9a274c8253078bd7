"""Detection of a collapsed representation."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from simsiam.config.options import is_collapsed
from utils.errors import RunFailure


class CollapseMonitor(pl.Callback):
    """Warns once, through `report`, when `z_std` and `rankme` are low; with `stop`, raises RunFailure with status 3.

    Without BN in the heads `z_std` is low in a healthy run, too, so the rank of the features decides. Where nobody
    measures `rankme`, a `z_std` near 0 does.
    """

    def __init__(self, stop: bool = False, report: Callable[[str], Any] = print) -> None:
        self.stop, self.report, self.warned = stop, report, False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = trainer.callback_metrics
        if "z_std" not in figures:
            raise ValueError(
                f"CollapseMonitor needs a module that logs z_std, as SimSiam does: {type(pl_module).__name__}"
            )
        z_std, rank = float(figures["z_std"]), float(figures["rankme"]) if "rankme" in figures else None
        if self.warned or not is_collapsed(z_std, rank):
            return
        measured = "" if rank is None else f" and the effective rank of the features {rank:.1f} (dozens)"
        message = (
            f"the representation has collapsed in epoch {trainer.current_epoch + 1}: z_std is {z_std:.3f} "
            f"(healthy: near 1){measured}. Usual causes: no stop-gradient, no predictor, no BN in the heads, "
            "a weight decay or learning rate too high"
        )
        if self.stop:
            raise RunFailure(message, status=3)
        self.report(f"warning: {message}")
        self.warned = True
