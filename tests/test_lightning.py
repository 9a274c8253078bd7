"""The parts in any Trainer, with stock callbacks, loggers and loaders, without main.py."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from sklearn.neighbors import KNeighborsClassifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from simsiam import CollapseMonitor, KNNMonitor, SimSiam, ViewsDataModule, load_backbone
from tests.helpers import Program, summary
from utils.errors import UserError

SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 16}


def data(images: int = 200) -> ViewsDataModule:
    return ViewsDataModule("patterns", train_images=images, test_images=100, batch_size=50)


def fit(model: pl.LightningModule, *loaders: Any, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 2}
    if "max_steps" not in options:
        quiet["max_epochs"] = 2
    trainer = pl.Trainer(**quiet | options)
    trainer.fit(model, *loaders)
    return trainer


class Pairs(torch.utils.data.Dataset[Any]):
    """([x1, x2], label), as torchvision's data sets with a two-crop transform give them."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
        return [x[0], x[1]], i % 4


def test_a_plain_trainers_checkpoint_knows_its_images_and_kNN_is_the_same_by_all(
    tmp_path: Path, program: Program
) -> None:
    """By the monitor, by main.py knn, and by scikit-learn."""
    module, views = SimSiam(**SIZES), data()
    trainer = fit(module, views, callbacks=[KNNMonitor(k=20)], enable_checkpointing=True, default_root_dir=tmp_path)
    checkpoint = str(trainer.checkpoint_callback.best_model_path)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    backbone = load_backbone(checkpoint)
    assert backbone.mean == pytest.approx(views.mean.tolist()) and backbone.std == pytest.approx(views.std.tolist())
    assert backbone.image_size == 32 and module.hparams["classes"] == list(views.train.classes)

    flags = ["--dataset", "patterns", "--train-images", "200", "--test-images", "100", "--results-dir", str(tmp_path)]
    status, out, err = program("knn", "--checkpoint", checkpoint, *flags)
    assert (status, err) == (0, ""), out
    mean, std = (torch.tensor(x)[:, None, None] for x in (backbone.mean, backbone.std))

    def features(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return nn.functional.normalize(backbone((images / 255 - mean) / std)).numpy()

    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    peer.fit(features(views.train.images), views.train.labels)
    theirs = 100 * peer.score(features(views.test.images), views.test.labels)
    ours = float(trainer.callback_metrics["kNN_accuracy"])
    (measured,) = [
        row["accuracy"]
        for row in summary(tmp_path / "knn")["table"]
        if (row["features"], row["k"], row["temperature"]) == ("backbone", 20, 0.1)
    ]
    assert ours == pytest.approx(theirs) == pytest.approx(measured)


def test_any_logger_has_the_epochs_means_and_now_and_then_a_step(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    callbacks = [KNNMonitor(k=20), CollapseMonitor(), LearningRateMonitor(), RichProgressBar()]
    trainer = fit(SimSiam(**SIZES), data(), logger=loggers, callbacks=callbacks, enable_progress_bar=True)
    rows = list(csv.DictReader((Path(str(loggers[0].log_dir)) / "metrics.csv").read_text().splitlines()))
    for name, points in (("train_loss", 2), ("z_std", 2), ("kNN_accuracy", 3), ("rankme", 2), ("train_loss_step", 4)):
        assert len([row for row in rows if row[name]]) == points, name
    events = EventAccumulator(str(loggers[1].log_dir))
    events.Reload()
    assert {"train_loss", "z_std", "kNN_accuracy", "rankme", "z_std_step", "lr-SGD/pg1"} <= set(
        events.Tags()["scalars"]
    )
    assert events.Scalars("train_loss")[-1].value == pytest.approx(float(trainer.callback_metrics["train_loss"]))


def test_the_mean_of_an_epoch_is_that_of_its_steps() -> None:
    seen: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
            seen.append(outputs["loss"].item())

    trainer = fit(SimSiam(**SIZES), data(), callbacks=[Watch()], max_epochs=1)
    assert len(seen) == 4 and float(trainer.callback_metrics["train_loss"]) == pytest.approx(np.mean(seen), rel=1e-6)


@pytest.mark.parametrize(("monitor", "mode"), [("kNN_accuracy", "max"), ("train_loss", "min")])
def test_a_stock_model_checkpoint_watches_our_figures(tmp_path: Path, monitor: str, mode: str) -> None:
    best = ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)
    trainer = fit(SimSiam(**SIZES), data(), callbacks=[KNNMonitor(k=20), best], enable_checkpointing=True)
    assert best.best_model_score is not None and trainer.callback_metrics[monitor] is not None
    assert load_backbone(best.best_model_path).image_size == 32


def test_batches_of_views_and_labels_from_a_loader_of_ones_own(tmp_path: Path) -> None:
    images = TensorDataset(torch.randn(60, 3, 32, 32), torch.arange(60) % 4)
    monitor = KNNMonitor(k=5, bank=DataLoader(images, 16), queries=DataLoader(images, 16))
    module = SimSiam(**SIZES)
    trainer = fit(module, DataLoader(Pairs(), 10), callbacks=[monitor])
    assert 0 < float(trainer.callback_metrics["kNN_accuracy"]) <= 100
    assert 1 <= float(trainer.callback_metrics["rankme"]) <= 32
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    backbone = load_backbone(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"not known: train with SimSiam\(mean="):
        backbone.mean  # noqa: B018
    assert SimSiam.load_from_checkpoint(tmp_path / "own.ckpt").hparams["mean"] is None


def test_a_checkpoint_that_does_not_know_its_images_is_refused_in_a_line(tmp_path: Path, program: Program) -> None:
    trainer = fit(SimSiam(**SIZES), DataLoader(Pairs(), 10), max_steps=1)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    status, _, err = program("knn", "--checkpoint", str(tmp_path / "own.ckpt"), "--dataset", "patterns")
    assert status == 2 and err.count("\n") == 1 and "mean, std and size of its images are unknown" in err


def test_a_monitor_without_images_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"KNNMonitor\(bank=..., queries=...\)"):
        fit(SimSiam(**SIZES), DataLoader(Pairs(), 10), callbacks=[KNNMonitor(k=5)])
    with pytest.raises(ValueError, match="both bank and queries"):
        KNNMonitor(bank=DataLoader(Pairs(), 10))


@pytest.mark.parametrize(("steps", "peak_at"), [(3, 0), (20, 1), (50, 4)])
def test_warm_up_and_cosine_take_their_length_from_max_steps(steps: int, peak_at: int) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(SimSiam(**SIZES), data(), max_steps=steps, callbacks=[Watch()])
    assert len(rates) == trainer.global_step == steps and int(np.argmax(rates)) == peak_at
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_backbone_of_ones_own_is_any_module_that_gives_features(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    module = SimSiam(network, out_dim=32, h_dim=16)
    trainer = fit(module, data(100), max_epochs=1, callbacks=[KNNMonitor(k=5)])
    assert module.projector[0].in_features == 512 and "kNN_accuracy" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(UserError, match="of an own ResNet: build it, and load the weights that begin with"):
        load_backbone(tmp_path / "own.ckpt")
    again = SimSiam.load_from_checkpoint(tmp_path / "own.ckpt", backbone=network)
    assert again.hparams["mean"] == pytest.approx(module.hparams["mean"])

    with pytest.raises(ValueError, match="must give features"):
        SimSiam(nn.Conv2d(3, 8, 3))


def test_views_of_a_foreign_backbone_never_share_batch_statistics() -> None:
    """Its BN layers do not know of views: one pass for all of them would be another method."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert SimSiam(network).one_pass is False and SimSiam(**SIZES).one_pass is None


def test_the_datamodule_alone_gives_views() -> None:
    views = data()
    views.prepare_data()
    views.setup()
    x = next(iter(views.train_dataloader()))
    assert len(x) == 2 and x[0].shape == x[1].shape == (50, 3, 32, 32) and not torch.equal(x[0], x[1])
