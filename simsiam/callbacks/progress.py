"""The progress of training on the terminal, and how long it will take."""

import copy
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, Progress, TextColumn

from simsiam.data.datamodule import ViewsDataModule
from simsiam.evaluation.features import extract_features
from simsiam.module import SimSiam
from utils.console import console, print_line

REFRESH = 1.0  # seconds between looks at the loss, each of which waits for the device
LINES = 40  # of finished epochs that stay on a terminal, about; a file has all
NARROWEST = 8  # columns of the bar
LONG_ENOUGH = 0.1  # seconds of a call that estimates well how long a run takes
LONG = 0.6  # seconds of a call that is not worth repeating
MOST_MEASURED = 128  # images of such a call


class ProgressCallback(pl.Callback):
    """A line for each finished epoch; on a terminal below them a bar of this epoch's steps, which moves every second.

    Args:
        words: gives the figures of the latest epoch.
        pause: seconds that the Trainer will still spend between epochs, of which the given number is done.
    """

    def __init__(
        self, words: Callable[[], str], pause: Callable[[int], float] = lambda epoch: 0.0
    ) -> None:
        self.words, self.pause = words, pause
        head = TextColumn("{task.fields[head]}", markup=False)
        tail = TextColumn("{task.fields[tail]}", markup=False)
        columns = (head, BarColumn(None), tail)
        options: dict[str, Any] = {"refresh_per_second": 4, "transient": True}
        options["disable"] = not console.draws_bars
        self.bar = Progress(*columns, console=console, expand=True, **options)
        self.steps, self.seconds = (
            0,
            0.0,
        )  # of training alone, since the first step, which may compile
        self.work = 0.0  # of these steps, in pixels of a view
        self.step_ended: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        head = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.task, self.shown = self.bar.add_task("", total=None, head=head, tail=""), 0.0
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.steps:
            self.step_ended = time.perf_counter()  # what lies between epochs is no training
        self._show(trainer, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        if self.step_ended is not None:
            self.steps, self.seconds = self.steps + 1, self.seconds + now - self.step_ended
            self.work += count_pixels(trainer, trainer.current_epoch)
        self.step_ended = now
        if not self.bar.disable and (now - self.shown >= REFRESH or trainer.is_last_batch):
            self.shown = now
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._show(trainer, batch_idx + 1, f"loss {loss:.4f}")

    def _show(self, trainer: pl.Trainer, done: int, loss: str = "") -> None:
        batches, images = int(trainer.num_training_batches), trainer.datamodule.batch_size  # pyright: ignore[reportAttributeAccessIssue]
        head, speed, left = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", "", ""
        if self.steps:
            images *= self.steps / trainer.accumulate_grad_batches
            speed, left = (
                f"{images / self.seconds:,.0f} images/s",
                f"left {self._left(trainer, done)}",
            )
        told = list(filter(None, (f"{done}/{batches}", loss, speed, left)))
        for least in filter(
            None, (speed, loss, told[0], left)
        ):  # what a narrow terminal can do without
            if len(head) + NARROWEST + len("  ".join(told)) > console.width - 4:
                told.remove(least)
        tail = "  ".join(told)
        self.bar.update(self.task, completed=done, total=batches, head=head, tail=tail)

    def _left(self, trainer: pl.Trainer, done: int) -> timedelta:
        """Time until the end of training, when `done` batches of this epoch are."""
        now, batches = trainer.current_epoch, int(trainer.num_training_batches)
        pixels = [count_pixels(trainer, epoch) for epoch in range(now, trainer.max_epochs or now)]
        steps = (
            self.seconds / self.work * (batches * sum(pixels) - done * sum(pixels[:1]))
            if self.work
            else 0.0
        )
        return timedelta(seconds=round(steps + self.pause(now + (done == batches))))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        line = f"epoch {epoch:{len(str(epochs))}d}/{epochs}  {self.words()}"
        if self.bar.disable:
            print_line(f"{line}  left {self._left(trainer, int(trainer.num_training_batches))}")
        elif epoch % max(1, epochs // LINES) == 0 or epoch == epochs:
            print_line(line)

    def teardown(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str = "fit"
    ) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()  # Lightning does not call teardown then; a running bar would hide the error's line


def count_pixels(trainer: pl.Trainer, epoch: int) -> int:
    """Of a view of that epoch, which a step takes time by; 1 where all epochs are alike."""
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    return data.view_size(epoch) ** 2 if isinstance(data, ViewsDataModule) else 1


def estimate_seconds(
    model: SimSiam, data: ViewsDataModule, bf16: bool, epochs: int, knn_every: int
) -> float:
    """Return about how many seconds a run of one process takes on this processor.

    A copy of the run's `model` trains on a few images of each size of its views.
    """
    twin = copy.deepcopy(model)
    steps_per_epoch = len(data.train) // data.batch_size
    seconds = 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for size, epochs_of_size in Counter(map(data.view_size, range(epochs))).items():
            epoch = next(e for e in range(epochs) if data.view_size(e) == size)

            def step(n: int, epoch: int = epoch) -> None:
                views = data.make_views(torch.arange(n), epoch)
                twin.training_step(views, 0)["loss"].backward()

            seconds += epochs_of_size * steps_per_epoch * measure_seconds(step, data.batch_size)
        if knn_every:
            images = len(data.train) + len(data.test)
            chunk = min(images, MOST_MEASURED)

            def extract(n: int) -> None:
                extract_features(twin.backbone, data.train.images[:n], data.mean, data.std)

            taken = measure_seconds(extract, chunk)
            measurements = 1 + -(-epochs // knn_every)  # one of them before training
            seconds += measurements * taken * images / chunk
    return seconds


def measure_seconds(step: Callable[[int], object], count: int) -> float:
    """Return about how many seconds `step(count)` takes, measured by calls with fewer images.

    A call takes a fixed time and a time per image. Two numbers of images give both: 2, as many as
    batch normalisation needs, and the first larger one that takes long enough to be measured well.

    Args:
        step: computes on the given number of images.
        count: the number of images whose time is asked for.
    """

    def time_step(n: int) -> float:
        started, started_computing = time.perf_counter(), time.process_time()
        step(n)
        computed = time.process_time() - started_computing  # by all threads together
        # If other programs held this one up, that is less than it took.
        return min(time.perf_counter() - started, computed)

    def time_again(n: int, first: float) -> float:
        if first >= LONG:
            return first
        return min(first, time_step(n))  # the first one also allocated memory and compiled kernels

    few = min(2, count)
    taken_by_few = time_again(few, time_step(few))
    images, taken = few, taken_by_few
    while images < min(count, MOST_MEASURED) and (images == few or taken < LONG_ENOUGH):
        images = min(4 * images, count, MOST_MEASURED)
        taken = time_step(images)
    if images == few:
        return taken * count / few
    taken = time_again(images, taken)
    if taken <= taken_by_few:  # another program has disturbed the calls with few images
        return taken * count / images
    per_image = (taken - taken_by_few) / (images - few)
    per_image = min(per_image, taken_by_few / few)  # more is a disturbed call
    return taken_by_few + per_image * (count - few)


def about(seconds: float) -> str:
    """A time in words, in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"
