"""The parts in a plain Trainer: checkpoints, loggers and the length of a run."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simsiam import CollapseMonitor, KNNMonitor, ViewsDataModule, load_backbone
from tests.helpers import Program, read_summary
from tests.trainers import BATCHES, final_rate, fit, make_data, make_model
from utils.errors import UserError

SIZES: dict[str, Any] = {"width": 4, "out_dim": 32, "h_dim": 16}


class MetricRecorder(pl.Callback):
    """Records the loss of each step, the mean loss of each epoch and the kNN accuracy.

    It must come after the kNN monitor in the list of callbacks.
    """

    def __init__(self, knn: KNNMonitor) -> None:
        self.knn = knn
        self.step_losses: list[float] = []
        self.first_step = 0  # of the epoch
        self.epochs: dict[str, list[float]] = {"train_loss": [], "kNN_accuracy": []}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.step_losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mean_loss = float(np.mean(self.step_losses[self.first_step :]))
        self.epochs["train_loss"].append(mean_loss)
        self.epochs["kNN_accuracy"].append(self.knn.epoch_metrics["kNN_accuracy"])
        self.first_step = len(self.step_losses)


def test_the_datamodule_alone_gives_views() -> None:
    data = ViewsDataModule("patterns", train_images=200, test_images=100, batch_size=50)
    data.prepare_data()
    data.setup()
    x1, x2 = next(iter(data.train_dataloader()))
    assert x1.shape == (50, 3, 32, 32)
    assert x2.shape == (50, 3, 32, 32)
    assert not torch.equal(x1, x2)


def test_the_datamodule_gives_views_again_after_a_fit() -> None:
    data = make_data()
    trainer = fit(data=data, max_epochs=1)
    x1, x2 = next(iter(data.train_dataloader()))
    assert x1.shape == x2.shape == (8, 3, 8, 8)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(make_model(), datamodule=data)
    assert trainer.global_step == 2 * BATCHES


@pytest.mark.parametrize(
    "numbers",
    [
        *({"batch_size": 0}, {"batch_size": 2.5}, {"views": 1}, {"accumulate": 0}, {"seed": -1}),
        *({"heavy_views": -1}, {"heavy_views": 3}),
    ],
)
def test_a_number_out_of_range_is_named(numbers: dict[str, Any]) -> None:
    (name,) = numbers
    with pytest.raises(UserError, match=name):
        ViewsDataModule("patterns", **numbers)


@pytest.fixture
def checkpointed(tmp_path: Path) -> tuple[pl.Trainer, ViewsDataModule, Path]:
    """Train with the Trainer's own checkpoints; return the Trainer, the data and a checkpoint."""
    data = make_data(50, 200, test_images=100)
    saved = ModelCheckpoint(tmp_path)
    trainer = fit(
        KNNMonitor(k=20),
        saved,
        model=make_model(**SIZES),
        data=data,
        max_epochs=2,
        enable_checkpointing=True,
    )
    return trainer, data, Path(saved.best_model_path)


def test_a_checkpoint_has_the_statistics_of_its_images(
    checkpointed: tuple[pl.Trainer, ViewsDataModule, Path],
) -> None:
    trainer, data, checkpoint = checkpointed
    backbone = load_backbone(checkpoint)
    assert backbone.mean == pytest.approx(data.mean.tolist())
    assert backbone.std == pytest.approx(data.std.tolist())
    assert backbone.image_size == 32
    assert trainer.lightning_module.hparams["classes"] == list(data.train.classes)


def test_the_knn_command_measures_what_the_monitor_measured(
    checkpointed: tuple[pl.Trainer, ViewsDataModule, Path], tmp_path: Path, program: Program
) -> None:
    trainer, _, checkpoint = checkpointed
    data = ["--dataset", "patterns", "--train-images", "200", "--test-images", "100"]
    status, out, err = program(
        "knn", "--checkpoint", str(checkpoint), *data, "--results-dir", str(tmp_path)
    )
    assert (status, err) == (0, ""), out
    accuracies = {
        (row["features"], row["k"], row["temperature"]): row["accuracy"]
        for row in read_summary(tmp_path / "knn")["table"]
    }
    measured = float(trainer.callback_metrics["kNN_accuracy"])
    assert measured == pytest.approx(accuracies["backbone", 20, 0.1])


def test_loggers_get_means_of_epochs_and_some_steps(tmp_path: Path) -> None:
    csv_logger = CSVLogger(tmp_path, "csv")
    tensorboard = TensorBoardLogger(tmp_path, "tb")
    knn = KNNMonitor(k=20)
    recorder = MetricRecorder(knn)
    trainer = fit(
        knn,
        recorder,
        CollapseMonitor(),
        LearningRateMonitor(),
        RichProgressBar(),
        model=make_model(**SIZES),
        data=make_data(50, 200, test_images=100),
        max_epochs=2,
        logger=[csv_logger, tensorboard],
        enable_progress_bar=True,
        log_every_n_steps=2,
    )

    text = (Path(csv_logger.log_dir) / "metrics.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    points = {
        "train_loss": 2,
        "z_std": 2,
        "kNN_accuracy": 3,  # also before training
        "rankme": 2,
        "train_loss_step": 4,
    }
    for name, number in points.items():
        assert len([row for row in table if row[name]]) == number, name
    logged_steps = {
        int(row["step"]): float(row["train_loss_step"]) for row in table if row["train_loss_step"]
    }
    expected_steps = {step: recorder.step_losses[step] for step in (1, 3, 5, 7)}
    assert logged_steps == pytest.approx(expected_steps)

    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    tags = {"train_loss", "z_std", "kNN_accuracy", "rankme", "z_std_step", "lr-SGD/pg1"}
    assert tags <= set(events.Tags()["scalars"])
    losses = [point.value for point in events.Scalars("train_loss")]
    assert losses == pytest.approx(recorder.epochs["train_loss"])
    last_loss = float(trainer.callback_metrics["train_loss"])
    assert last_loss == pytest.approx(recorder.epochs["train_loss"][-1])


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [("kNN_accuracy", "max", max), ("kNN_accuracy", "min", min), ("train_loss", "min", min)],
)
def test_a_stock_model_checkpoint_keeps_the_best_epoch(
    tmp_path: Path, monitor: str, mode: str, best: Callable[[list[float]], float]
) -> None:
    saved = ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)
    knn = KNNMonitor(k=5)
    recorder = MetricRecorder(knn)
    fit(
        knn,
        recorder,
        saved,
        model=make_model(**SIZES),
        data=make_data(20, 60, test_images=30),
        enable_checkpointing=True,
        max_epochs=4,
    )
    values = recorder.epochs[monitor]
    assert len(set(values)) > 1
    assert saved.best_model_score is not None
    assert float(saved.best_model_score) == pytest.approx(best(values))
    checkpoint = torch.load(saved.best_model_path, weights_only=True)
    assert checkpoint["epoch"] == values.index(best(values))
    assert load_backbone(saved.best_model_path).image_size == 32


class RateRecorder(pl.Callback):
    """Records the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(final_rate(trainer))


@pytest.mark.parametrize(
    ("steps", "warmup_epochs", "peak_at"),
    [
        (3, None, 0),
        (20, None, 1),
        (50, None, 4),
        (20, 0, 0),
        (20, 2, 7),
        (20, 9, 18),  # longer than the run: one step is left to the cosine
    ],
)
def test_the_schedule_takes_its_length_from_max_steps(
    steps: int, warmup_epochs: float | None, peak_at: int
) -> None:
    """An epoch has 4 steps."""
    recorder = RateRecorder()
    trainer = fit(
        recorder,
        model=make_model(warmup_epochs=warmup_epochs),
        data=make_data(10, 40),
        max_steps=steps,
    )
    assert trainer.global_step == steps
    assert len(recorder.rates) == steps
    assert int(np.argmax(recorder.rates)) == peak_at
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)
