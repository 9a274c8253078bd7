"""The row of each epoch in metrics.jsonl."""

import math
import time
from typing import Any

import pytorch_lightning as pl

from simsiam.callbacks.knn import KNNMonitor, parts
from simsiam.callbacks.loggers import ResilientTensorBoardLogger
from simsiam.module import SimSiam
from utils import distributed
from utils.console import print_line
from utils.errors import RunError
from utils.run_dir import RunDirectory


class MetricsRecorder(pl.Callback):
    """Writes `metrics.jsonl`, a row an epoch, and logs the learning rate and the speed. Comes after the kNN monitor.

    A row: epoch (1 for the first), step (optimizer steps so far), train_loss and z_std (means over the epoch),
    kNN_accuracy (percent) and rankme, where measured, learning_rate (at the epoch's end), images_per_second (of
    training alone), seconds (of the whole epoch).

    Checkpoints hold all rows, so a resumed run does not depend on the file.
    """

    state_key = "Recorder"  # pyright: ignore[reportAssignmentType]  (in checkpoints)

    def __init__(self, run: RunDirectory, knn: KNNMonitor) -> None:
        self.run, self.knn = run, knn
        self.rows: list[dict[str, Any]] = []
        self.batches, self.seconds = 0, 0.0  # of this epoch; the latter before an interruption
        self.so_far: dict[str, Any] | None = (
            None  # the module's sums, from checkpoints of when they were kept here
        )

    @property
    def row(self) -> dict[str, Any]:
        return self.rows[-1] if self.rows else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.so_far is not None:
            pl_module.on_load_checkpoint({"epoch_so_far": self.so_far})
        self.started = time.perf_counter()
        self._write()

    def _write(self) -> None:
        if distributed.rank() == 0:
            self.run.write_rows(self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches, self.seconds, self.started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.batches += 1
        if trainer.is_last_batch:
            # The epoch's only wait for the device; images_per_second is true only after it.
            assert isinstance(pl_module, SimSiam)
            self.means = pl_module.epoch_means().tolist()
            images = (
                self.batches
                / trainer.accumulate_grad_batches
                * parts(trainer, pl_module)[1].batch_size
            )
            self.images_per_second = images / (time.perf_counter() - self.started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log and write the epoch's row. Raises RunError with status 4 if the loss is not finite."""
        loss, z_std = self.means
        if not math.isfinite(loss):
            raise not_finite(f"the loss is {loss}", trainer.current_epoch + 1, self.run)
        rate, speed = trainer.optimizers[0].param_groups[0]["lr"], self.images_per_second
        means, metrics = (
            {"train_loss": loss, "z_std": z_std},
            {"learning_rate": rate, "perf/images_per_second": speed},
        )
        pl_module.log_dict(metrics)
        for logger in trainer.loggers:
            if isinstance(
                logger, ResilientTensorBoardLogger
            ):  # Lightning logs only after the epoch's checkpoint
                logger.log_metrics(means | self.knn.latest | metrics, trainer.global_step - 1)
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= means | self.knn.latest | {"learning_rate": rate}
        row |= {"images_per_second": round(speed, 1), "seconds": round(self._seconds_of_epoch(), 3)}
        self.rows.append(row)
        try:
            self._write()
        except OSError as error:
            why = f"{self.run.metrics} cannot be written ({error.strerror})"
            print_line(f"warning: {why}; it is tried again each epoch")

    def _seconds_of_epoch(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._seconds_of_epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]
        if "sums" in state_dict:
            self.so_far = {"sums": state_dict["sums"], "batches": state_dict["batches"]}

    def words(self) -> str:
        """The latest row as a line for the user."""
        row = self.row
        knn = f"  kNN {row['kNN_accuracy']:.2f} %" if "kNN_accuracy" in row else ""
        speed = f"{row['images_per_second']:,.0f} images/s"
        return f"loss {row['train_loss']:.4f}{knn}  z_std {row['z_std']:.3f}  {speed}"


def not_finite(what: str, epoch: int, run: RunDirectory) -> RunError:
    """The failure with exit status 4; its message names the last good checkpoint."""
    kept = run.resumable()
    good = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
    return RunError(f"{what} in epoch {epoch}: lower --learning-rate; {good}", status=4)
