"""A small network, small data and a quiet Trainer, for tests of the parts without main.py."""

from typing import Any

import pytorch_lightning as pl
import torch

from simsiam import SimSiam, ViewsDataModule

BATCHES = 8  # of an epoch of `make_data`


def make_data(batch_size: int = 8, train_images: int = 64, **options: Any) -> ViewsDataModule:
    """`patterns`, whose views have 8 pixels: a step takes milliseconds."""
    data = {"train_images": train_images, "test_images": 20, "batch_size": batch_size}
    return ViewsDataModule("patterns", image_schedule=["8:1000"], **data | options)


def make_model(**options: Any) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam("resnet10", **{"width": 2, "out_dim": 16, "h_dim": 8, **options})


def make_trainer(*callbacks: pl.Callback, **flags: Any) -> pl.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    quiet |= {"accelerator": "cpu", "log_every_n_steps": 1}
    return pl.Trainer(callbacks=list(callbacks), **quiet | flags)


def fit(*callbacks: pl.Callback, data: Any = None, model: Any = None, **flags: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, **flags)
    data = make_data() if data is None else data
    model = make_model() if model is None else model
    if isinstance(data, pl.LightningDataModule):
        trainer.fit(model, datamodule=data)
    else:
        trainer.fit(model, data)
    return trainer


def final_rate(trainer: pl.Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]
