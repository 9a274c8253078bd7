"""A small network, small data and a quiet Trainer, for tests of the parts without main.py."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from simsiam import SimSiam, ViewsDataModule

BATCHES = 8  # in an epoch of `make_data()`


def make_data(batch_size: int = 8, train_images: int = 64, **options: Any) -> ViewsDataModule:
    """Return the data set `patterns` with views of 8 pixels, so that a step takes milliseconds."""
    options = {"test_images": 20, "image_schedule": ["8:1000"], **options}
    return ViewsDataModule("patterns", train_images=train_images, batch_size=batch_size, **options)


def make_model(**options: Any) -> SimSiam:
    """Return a small SimSiam; each call gives the same initial weights."""
    torch.manual_seed(0)
    return SimSiam("resnet10", **{"width": 2, "out_dim": 16, "h_dim": 8, **options})


def make_trainer(*callbacks: pl.Callback, **flags: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **flags})


def fit(*callbacks: pl.Callback, data: Any = None, model: Any = None, **flags: Any) -> pl.Trainer:
    """Train a model and return its Trainer.

    Args:
        data: a datamodule or a loader; None for `make_data()`.
        model: None for `make_model()`.
        flags: of the Trainer.
    """
    trainer = make_trainer(*callbacks, **flags)
    if data is None:
        data = make_data()
    if model is None:
        model = make_model()
    if isinstance(data, pl.LightningDataModule):
        trainer.fit(model, datamodule=data)
    else:
        trainer.fit(model, data)
    return trainer


def final_rate(trainer: pl.Trainer) -> float:
    """Return the learning rate at the end of the run."""
    return trainer.optimizers[0].param_groups[0]["lr"]


class SaveAt(pl.Callback):
    """Saves a checkpoint after a number of batches."""

    def __init__(self, batches: int, file: Path, weights_only: bool = False) -> None:
        self.batches_left = batches
        self.file = file
        self.weights_only = weights_only

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches_left -= 1
        if self.batches_left == 0:
            trainer.save_checkpoint(self.file, weights_only=self.weights_only)
