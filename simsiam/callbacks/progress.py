"""The progress of training on the terminal."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from utils.console import console, print_line


class ProgressCallback(pl.Callback):
    """A bar with the latest epoch's figures and the time left; a line an epoch where the output is no terminal.

    Args:
        words: gives the figures of the epoch that has just ended.
    """

    def __init__(self, words: Callable[[], str]) -> None:
        self.words = words
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_epoch, self.started = trainer.current_epoch, time.perf_counter()
        if console.is_terminal:
            now = TextColumn("{task.fields[now]}")
            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), now)
            self.bar = Progress(*columns, console=console, refresh_per_second=4, transient=True)
            steps = trainer.estimated_stepping_batches
            self.task = self.bar.add_task("steps", total=steps, completed=trainer.global_step, now="")
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
            print_line(line)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str = "fit") -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module)  # Lightning does not call it then; a running bar would hide the error's line
