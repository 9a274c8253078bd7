"""The row of metrics.jsonl that each epoch of a run adds."""

import math
import time
from typing import Any

import pytorch_lightning as pl

from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.loggers import ResilientTensorBoardLogger
from simsiam.data.datamodule import ViewsDataModule
from simsiam.module import SimSiam
from utils import distributed
from utils.console import print_line
from utils.errors import NOT_FINITE_STATUS, RunError
from utils.run_dir import RunDirectory


class MetricsRecorder(pl.Callback):
    """Write the row of each epoch to metrics.jsonl; log the learning rate and the speed.

    A row has these values:
    - epoch: 1 for the first one
    - step: optimizer steps so far
    - train_loss, z_std: means over the epoch, of all metrics that the module records
    - kNN_accuracy (percent), rankme: in epochs in which they are measured
    - learning_rate: at the end of the epoch
    - images_per_second: of training alone, without kNN and checkpoints
    - seconds: of the complete epoch

    Checkpoints hold all rows, so that a resumed run does not depend on the file.

    Args:
        knn: must come before this callback, which takes what `knn` has measured in the epoch.

    Raises:
        RunError: with NOT_FINITE_STATUS, if one of the means is not finite.
    """

    def __init__(self, run: RunDirectory, knn: KNNMonitor) -> None:
        self.run = run
        self.knn = knn
        self.rows: list[dict[str, Any]] = []
        self.started = 0.0  # when this process began or resumed the epoch
        self.batches = 0  # of the epoch, since `started`
        self.earlier_seconds = 0.0  # that the epoch took before this process resumed it, or 0
        # Older checkpoints hold the module's sums over the epoch here instead of in the module.
        self._old_sums: dict[str, Any] | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The row of the latest epoch; empty during the first epoch."""
        return self.rows[-1] if self.rows else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._old_sums is not None:
            pl_module.on_load_checkpoint({"epoch_so_far": self._old_sums})
        self.started = time.perf_counter()
        self._write()

    def _write(self) -> None:
        if distributed.rank() == 0:
            self.run.write_rows(self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning does not call this when a resumed run continues in the middle of an epoch, so
        # that epoch keeps the seconds from its checkpoint.
        self.batches = 0
        self.earlier_seconds = 0.0
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.batches += 1
        if not trainer.is_last_batch:
            return
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(pl_module, SimSiam) and isinstance(data, ViewsDataModule)
        # `item` waits until the device has finished the epoch's last step. Only then can the time
        # be taken. This callback never waits in another step.
        self.means = {name: mean.item() for name, mean in pl_module.epoch_means().items()}
        optimizer_batches = self.batches / data.accumulate  # Lightning's batches are parts of them
        images = optimizer_batches * data.batch_size
        self.images_per_second = images / (time.perf_counter() - self.started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        for name, mean in self.means.items():
            if not math.isfinite(mean):
                raise make_not_finite_error(f"{name} is {mean}", epoch, self.run)

        # Features may overflow while the running statistics of BN lag behind the weights. Their
        # accuracy is NaN, and the epoch counts as one without a measurement.
        measured: dict[str, float] = {}
        for name, value in self.knn.epoch_metrics.items():
            if math.isfinite(value):
                measured[name] = value

        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        own_metrics = {
            "learning_rate": learning_rate,
            "perf/images_per_second": self.images_per_second,
        }
        pl_module.log_dict(own_metrics)
        self._log_early(trainer, {**self.means, **measured, **own_metrics})

        self.rows.append(
            {
                "epoch": epoch,
                "step": trainer.global_step,
                **self.means,
                **measured,
                "learning_rate": learning_rate,
                "images_per_second": round(self.images_per_second, 1),
                "seconds": round(self._seconds_of_epoch(), 3),
            }
        )
        try:
            self._write()
        except OSError as error:
            print_line(
                f"warning: {self.run.metrics} cannot be written ({error.strerror}). "
                "The next epoch tries again."
            )

    def _log_early(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Log the metrics of the epoch to TensorBoard before the epoch's checkpoint is saved.

        Lightning logs the same values to all loggers, but only after the checkpoint. If the process
        is killed between the checkpoint and the logging, the resumed run starts after this epoch
        and does not log it again. So the values are logged here first, and
        `ResilientTensorBoardLogger` ignores them when Lightning logs them.
        """
        for logger in trainer.loggers:
            if isinstance(logger, ResilientTensorBoardLogger):
                # Lightning logs the values of an epoch at this step.
                logger.log_early(metrics, step=trainer.global_step - 1)

    def _seconds_of_epoch(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._seconds_of_epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.earlier_seconds = state_dict["seconds"]
        if "sums" in state_dict:
            self._old_sums = {"sums": state_dict["sums"], "batches": state_dict["batches"]}

    def format_row(self) -> str:
        """Return the latest row as text for the user."""
        row = self.row
        parts = [f"loss {row['train_loss']:.4f}"]
        if "kNN_accuracy" in row:
            parts.append(f"kNN {row['kNN_accuracy']:.2f} %")
        elif "rankme" in row:  # without labels
            parts.append(f"rankme {row['rankme']:.1f}")
        parts.append(f"z_std {row['z_std']:.3f}")
        parts.append(f"{row['images_per_second']:,.0f} images/s")
        return "  ".join(parts)


def make_not_finite_error(problem: str, epoch: int, run: RunDirectory) -> RunError:
    """Return the error with NOT_FINITE_STATUS. It names the last good checkpoint.

    Args:
        problem: what is not finite, for example "train_loss is nan".
        epoch: 1 for the first one.
    """
    resumable = run.resumable()
    if resumable:
        good = f"the last good checkpoint is {resumable[0]}"
    else:
        good = "there is no checkpoint yet"
    message = f"{problem} in epoch {epoch}: lower --learning-rate; {good}"
    return RunError(message, NOT_FINITE_STATUS)
