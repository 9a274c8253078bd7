"""What a run leaves behind and shows: `metrics.jsonl`, checkpoints, TensorBoard's scalars, a line for each epoch."""

import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.utils.tensorboard.summary import hparams

from simsiam.monitor import KNNMonitor, parts
from utils.checkpoint import keep_previous
from utils.errors import RunFailure
from utils.runfolder import RunFolder
from utils.terminal import console, say

CHECKPOINT_SECONDS = 30  # a checkpoint of 90 MB takes .2 s: well below 1 % of the run


def fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    start: Path | None = None,
    stopped: str = "stopped",
) -> None:
    """Train; Ctrl-C and SIGTERM end it with `stopped`, in one line.

    Raises:
        RunFailure: status 130 or 143.
    """
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start)
    except SystemExit as stop:  # Lightning's answer to both
        raise RunFailure(stopped, 143 if isinstance(stop, SIGTERMException) else 130) from None


class Curves(TensorBoardLogger):
    """TensorBoard, without Lightning's curve of the epoch's own number."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def log_settings(self, settings: dict[str, Any]) -> None:
        """Fill the HPARAMS tab: its metrics are the latest values of the curves, so it needs no tags of its own."""
        known = {name: "default" if value is None else value for name, value in settings.items()}
        for part in hparams(known, dict.fromkeys(("kNN_accuracy", "train_loss", "z_std"), 0.0)):
            self.experiment._get_file_writer().add_summary(part)


class Recorder(pl.Callback):
    """Appends a row to `metrics.jsonl` at the end of each epoch and logs the rates to TensorBoard.

    A row: epoch (1 for the first), step (optimizer steps so far), train_loss and z_std (means over the epoch),
    kNN_accuracy (percent; only where measured), learning_rate (at the epoch's end), images_per_second (of training
    alone), seconds (of the whole epoch).
    """

    def __init__(self, run: RunFolder, knn: KNNMonitor) -> None:
        self.run, self.knn = run, knn
        self.row: dict[str, Any] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            outputs["loss"].item()  # the one wait for the device in an epoch: it makes the time true
            images = trainer.num_training_batches * parts(trainer, pl_module)[1].batch_size
            self.images_per_second = images / (time.perf_counter() - self.started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the kNN monitor.

        Raises:
            RunFailure: status 4, if the loss is no longer finite.
        """
        metrics = {name: trainer.callback_metrics[name].item() for name in ("train_loss", "z_std")}
        if not math.isfinite(metrics["train_loss"]):
            raise not_finite(f"the loss is {metrics['train_loss']}", trainer.current_epoch + 1, self.run)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        pl_module.log_dict({"learning_rate": rate, "perf/images_per_second": self.images_per_second})
        self.row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        self.row |= {"train_loss": metrics["train_loss"], "z_std": metrics["z_std"]}
        if self.knn.latest is not None:
            self.row["kNN_accuracy"] = self.knn.latest
        self.row |= {
            "learning_rate": rate,
            "images_per_second": round(self.images_per_second, 1),
            "seconds": round(time.perf_counter() - self.started, 3),
        }
        self.run.append_row(self.row)

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


class Keeper(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, the weights of the highest kNN accuracy so far.

    Args:
        every: epochs between checkpoints; None for the end of the epoch once 30 seconds have gone by.
        about: what every checkpoint says of itself; the epoch's row is put there as `row`.
    """

    def __init__(self, run: RunFolder, recorder: Recorder, every: int | None, about: dict[str, Any]) -> None:
        self.run, self.recorder, self.every, self.about = run, recorder, every, about
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.about["row"] = self.recorder.row
        accuracy = row.get("kNN_accuracy")
        if accuracy is not None and (self.best is None or accuracy > self.best):
            self.best, self.best_epoch = accuracy, row["epoch"]
            trainer.save_checkpoint(self.run.best, weights_only=True)
        if self._due(row["epoch"], trainer.max_epochs):
            if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
                raise not_finite("a weight is not finite", row["epoch"], self.run)
            keep_previous(self.run.last)
            trainer.save_checkpoint(self.run.last)
            self.saved_at = time.monotonic()

    def _due(self, epoch: int, epochs: int | None) -> bool:
        if epoch == epochs:
            return True
        if self.every is not None:
            return epoch % self.every == 0
        return time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.run.best.exists():  # not so where a checkpoint is resumed in another folder
            self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


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
            total = trainer.num_training_batches * (trainer.max_epochs or 0)
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
