"""The progress of training on the terminal."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from utils.console import console, print_line


class ProgressCallback(pl.Callback):
    """A bar with the figures of the latest epoch, which `words` gives, and the time left; without a terminal, lines."""

    def __init__(self, words: Callable[[], str]) -> None:
        self.words = words
        columns = (TextColumn("steps"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
        options: dict[str, Any] = {"refresh_per_second": 4, "transient": True, "disable": not console.is_terminal}
        self.bar = Progress(*columns, console=console, **options)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_epoch, self.started = trainer.current_epoch, time.perf_counter()
        self.task = self.bar.add_task("", total=trainer.estimated_stepping_batches, now="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        left = (time.perf_counter() - self.started) / (epoch - self.first_epoch) * (epochs - epoch)
        line = f"epoch {epoch:{len(str(epochs))}d}/{epochs}  {self.words()}  left {timedelta(seconds=round(left))}"
        self.bar.update(self.task, now=line)
        if self.bar.disable:
            print_line(line)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str = "fit") -> None:
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.bar.stop()  # Lightning does not call teardown then; a running bar would hide the error's line
