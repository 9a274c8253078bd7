"""What a run cannot lose: its checkpoints, and an orderly end when it is told to stop."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from simsiam.record import Recorder, not_finite
from utils import ranks
from utils.checkpoint import BackgroundCheckpointIO
from utils.errors import Stopped
from utils.runfolder import RunFolder
from utils.terminal import console, say

CHECKPOINT_SECONDS = 30  # at least, between two
SHARE = 0.01  # of the time, at most, that training may wait for checkpoints


class Signals:
    """Remembers that SIGTERM, SIGINT or SIGHUP came, until a moment at which the run can be saved.

    With several processes, one that comes to any of them is meant for all. A second SIGINT leaves at once. SLURM's
    pre-emption signal is Lightning's, and is passed on to it at such a moment.
    """

    def __init__(self) -> None:
        self.received = 0
        self.requeue: Callable[[], object] | None = None
        self.any = ranks.Agreement()

    @contextmanager
    def caught(self) -> Iterator[None]:
        """While training: ignored signals stay ignored (`nohup`), and the former handlers come back afterwards."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        former = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        requeue = signal.getsignal(signal.SIGUSR1)
        try:
            for number in former:
                signal.signal(number, self._stop)
            if callable(requeue):
                former[signal.SIGUSR1] = requeue
                self.requeue = lambda: requeue(signal.SIGUSR1, None)
                signal.signal(signal.SIGUSR1, self._stop)
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            console.show_cursor(True)
            os._exit(128 + number)
        if number == signal.SIGHUP:  # the terminal is gone: to write to it would fail
            for stream in (sys.stdout, sys.stderr):
                if stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        self.received = number


class Keeper(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, the weights of the highest kNN accuracy so far.

    Args:
        every: epochs between checkpoints; None for the end of the epoch once 30 seconds have gone by, and a hundred
            times what training waited for the last one.
        io: who writes; what its `about` holds goes into every checkpoint, with the epoch's row as `row`.
        signals: told to stop, the run is saved at the end of the step and ends with status 128 + the signal's number.
    """

    def __init__(
        self, run: RunFolder, recorder: Recorder, every: int | None, io: BackgroundCheckpointIO, signals: Signals
    ) -> None:
        self.run, self.recorder, self.every, self.io, self.signals = run, recorder, every, io, signals
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.saved_at, self.waited = time.monotonic(), 0.0
        self.reported: dict[Path, str] = {}
        self.handlers = ExitStack()
        self.begun = False  # to train: all that was to be restored is

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        schedule = trainer.lr_scheduler_configs[0].scheduler
        if schedule.last_epoch != trainer.global_step:
            raise ValueError(f"its schedule is at step {schedule.last_epoch}, its training at {trainer.global_step}")
        self.begun = True
        self.handlers.enter_context(self.signals.caught())  # now, after Lightning's own: ours are the outer ones

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.handlers.close()  # Lightning calls no teardown then

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.handlers.close()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = self.signals.any(self.signals.received)
        if number == signal.SIGUSR1 and self.signals.requeue is not None:
            self.signals.received = 0
            self._save(trainer, pl_module)
            self.io.wait()  # before the job is given back, all must be on the disk
            self.signals.requeue()
            self.io.wait()
        elif number and not trainer.is_last_batch:  # else the epoch is brought to its end
            self._save(trainer, pl_module)
            self._leave(number, trainer.current_epoch + 1, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.recorder.row
        accuracy = row.get("kNN_accuracy")
        if accuracy is not None and (self.best is None or accuracy > self.best):
            self.best, self.best_epoch = accuracy, row["epoch"]
            self.io.about["row"] = row
            trainer.save_checkpoint(self.run.best, weights_only=True)
        number, due = ranks.largest(self.signals.received, self._due(row["epoch"], trainer.max_epochs))
        stop = number not in (0, signal.SIGUSR1) and row["epoch"] != trainer.max_epochs
        if stop or due:
            self._save(trainer, pl_module)
        self._report()
        if stop:
            self._leave(number, row["epoch"], trainer.global_step)

    def _due(self, epoch: int, epochs: int | None) -> bool:
        if epoch == epochs:
            return True
        if self.every is not None:
            return epoch % self.every == 0
        return time.monotonic() - self.saved_at >= max(CHECKPOINT_SECONDS, self.waited / SHARE)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise not_finite("a weight is not finite", trainer.current_epoch + 1, self.run)
        started = time.monotonic()
        self.io.about["row"] = self.recorder.row
        trainer.save_checkpoint(self.run.last)
        self.saved_at = time.monotonic()
        self.waited = self.saved_at - started

    def _report(self) -> None:
        """Say once what a disk would not take; the next checkpoint is tried all the same."""
        failures = dict(self.io.writer.failures)
        for path, why in failures.items():
            if path not in self.reported:
                say(f"warning: {path} could not be written ({why}): make room; the one before it is kept")
        self.reported = failures

    def _leave(self, number: int, epoch: int, step: int) -> None:
        self.io.wait()
        ranks.wait_for_all()  # the first one writes: who left before would be taken for lost
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
