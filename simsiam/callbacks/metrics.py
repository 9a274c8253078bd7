"""metrics.jsonl: the means of each epoch, a row an epoch."""

import functools
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch

from simsiam.callbacks.knn import KNNMonitor, parts
from utils import distributed
from utils.console import print_line
from utils.device import bf16_peak, step_flops
from utils.errors import RunFailure
from utils.run_dir import RunDirectory


class MetricsRecorder(pl.Callback):
    """Takes the means of each epoch, logs them to TensorBoard and keeps `metrics.jsonl`, a row an epoch.

    A row: epoch (1 for the first), step (optimizer steps so far), train_loss and z_std (means over the epoch),
    kNN_accuracy (percent; only where measured), learning_rate (at the epoch's end), images_per_second (of training
    alone), seconds (of the whole epoch).

    Checkpoints hold the rows so far and the sums of an epoch that is not over, so that a run goes on wherever it was
    interrupted and whatever became of the file.
    """

    def __init__(self, run: RunDirectory, knn: KNNMonitor) -> None:
        self.run, self.knn = run, knn
        self.rows: list[dict[str, Any]] = []
        self.sums, self.batches = torch.zeros(2, dtype=torch.float64), 0  # of loss and z_std, over the epoch so far
        self.seconds = 0.0  # of this epoch, spent before an interruption

    @property
    def state_key(self) -> str:  # in checkpoints: the name that the class had when the first were written
        return "Recorder"

    @property
    def row(self) -> dict[str, Any]:
        return self.rows[-1] if self.rows else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums = self.sums.to(pl_module.device)
        self.started, self.batches_before = time.perf_counter(), self.batches
        self._write()
        self.peak = bf16_peak(pl_module.device) if pl_module.device.type == "cuda" else None
        data = parts(trainer, pl_module)[1]
        build = functools.partial(type(pl_module), **pl_module.hparams)
        self.flops = step_flops(build, 1, data.views, data.size) if self.peak else 0.0

    def _write(self) -> None:
        if distributed.rank() == 0:
            self.run.write_rows(self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums.zero_()
        self.batches, self.seconds = 0, 0.0
        self.started, self.batches_before = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        self.sums += torch.stack([loss.detach(), outputs["z_std"]])
        self.batches += 1
        if trainer.is_last_batch:
            means = distributed.all_reduce_mean(self.sums) / self.batches
            self.means = means.tolist()  # the one wait for the device: it makes the time true
            batch = parts(trainer, pl_module)[1].batch_size
            images = (self.batches - self.batches_before) * batch / trainer.accumulate_grad_batches
            self.images_per_second = images / (time.perf_counter() - self.started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor.

        Raises:
            RunFailure: status 4, if the loss is no longer finite.
        """
        loss, z_std = self.means
        if not math.isfinite(loss):
            raise not_finite(f"the loss is {loss}", trainer.current_epoch + 1, self.run)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {"train_loss": loss, "z_std": z_std, "learning_rate": rate}
        pl_module.log_dict(metrics, logger=False)
        for logger in trainer.loggers:  # now, not after all callbacks: a checkpoint must find it in the curve
            logger.log_metrics(metrics | self.performance(), trainer.global_step - 1)
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "train_loss": loss, "z_std": z_std}
        if self.knn.latest is not None:
            row["kNN_accuracy"] = self.knn.latest
        row |= {
            "learning_rate": rate,
            "images_per_second": round(self.images_per_second, 1),
            "seconds": round(self.seconds + time.perf_counter() - self.started, 3),
        }
        self.rows.append(row)
        try:
            self._write()
        except OSError as error:
            print_line(
                f"warning: {self.run.metrics} cannot be written ({error.strerror}); it is tried again each epoch"
            )

    def performance(self) -> dict[str, float]:
        """Images a second, and on a GPU the share of its bf16 peak (both measured; the operations are counted)."""
        figures = {"perf/images_per_second": self.images_per_second}
        if self.peak:
            figures["perf/mfu"] = self.images_per_second * self.flops / self.peak / distributed.world_size()
        return figures

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.started
        return {
            "rows": self.rows,
            "sums": distributed.all_reduce_mean(self.sums).clone(),
            "batches": self.batches,
            "seconds": seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.sums = list(state_dict["rows"]), state_dict["sums"]
        self.batches, self.seconds = state_dict["batches"], state_dict["seconds"]

    def words(self) -> str:
        """The epoch's figures, for people."""
        row = self.row
        line = f"loss {row['train_loss']:.4f}"
        if "kNN_accuracy" in row:
            line += f"  kNN {row['kNN_accuracy']:.2f} %"
        return line + f"  z_std {row['z_std']:.3f}  {row['images_per_second']:,.0f} images/s"


def not_finite(what: str, epoch: int, run: RunDirectory) -> RunFailure:
    """The failure with status 4, which names the last good checkpoint."""
    kept = run.resumable()
    good = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
    return RunFailure(f"{what} in epoch {epoch}: lower --learning-rate; {good}", status=4)
