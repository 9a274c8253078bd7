"""The checkpoints of a run, written in the background, and its orderly end on a signal."""

import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from simsiam.callbacks.metrics import MetricsRecorder, not_finite
from simsiam.callbacks.signals import SignalCallback
from utils import distributed
from utils.checkpoint_io import BackgroundCheckpointIO
from utils.console import print_line
from utils.errors import Stopped
from utils.run_dir import RunDirectory

CHECKPOINT_SECONDS = 30  # at least, between two


SHARE = 0.01  # of the time, at most, that training may wait for checkpoints


class CheckpointCallback(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, the weights of the highest kNN accuracy so far.

    Args:
        every: epochs between checkpoints; None for 30 seconds, or a hundred times what training waited for the last
            one if that is longer.
        io: who writes; what its `about` holds goes into every checkpoint, with the epoch's row as `row`.
        signals: told to stop, the run is saved at the end of the step and ends with status 128 + the signal's number.
    """

    def __init__(
        self,
        run: RunDirectory,
        recorder: MetricsRecorder,
        every: int | None,
        io: BackgroundCheckpointIO,
        signals: SignalCallback,
    ) -> None:
        self.run, self.recorder, self.every, self.io, self.signals = run, recorder, every, io, signals
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.saved_at, self.waited = time.monotonic(), 0.0
        self.reported: dict[Path, str] = {}
        self.any = distributed.DelayedMaximum()
        self.begun = False  # to train: all that was to be restored is

    @property
    def state_key(self) -> str:  # in checkpoints: the name that the class had when the first were written
        return "Keeper"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        schedule = trainer.lr_scheduler_configs[0].scheduler
        if schedule.last_epoch != trainer.global_step:
            raise ValueError(f"its schedule is at step {schedule.last_epoch}, its training at {trainer.global_step}")
        self.begun = self.signals.to_save = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # gradients are not kept
        if between_steps and not trainer.is_last_batch:  # else the epoch is brought to its end first
            number, due = self.any(self.signals.received, self.every is None and self._time_is_up())
            self._act(number, bool(due), trainer.current_epoch + 1, trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.recorder.row
        accuracy, epoch = row.get("kNN_accuracy"), row["epoch"]
        failures = self._report()
        if self.run.best in failures:  # the weights of that epoch are gone: the best is the best that is kept
            self.best = None
        if accuracy is not None and (self.best is None or accuracy > self.best):
            self.best, self.best_epoch = accuracy, epoch
            self.io.about["row"] = row
            trainer.save_checkpoint(self.run.best, weights_only=True)
        last = epoch == trainer.max_epochs
        due = last or (self._time_is_up() if self.every is None else epoch % self.every == 0)
        number, due = distributed.all_reduce_max(0 if last else self.signals.received, due)
        self._act(number, bool(due), epoch, trainer, pl_module)

    def _act(self, number: int, due: bool, epoch: int, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do what a signal asks for, or save if that is due."""
        if number or due:
            self._save(trainer, pl_module)
        if number == signal.SIGUSR1 and self.signals.requeue is not None:
            self.io.wait()  # before the job is given back, all must be on the disk
            self.signals.requeue()
            self.io.wait()
            self.signals.received, self.any = 0, distributed.DelayedMaximum()
        elif number:
            self._leave(number, epoch, trainer.global_step)

    def _time_is_up(self) -> bool:
        return time.monotonic() - self.saved_at >= max(CHECKPOINT_SECONDS, self.waited / SHARE)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not torch.stack([parameter.isfinite().all() for parameter in pl_module.parameters()]).all():
            raise not_finite("a weight is not finite", trainer.current_epoch + 1, self.run)
        started = time.monotonic()
        self.io.wait()  # for the one before, if the disk is slow: none is kept waiting in memory
        self.io.about["row"] = self.recorder.row
        trainer.save_checkpoint(self.run.last)
        self.saved_at = time.monotonic()
        self.waited = self.saved_at - started

    def _report(self) -> dict[Path, str]:
        """Say once what a disk would not take; the next checkpoint is tried all the same."""
        failures = dict(self.io.writer.failures)
        for path, why in failures.items():
            if path not in self.reported:
                print_line(f"warning: {path} could not be written ({why}): make room; the one before it is kept")
        self.reported = failures
        return failures

    def check_saved(self) -> None:
        """Raise OSError unless the last checkpoint is on the disk."""
        self.io.wait()
        failure = self.io.writer.failures.get(self.run.last)
        if failure is not None:
            raise OSError(0, failure, str(self.run.last))

    def _leave(self, number: int, epoch: int, step: int) -> None:
        self.io.wait()
        distributed.barrier()  # the first one writes: who left before would be taken for lost
        kept = self.run.resumable()
        failure = self.io.writer.failures.get(self.run.last)
        if failure is None:
            what = "saved: the same command resumes it"
        elif kept:
            what = f"not saved ({failure}): the same command goes on from {kept[0]}"
        else:
            what = f"not saved ({failure})"
        raise Stopped(number, f" in epoch {epoch}, step {step}, in {self.run.path}; {what}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.run.best.exists():  # not so where a checkpoint is resumed in another folder
            self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
