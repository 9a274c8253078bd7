"""The parts in any Trainer, with stock callbacks, loggers and loaders, without main.py."""

import csv
import os
import subprocess
import sys
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
from simsiam.evaluation.metrics import rankme
from simsiam.loss import D
from tests.helpers import ROOT, Program, rows, summary
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
    table = list(csv.DictReader((Path(str(loggers[0].log_dir)) / "metrics.csv").read_text().splitlines()))
    for name, points in (("train_loss", 2), ("z_std", 2), ("kNN_accuracy", 3), ("rankme", 2), ("train_loss_step", 4)):
        assert len([row for row in table if row[name]]) == points, name
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
        backbone.mean  # noqa: B018  (to read it is what raises)
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


@pytest.mark.parametrize(
    ("steps", "warmup", "peak_at"), [(3, None, 0), (20, None, 1), (50, None, 4), (20, 0, 0), (20, 2, 7), (20, 9, 18)]
)
def test_warm_up_and_cosine_take_their_length_from_max_steps(steps: int, warmup: float | None, peak_at: int) -> None:
    """An epoch has 4 steps; a warm-up that is longer than the run leaves one step to the cosine."""
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(SimSiam(**SIZES, warmup_epochs=warmup), data(), max_steps=steps, callbacks=[Watch()])
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


def run_script(folder: Path, code: str, *args: str) -> str:
    """What a script outside the repository prints."""
    (folder / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_lightnings_command_line_has_all_of_it_as_flags(tmp_path: Path) -> None:
    code = "from pytorch_lightning.cli import LightningCLI\nfrom simsiam import SimSiam, ViewsDataModule\n"
    flags = "--model.backbone resnet10 --model.width 4 --model.out_dim 32 --model.h_dim 16 --trainer.accelerator cpu "
    flags += "--data.dataset patterns --data.train_images 100 --data.test_images 10 --data.batch_size 50 "
    flags += "--trainer.max_epochs 1 --trainer.enable_progress_bar false --trainer.enable_model_summary false"
    run_script(tmp_path, f"{code}LightningCLI(SimSiam, ViewsDataModule)\n", "fit", *flags.split())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert len(load_backbone(checkpoint).mean) == 3


DDP = """
import sys
import pytorch_lightning as pl
from simsiam import KNNMonitor, SimSiam, ViewsDataModule

pl.seed_everything(0, verbose=False)
data = ViewsDataModule("patterns", train_images=100, test_images=50, batch_size=50)
model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=int(sys.argv[1]), callbacks=[KNNMonitor(k=5)], **quiet)
trainer.fit(model, datamodule=data)
if trainer.is_global_zero:
    figures = trainer.callback_metrics
    print("FIGURES", *(float(figures[name]) for name in ("train_loss", "z_std", "kNN_accuracy", "rankme")))
"""


def test_two_devices_in_a_script_learn_what_one_does(tmp_path: Path) -> None:
    one, two = ([float(x) for x in run_script(tmp_path, DDP, n).split("FIGURES")[1].split()[:4]] for n in ("1", "2"))
    assert two == pytest.approx(one, rel=1e-4)


def test_the_cosine_keeps_float64() -> None:
    p, z = torch.randn(2, 8, 5, dtype=torch.float64)
    expected = -nn.functional.cosine_similarity(p, z, dim=1).mean()
    assert D(p, z).dtype == torch.float64 and abs(D(p, z) - expected) < 1e-15
    assert D(p.bfloat16(), z.bfloat16()).dtype == torch.float32


def test_rankme_is_the_effective_rank_by_singular_values() -> None:
    features = torch.randn(300, 16) @ torch.diag(torch.logspace(0, -2, 16))
    p = torch.linalg.svdvals(features.double())
    p = p / p.sum()
    assert rankme(features) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)
    assert rankme(torch.randn(300, 1) @ torch.randn(1, 16)) == pytest.approx(1, abs=1e-3)


LOGGERS = ["--dataset", "patterns", "--train-images", "100", "--test-images", "50", "--knn-k", "5", "--epochs", "2"]
LOGGERS += ["--backbone", "resnet10", "--width", "4", "--out-dim", "32", "--h-dim", "16", "--batch-size", "50"]
LOGGERS += ["--accelerator", "cpu", "--exp-name", "run", "--logger"]


@pytest.mark.slow("starts the processes of wandb and mlflow; csv and TensorBoard are quick tests")
def test_main_logs_to_wandb_and_mlflow_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport main\nsys.exit(main.main(sys.argv[1:]))\n"
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_script(tmp_path, code, *LOGGERS, "wandb", "mlflow")
    run = tmp_path / "runs" / "run"
    (kNN,) = run.glob("mlruns/*/*/metrics/kNN_accuracy")
    points = [float(line.split()[1]) for line in kNN.read_text().splitlines()]
    assert points == [summary(run)["kNN_untrained"], *(row["kNN_accuracy"] for row in rows(run))]
    (recorded,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"kNN_accuracy" in recorded.read_bytes() and not list(run.glob("events*"))


def test_main_logs_to_csv_instead_of_tensorboard(tmp_path: Path, program: Program) -> None:
    status, _, err = program(*LOGGERS, "csv")
    run = tmp_path / "runs" / "run"
    table = list(csv.DictReader((run / "csv" / "version_0" / "metrics.csv").read_text().splitlines()))
    assert (status, err) == (0, "") and not list(run.glob("events*"))
    assert [float(row["train_loss"]) for row in table if row["train_loss"]] == pytest.approx(
        [row["train_loss"] for row in rows(run)]
    )


def test_a_logger_that_is_not_installed_says_what_to_install(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = program(*LOGGERS, "mlflow")
    assert status == 2 and err == "main.py: --logger mlflow: it is not installed: pip install mlflow\n"
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()
