"""The checkpoints of a run, written in the background, and its orderly end on a signal."""

import os
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from simsiam.callbacks.metrics import MetricsRecorder, not_finite
from simsiam.callbacks.signals import SignalCallback
from utils import distributed
from utils.checkpoint_io import read_checkpoint
from utils.console import print_line
from utils.errors import StoppedBySignal
from utils.filesystem import write_atomically
from utils.run_dir import RunDirectory, previous

CHECKPOINT_SECONDS = 30  # at least, between two
SHARE = 0.01  # of the time, at most, that training may wait for checkpoints


class BackgroundCheckpointIO(TorchCheckpointIO):
    """Writes copies of the tensors atomically in a thread, so that training does not wait for the disk.

    `best.ckpt` is written with the next `last.ckpt`; until then a better one takes its place. The `last.ckpt` before is
    kept, too. A failure to write is noted in `failures` (file -> reason, of its latest attempt) and raises nothing.

    Args:
        about: plain values that every checkpoint holds besides Lightning's own.
    """

    def __init__(self, run: RunDirectory, about: dict[str, Any]) -> None:
        self.run, self.about = run, about
        self.failures: dict[Path, str] = {}
        self._thread, self._writing = ThreadPoolExecutor(1), list[Future[None]]()
        self._held: dict[Path, dict[str, Any]] = {}  # copies that are not being written yet

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        copy = apply_to_collection(
            checkpoint | self.about, torch.Tensor, lambda tensor: tensor.detach().clone()
        )
        self._held[Path(path)] = copy
        if Path(path) != self.run.best:
            self._write_held()

    def _write_held(self) -> None:
        self._writing += [
            self._thread.submit(self._write, copy, path) for path, copy in self._held.items()
        ]
        self._held.clear()

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        def write(partial: Path) -> None:
            with open(
                partial, "wb"
            ) as file:  # given a path, torch reports a full disk as "unexpected pos"
                torch.save(checkpoint, file)
            if path == self.run.last and path.exists():
                previous(path).unlink(missing_ok=True)
                try:
                    os.link(path, previous(path))
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, previous(path))

        try:
            write_atomically(path, write)
            self.failures.pop(path, None)
        except OSError as error:
            self.failures[path] = error.strerror or str(error)

    def wait(self) -> None:
        """Return when every checkpoint that is being written is on the disk, or has failed."""
        while self._writing:
            self._writing.pop().result()

    def teardown(self) -> None:
        """By Lightning, at the end, and after a failure."""
        self._write_held()
        self.wait()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        return read_checkpoint(Path(path))  # on the CPU; Lightning moves tensors to the device


class CheckpointCallback(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, the weights of the highest kNN accuracy so far.

    Args:
        every: epochs between checkpoints; None for 30 seconds, or a hundred times what training waited for the last
            one if that is longer.
        io: writes them; every checkpoint also holds `io.about`, with the epoch's row as `row`.
        signals: after one, the run is saved at the end of the step and ends with status 128 + the signal's number.
    """

    state_key = "Keeper"  # pyright: ignore[reportAssignmentType]  (in checkpoints)

    def __init__(
        self,
        run: RunDirectory,
        recorder: MetricsRecorder,
        every: int | None,
        io: BackgroundCheckpointIO,
        signals: SignalCallback,
    ) -> None:
        self.run, self.recorder, self.every, self.io, self.signals = (
            run,
            recorder,
            every,
            io,
            signals,
        )
        self.best: float | None = None  # kNN accuracy in percent
        self.best_epoch: int | None = None
        self.begun = False  # whether training has, which means that all state was restored
        self.saved_at, self.waited = time.monotonic(), 0.0  # of the last checkpoint, in seconds
        self.warned: dict[Path, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        schedule = trainer.lr_scheduler_configs[0].scheduler
        if schedule.last_epoch != trainer.global_step:
            raise ValueError(
                f"its schedule is at step {schedule.last_epoch}, its training at {trainer.global_step}"
            )
        self.begun = self.signals.to_save = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped = (
            batch_idx + 1
        ) % trainer.accumulate_grad_batches == 0  # accumulated gradients are not saved
        if stepped and not trainer.is_last_batch:  # after the last one, the end of the epoch saves
            self._save_or_stop(
                trainer, self.signals.received, self.every is None and self._is_due()
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.recorder.row
        accuracy, epoch = row.get("kNN_accuracy"), row["epoch"]
        self._warn_of_failures()
        if (
            self.run.best in self.io.failures
        ):  # the best epoch's weights were not kept: take the next best
            self.best = None
        if accuracy is not None and (self.best is None or accuracy > self.best):
            self.best, self.best_epoch = accuracy, epoch
            self.io.about["row"] = row
            trainer.save_checkpoint(self.run.best, weights_only=True)
        last = epoch == trainer.max_epochs
        due = last or (self._is_due() if self.every is None else epoch % self.every == 0)
        self._save_or_stop(trainer, 0 if last else self.signals.received, due)

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= max(CHECKPOINT_SECONDS, self.waited / SHARE)

    def _save_or_stop(self, trainer: pl.Trainer, number: int, due: bool) -> None:
        """Save if that is due or signal `number` asks for it in any process, and then obey the signal; 0 is none."""
        number, due_anywhere = distributed.all_reduce_max(number, due)
        if number or due_anywhere:
            self._save(trainer)
        if not number:
            return
        self.io.wait()  # SLURM may kill the job as soon as it is requeued
        if number == signal.SIGUSR1 and self.signals.requeue is not None:
            self.signals.requeue()
            self.io.wait()
            self.signals.received = 0
            return
        trainer.strategy.barrier()  # rank 0 writes: if another rank ended first, it would count as lost
        failure, kept = self.io.failures.get(self.run.last), self.run.resumable()
        saved = f"not saved ({failure})" if failure else "saved: the same command resumes it"
        saved += f": the same command goes on from {kept[0]}" if failure and kept else ""
        where = (
            f"in epoch {trainer.current_epoch + 1}, step {trainer.global_step}, in {self.run.path}"
        )
        raise StoppedBySignal(number, f" {where}; {saved}")

    def _save(self, trainer: pl.Trainer) -> None:
        if not all(
            parameter.isfinite().all() for parameter in trainer.lightning_module.parameters()
        ):
            raise not_finite("a weight is not finite", trainer.current_epoch + 1, self.run)
        started = time.monotonic()
        self.io.wait()  # for the checkpoint before: on a slow disk none may queue up in memory
        self.io.about["row"] = self.recorder.row
        trainer.save_checkpoint(self.run.last)
        self.saved_at = time.monotonic()
        self.waited = self.saved_at - started

    def _warn_of_failures(self) -> None:
        """Warn once per file that could not be written; the next checkpoint tries again."""
        failures = dict(self.io.failures)
        for path in failures.keys() - self.warned.keys():
            print_line(
                f"warning: {path} could not be written ({failures[path]}): make room; the one before it is kept"
            )
        self.warned = failures

    def check_saved(self) -> None:
        """Raise OSError unless the last checkpoint is on the disk."""
        self.io.wait()
        if failure := self.io.failures.get(self.run.last):
            raise OSError(0, failure, str(self.run.last))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.run.best.exists():  # it does not if a checkpoint is resumed in another folder
            self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
