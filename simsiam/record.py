"""What a run leaves behind and shows: `metrics.jsonl`, checkpoints, TensorBoard's scalars, a line for each epoch."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from simsiam.monitor import KNNMonitor, parts
from utils import ranks
from utils.device import bf16_peak, step_flops
from utils.errors import RunFailure
from utils.runfolder import RunFolder
from utils.terminal import console, say

CURVES = {"kNN_accuracy": "kNN accuracy (%)", "train_loss": "loss", "z_std": "z_std", "learning_rate": "learning rate"}


class Curves(TensorBoardLogger):
    """TensorBoard, without Lightning's curve of the epoch's own number.

    What a full disk does not take waits in memory: once there is room, the curves are whole again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        first = not self.waiting  # hence: nothing has failed so far
        self.waiting.append(({name: value for name, value in metrics.items() if name != "epoch"}, step))
        try:
            while self.waiting:
                super().log_metrics(*self.waiting[0])
                self.experiment.flush()
                self.waiting.pop(0)
        except (OSError, ValueError) as error:  # the latter is Lightning's word for any failure to log
            why = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(why, OSError):
                raise
            self._experiment = None  # its file may end in the middle of a record: the next try begins another,
            self._kwargs["purge_step"] = None  # which takes nothing back of what the first one holds
            if first:
                say(f"warning: TensorBoard's files cannot be written ({why.strerror}); it is tried again each epoch")

    def log_picture(self, tag: str, picture: Tensor, step: int) -> None:
        """(3, H, W) uint8. On a full disk there is none."""
        with suppress(OSError):
            self.experiment.add_image(tag, picture, step)

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Put the four curves on one page (CUSTOM SCALARS), and fill the HPARAMS tab.

        Its metrics are the latest values of the curves, so it needs no tags of its own.
        """
        known = {name: "default" if value is None else value for name, value in settings.items()}
        for part in hparams(known, dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)):
            self.experiment._get_file_writer().add_summary(part)
        lines = {title: ["Multiline", [tag]] for tag, title in CURVES.items()}
        self.experiment.add_custom_scalars({"SimSiam": lines})


class Recorder(pl.Callback):
    """Takes the means of each epoch, logs them to TensorBoard and keeps `metrics.jsonl`, a row an epoch.

    A row: epoch (1 for the first), step (optimizer steps so far), train_loss and z_std (means over the epoch),
    kNN_accuracy (percent; only where measured), learning_rate (at the epoch's end), images_per_second (of training
    alone), seconds (of the whole epoch).

    Checkpoints hold the rows so far and the sums of an epoch that is not over, so that a run goes on wherever it was
    interrupted and whatever became of the file.
    """

    def __init__(self, run: RunFolder, knn: KNNMonitor) -> None:
        self.run, self.knn = run, knn
        self.rows: list[dict[str, Any]] = []
        self.sums, self.batches = torch.zeros(2, dtype=torch.float64), 0  # of loss and z_std, over the epoch so far
        self.seconds = 0.0  # of this epoch, spent before an interruption

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
        if ranks.rank() == 0:
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
            means = ranks.mean_over_all(self.sums) / self.batches
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
            say(f"warning: {self.run.metrics} cannot be written ({error.strerror}); it is tried again each epoch")

    def performance(self) -> dict[str, float]:
        """Images a second, and on a GPU the share of its bf16 peak (both measured; the operations are counted)."""
        figures = {"perf/images_per_second": self.images_per_second}
        if self.peak:
            figures["perf/mfu"] = self.images_per_second * self.flops / self.peak / ranks.world()
        return figures

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.started
        return {
            "rows": self.rows,
            "sums": ranks.mean_over_all(self.sums).clone(),
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


def not_finite(what: str, epoch: int, run: RunFolder) -> RunFailure:
    """The failure with status 4, which names the last good checkpoint."""
    kept = run.resumable()
    good = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
    return RunFailure(f"{what} in epoch {epoch}: lower --learning-rate; {good}", status=4)


class ProgressLine(pl.Callback):
    """A bar with an epoch's figures and the time left; where the output is no terminal, a line an epoch.

    Args:
        words: asked at the end of each epoch, what there is to say of it.
    """

    def __init__(self, words: Callable[[], str]) -> None:
        self.words = words
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_epoch, self.started = trainer.current_epoch, time.perf_counter()
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
            )
            self.bar = Progress(*columns, console=console, refresh_per_second=4, transient=True)
            total = trainer.estimated_stepping_batches
            self.task = self.bar.add_task("steps", total=total, completed=trainer.global_step, now="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        left = (time.perf_counter() - self.started) / (epoch - self.first_epoch) * (epochs - epoch)
        line = f"epoch {epoch:{len(str(epochs))}d}/{epochs}  {self.words()}  left {timedelta(seconds=round(left))}"
        if self.bar is not None:
            self.bar.update(self.task, now=line)
        else:
            say(line)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()  # Lightning calls no teardown then, and a bar that goes on would swallow the error's line

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
