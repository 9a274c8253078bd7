"""The progress of training on the terminal."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn

from simsiam.data.datamodule import ViewsDataModule
from utils.console import MIN_BAR_WIDTH, console, print_line

REFRESH_SECONDS = 1.0  # between two updates of the bar, each of which waits for the device
# A terminal gets about this many lines, for epochs at equal intervals. A file gets a line for each
# epoch.
TERMINAL_LINES = 40
COLUMN_GAPS = 4  # columns that stay empty between the bar and the texts around it


class ProgressCallback(pl.Callback):
    """Print a line for each finished epoch, and on a terminal draw a bar of the current one.

    Args:
        format_metrics: returns the metrics of the latest epoch as text.
        remaining_overhead: takes a number of finished epochs, and returns about how many seconds
            the Trainer will still spend between epochs.
    """

    def __init__(
        self,
        format_metrics: Callable[[], str],
        remaining_overhead: Callable[[int], float] = lambda epoch: 0.0,
    ) -> None:
        self.format_metrics = format_metrics
        self.remaining_overhead = remaining_overhead
        # The bar shows the progress of an epoch, so rich's own column for the remaining time would
        # show that of the epoch. The text at the end has the remaining time of the run.
        self.bar = Progress(
            TextColumn("{task.fields[head]}", markup=False),
            BarColumn(None),
            TextColumn("{task.fields[tail]}", markup=False),
            console=console,
            expand=True,
            refresh_per_second=4,
            transient=True,
            disable=not console.draws_bars,
        )
        # Batches, time and pixels of training, without the first batch: it may compile.
        self.batches = 0
        self.seconds = 0.0
        self.pixels = 0  # the sum of the pixels of a view over the batches
        # When the latest batch ended. None: the first batch, which is not counted, has not ended.
        self._batch_ended: float | None = None
        self._bar_updated = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar_updated = 0.0
        self.task = self.bar.add_task("", total=None, head=format_epoch(trainer), tail="")
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Leave out the time between two epochs, which is no training.
        if self._batch_ended is not None:
            self._batch_ended = time.perf_counter()
        self._update_bar(trainer, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        if self._batch_ended is not None:
            self.batches += 1
            self.seconds += now - self._batch_ended
            self.pixels += count_pixels(trainer, trainer.current_epoch)
        self._batch_ended = now

        is_due = now - self._bar_updated >= REFRESH_SECONDS or trainer.is_last_batch
        if is_due and not self.bar.disable:
            self._bar_updated = now
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._update_bar(trainer, batch_idx + 1, f"loss {loss:.4f}")

    def _update_bar(self, trainer: pl.Trainer, batches_done: int, loss: str = "") -> None:
        """Show the epoch, a bar, the batches done, the loss, the speed and the time left."""
        batches = int(trainer.num_training_batches)
        head = format_epoch(trainer)
        count = f"{batches_done}/{batches}"
        speed = ""
        time_left = ""
        if self.batches:
            datamodule: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            images = datamodule.batch_size * self.batches / trainer.accumulate_grad_batches
            speed = f"{images / self.seconds:,.0f} images/s"
            time_left = f"left {self._estimate_time_left(trainer, batches_done)}"

        tail = [text for text in (count, loss, speed, time_left) if text]
        room = console.width - len(head) - MIN_BAR_WIDTH - COLUMN_GAPS
        # A narrow terminal can do without these, the first one before the others.
        for text in (speed, loss, count, time_left):
            if text and len("  ".join(tail)) > room:
                tail.remove(text)
        self.bar.update(
            self.task, completed=batches_done, total=batches, head=head, tail="  ".join(tail)
        )

    def _estimate_time_left(self, trainer: pl.Trainer, batches_done: int) -> timedelta:
        """Return the time until the end of training.

        The time of a batch is taken to be proportional to the pixels of its views.

        Args:
            batches_done: number of batches that are done in the current epoch.
        """
        batches = int(trainer.num_training_batches)
        epoch = trainer.current_epoch
        seconds = 0.0
        if self.pixels:
            pixels_left = -batches_done * count_pixels(trainer, epoch)
            for unfinished_epoch in range(epoch, trainer.max_epochs or epoch):
                pixels_left += batches * count_pixels(trainer, unfinished_epoch)
            seconds = self.seconds / self.pixels * pixels_left
        is_epoch_done = batches_done == batches
        epochs_done = epoch + 1 if is_epoch_done else epoch
        return timedelta(seconds=round(seconds + self.remaining_overhead(epochs_done)))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        epochs = trainer.max_epochs or 0
        digits = len(str(epochs))
        line = f"epoch {epoch:{digits}d}/{epochs}  {self.format_metrics()}"
        if self.bar.disable:
            batches = int(trainer.num_training_batches)
            print_line(f"{line}  left {self._estimate_time_left(trainer, batches)}")
        elif epoch % max(1, epochs // TERMINAL_LINES) == 0 or epoch == epochs:
            print_line(line)

    def teardown(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str = "fit"
    ) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # Lightning does not call teardown after an exception. A bar that still runs would hide the
        # error message.
        self.bar.stop()


def format_epoch(trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def count_pixels(trainer: pl.Trainer, epoch: int) -> int:
    """Return the pixels of a view in an epoch; 1 for a datamodule whose epochs are all alike."""
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(data, ViewsDataModule):
        return data.view_size(epoch) ** 2
    return 1
