"""Write the checkpoints of a run in the background, and end the run after a signal."""

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

from simsiam.callbacks.metrics import MetricsRecorder, make_not_finite_error
from simsiam.callbacks.signals import SignalCallback
from utils import distributed
from utils.checkpoint_io import read_checkpoint
from utils.console import print_line
from utils.errors import StoppedBySignal
from utils.filesystem import write_atomically
from utils.run_dir import RunDirectory, previous

MIN_CHECKPOINT_SECONDS = 30  # between two checkpoints
MAX_BLOCKED_FRACTION = 0.01  # share of the training time that may be spent waiting for checkpoints


class BackgroundCheckpointIO(TorchCheckpointIO):
    """Write checkpoints in a thread, so that training does not wait for the disk.

    The thread writes copies of the tensors, and each file atomically. `best.ckpt` stays in memory
    until another checkpoint is saved or training ends, so that several better epochs in a row cost
    a single write. The previous `last.ckpt` is kept as `last.previous.ckpt`.

    A failed write raises no error. The dictionary `failures` has the reason for each file whose
    latest write failed.

    Args:
        extra_state: plain values that every checkpoint holds in addition to Lightning's own.
    """

    def __init__(self, run: RunDirectory, extra_state: dict[str, Any]) -> None:
        self.run = run
        self.extra_state = extra_state
        self.failures: dict[Path, str] = {}
        self._thread = ThreadPoolExecutor(1)
        self._writes: list[Future[None]] = []
        self._not_started: dict[Path, dict[str, Any]] = {}  # file -> copy of a checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        content = checkpoint | self.extra_state
        copy = apply_to_collection(content, torch.Tensor, lambda tensor: tensor.detach().clone())
        self._not_started[Path(path)] = copy
        if Path(path) != self.run.best:
            self._start_writes()

    def _start_writes(self) -> None:
        for path, checkpoint in self._not_started.items():
            self._writes.append(self._thread.submit(self._write, checkpoint, path))
        self._not_started.clear()

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        def write(partial: Path) -> None:
            # Given a path instead of a file, torch reports a full disk as "unexpected pos".
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
            # `path` is still the earlier file: `write_atomically` replaces it after this function.
            if path == self.run.last and path.exists():
                self._keep_previous()

        try:
            write_atomically(path, write)
            self.failures.pop(path, None)
        except OSError as error:
            self.failures[path] = error.strerror or str(error)

    def _keep_previous(self) -> None:
        """Give the current `last.ckpt` the name `last.previous.ckpt` as well."""
        last = self.run.last
        previous(last).unlink(missing_ok=True)
        try:
            os.link(last, previous(last))
        except OSError:  # this file system has no hard links
            shutil.copyfile(last, previous(last))

    def wait(self) -> None:
        """Wait until each started write has succeeded or failed."""
        while self._writes:
            self._writes.pop().result()

    def teardown(self) -> None:
        """Write a `best.ckpt` that is still in memory, and wait for all writes.

        Lightning calls this at the end of training and after an error.
        """
        self._start_writes()
        self.wait()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> Any:
        return read_checkpoint(Path(path))  # on the CPU; Lightning moves tensors to the device


class CheckpointCallback(Checkpoint):
    """Save checkpoints of a run, and end it after a signal.

    `last.ckpt` holds all that is needed to resume. `best.ckpt` holds the weights of the epoch with
    the highest kNN accuracy so far.

    Args:
        recorder: has the row of metrics of the latest epoch, which each checkpoint holds as `row`.
        every: epochs between checkpoints. With None a checkpoint is saved every 30 seconds, or less
            often if the training waits longer for a checkpoint than MAX_BLOCKED_FRACTION allows.
        io: writes the checkpoints.
        signals: after a signal, the run is saved at the end of the step. Then it ends; or, after
            SIGUSR1 in a SLURM job, it requeues the job and trains until SLURM kills it.

    Raises:
        StoppedBySignal: the run was saved after a signal.
        RunError: with NOT_FINITE_STATUS, if a weight is not finite.
    """

    def __init__(
        self,
        run: RunDirectory,
        recorder: MetricsRecorder,
        every: int | None,
        io: BackgroundCheckpointIO,
        signals: SignalCallback,
    ) -> None:
        self.run = run
        self.recorder = recorder
        self.every = every
        self.io = io
        self.signals = signals
        self.best: float | None = None  # the highest kNN accuracy, in percent
        self.best_epoch: int | None = None
        self.begun = False  # whether training has begun, which means that all state was restored
        # When the latest checkpoint was handed to `io`, and how long training waited for that.
        self.saved_at = time.monotonic()
        self.blocked_seconds = 0.0
        self._reported_failures: dict[Path, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the restored state. From now on, a signal saves the run before it ends.

        Raises:
            ValueError: the restored checkpoint contradicts itself.
        """
        schedule = trainer.lr_scheduler_configs[0].scheduler
        if schedule.last_epoch != trainer.global_step:
            raise ValueError(
                f"the checkpoint has the learning rate of step {schedule.last_epoch}, "
                f"but its training is at step {trainer.global_step}"
            )
        self.begun = True
        self.signals.saves_before_end = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Save only right after an optimizer step, when no gradients are accumulated.
        is_step_done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # After the last batch of an epoch, on_train_epoch_end saves.
        if is_step_done and not trainer.is_last_batch:
            is_due = self.every is None and self._is_due_by_time()
            self._save_and_obey(trainer, self.signals.received, is_due)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._warn_of_failures()
        row = self.recorder.row
        epoch = row["epoch"]  # from 1, unlike trainer.current_epoch

        # If best.ckpt could not be written, its weights are lost. Then the next weights whose
        # accuracy is measured count as the best, whatever their accuracy is.
        if self.run.best in self.io.failures:
            self.best = None
        accuracy = row.get("kNN_accuracy")
        # All ranks have to save, or none. Only rank 0 writes files and knows of failures.
        if accuracy is not None and distributed.broadcast_result(lambda: self._is_best(accuracy)):
            self.best = accuracy
            self.best_epoch = epoch
            self.io.extra_state["row"] = row
            trainer.save_checkpoint(self.run.best, weights_only=True)

        if epoch == trainer.max_epochs:
            # Save the last epoch in any case. Ignore a signal, because the run is about to end.
            self._save_and_obey(trainer, signal_number=0, is_due=True)
            return
        if self.every is None:
            is_due = self._is_due_by_time()
        else:
            is_due = epoch % self.every == 0
        self._save_and_obey(trainer, self.signals.received, is_due)

    def _is_best(self, accuracy: float) -> bool:
        return self.best is None or accuracy > self.best

    def _is_due_by_time(self) -> bool:
        """Return whether the latest checkpoint is old enough for the next one."""
        seconds = max(MIN_CHECKPOINT_SECONDS, self.blocked_seconds / MAX_BLOCKED_FRACTION)
        return time.monotonic() - self.saved_at >= seconds

    def _save_and_obey(self, trainer: pl.Trainer, signal_number: int, is_due: bool) -> None:
        """Save if a checkpoint is due or there was a signal, then obey the signal.

        The run stops, except after SIGUSR1 in a SLURM job: that requeues the job, and the run goes
        on until SLURM ends it.

        All ranks do the same, whichever of them received the signal.

        Args:
            signal_number: the signal that this rank received; 0 for none.
            is_due: whether this rank counts a checkpoint as due; the ranks' clocks may differ.
        """
        signal_number, is_due_anywhere = distributed.all_reduce_max(signal_number, is_due)
        if signal_number or is_due_anywhere:
            self._save(trainer)
        if not signal_number:
            return
        # SLURM may kill the job as soon as it is requeued, so the checkpoint must be written first.
        self.io.wait()
        if signal_number == signal.SIGUSR1 and self.signals.requeue is not None:
            self.signals.requeue()  # Lightning's handler also saves a checkpoint
            self.io.wait()
            self.signals.received = 0
            return
        # Only rank 0 has to wait for a write. The other ranks wait for rank 0 here, because rank 0
        # would take a rank that ended first for a lost process.
        trainer.strategy.barrier()
        position = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
        raise StoppedBySignal(
            signal_number, f" in {position}, in {self.run.path}; {self._describe_last_save()}"
        )

    def _describe_last_save(self) -> str:
        """Return whether `last.ckpt` is saved, and from where the run can resume."""
        failure = self.io.failures.get(self.run.last)
        if failure is None:
            return f"saved: {self.signals.resume_command} resumes it"
        resumable = self.run.resumable()
        if not resumable:
            return f"not saved ({failure})"
        command = self.signals.resume_command
        return f"not saved ({failure}): {command} resumes from {resumable[0]}"

    def _save(self, trainer: pl.Trainer) -> None:
        for parameter in trainer.lightning_module.parameters():
            if not parameter.isfinite().all():
                epoch = trainer.current_epoch + 1
                raise make_not_finite_error("a weight is not finite", epoch, self.run)
        started = time.monotonic()
        # Wait for the checkpoint before this one. Otherwise, on a slow disk, copies that wait to be
        # written would fill the memory.
        self.io.wait()
        self.io.extra_state["row"] = self.recorder.row
        trainer.save_checkpoint(self.run.last)
        self.saved_at = time.monotonic()
        self.blocked_seconds = self.saved_at - started

    def _warn_of_failures(self) -> None:
        """Warn once for each file that could not be written; the next checkpoint tries again."""
        failures = dict(self.io.failures)
        for path in failures.keys() - self._reported_failures.keys():
            print_line(
                f"warning: {path} could not be written ({failures[path]}). "
                "The checkpoint before it is kept, and the next checkpoint tries again."
            )
        self._reported_failures = failures

    def check_saved(self) -> None:
        """Raise OSError unless the last checkpoint is on the disk."""
        self.io.wait()
        failure = self.io.failures.get(self.run.last)
        if failure is not None:
            raise OSError(0, failure, str(self.run.last))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A checkpoint may be resumed in another folder, which has no best.ckpt yet.
        if self.run.best.exists():
            self.best = state_dict["best"]
            self.best_epoch = state_dict["best_epoch"]
