"""The parts in any Trainer, with stock callbacks, loggers and loaders, without main.py."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models.batch_norm import BatchNorm2d
from simsiam import CollapseMonitor, KNNMonitor, SimSiam, ViewsDataModule, load_backbone
from simsiam.evaluation.metrics import rankme
from tests.helpers import ROOT, Program, Started, summary, torchrun_environments
from utils.errors import UserError
from utils.knn import knn_predict

SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 4, "out_dim": 32, "h_dim": 16}


def data(images: int = 200, batch_size: int = 50) -> ViewsDataModule:
    return ViewsDataModule(
        "patterns", train_images=images, test_images=images // 2, batch_size=batch_size
    )


def fit(model: pl.LightningModule, *loaders: Any, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
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


class Figures(pl.Callback):
    """The loss of each step; of each epoch their mean, and what a kNN monitor before this callback measured."""

    def __init__(self, knn: KNNMonitor) -> None:
        self.knn, self.steps, self.ended = knn, list[float](), 0
        self.epochs: dict[str, list[float]] = {"train_loss": [], "kNN_accuracy": []}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.steps.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs["train_loss"].append(float(np.mean(self.steps[self.ended :])))
        self.epochs["kNN_accuracy"].append(self.knn.latest["kNN_accuracy"])
        self.ended = len(self.steps)


def test_a_plain_trainers_checkpoint_knows_its_images(tmp_path: Path, program: Program) -> None:
    """So `main.py knn` measures what the monitor did."""
    module, views = SimSiam(**SIZES), data()
    trainer = fit(
        module,
        views,
        callbacks=[KNNMonitor(k=20)],
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    checkpoint = str(trainer.checkpoint_callback.best_model_path)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    backbone = load_backbone(checkpoint)
    assert backbone.mean == pytest.approx(views.mean.tolist()) and backbone.std == pytest.approx(
        views.std.tolist()
    )
    assert backbone.image_size == 32 and module.hparams["classes"] == list(views.train.classes)

    flags = [
        "--dataset",
        "patterns",
        "--train-images",
        "200",
        "--test-images",
        "100",
        "--results-dir",
        str(tmp_path),
    ]
    status, out, err = program("knn", "--checkpoint", checkpoint, *flags)
    assert (status, err) == (0, ""), out
    (measured,) = [
        row["accuracy"]
        for row in summary(tmp_path / "knn")["table"]
        if (row["features"], row["k"], row["temperature"]) == ("backbone", 20, 0.1)
    ]
    assert float(trainer.callback_metrics["kNN_accuracy"]) == pytest.approx(measured)


def test_any_logger_has_the_epochs_means_and_now_and_then_a_step(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    knn, bar = KNNMonitor(k=20), RichProgressBar()
    figures = Figures(knn)
    callbacks = [knn, figures, CollapseMonitor(), LearningRateMonitor(), bar]
    trainer = fit(
        SimSiam(**SIZES), data(), logger=loggers, callbacks=callbacks, enable_progress_bar=True
    )
    table = list(
        csv.DictReader((Path(str(loggers[0].log_dir)) / "metrics.csv").read_text().splitlines())
    )
    for name, points in (
        ("train_loss", 2),
        ("z_std", 2),
        ("kNN_accuracy", 3),
        ("rankme", 2),
        ("train_loss_step", 4),
    ):
        assert len([row for row in table if row[name]]) == points, name
    steps = {
        int(row["step"]): float(row["train_loss_step"]) for row in table if row["train_loss_step"]
    }
    assert steps == pytest.approx({step: figures.steps[step] for step in (1, 3, 5, 7)})
    events = EventAccumulator(str(loggers[1].log_dir))
    events.Reload()
    assert {"train_loss", "z_std", "kNN_accuracy", "rankme", "z_std_step", "lr-SGD/pg1"} <= set(
        events.Tags()["scalars"]
    )
    assert [point.value for point in events.Scalars("train_loss")] == pytest.approx(
        figures.epochs["train_loss"]
    )
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(
        figures.epochs["train_loss"][-1]
    )


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [("kNN_accuracy", "max", max), ("kNN_accuracy", "min", min), ("train_loss", "min", min)],
)
def test_a_stock_model_checkpoint_keeps_the_best_epoch(
    tmp_path: Path, monitor: str, mode: str, best: Callable[[list[float]], float]
) -> None:
    kept, knn = ModelCheckpoint(tmp_path, monitor=monitor, mode=mode), KNNMonitor(k=5)
    figures = Figures(knn)
    fit(
        SimSiam(**SIZES),
        data(60, 20),
        callbacks=[knn, figures, kept],
        enable_checkpointing=True,
        max_epochs=4,
    )
    values = figures.epochs[monitor]
    assert len(set(values)) > 1 and float(kept.best_model_score or 0) == pytest.approx(best(values))
    saved = torch.load(kept.best_model_path, weights_only=True)
    assert (
        saved["epoch"] == values.index(best(values))
        and load_backbone(kept.best_model_path).image_size == 32
    )


def test_batches_of_views_and_labels_from_a_loader_of_ones_own(tmp_path: Path) -> None:
    bank, queries = (
        TensorDataset(torch.randn(n, 3, 32, 32), torch.arange(n) % 4) for n in (60, 30)
    )
    monitor = KNNMonitor(k=5, bank=DataLoader(bank, 16), queries=DataLoader(queries, 16))
    module = SimSiam(**SIZES)
    trainer = fit(module, DataLoader(Pairs(), 10), callbacks=[monitor])
    with torch.no_grad():
        features, found = (module.eval()(split.tensors[0]) for split in (bank, queries))
    unit = (nn.functional.normalize(x, dim=1) for x in (found, features))
    right = knn_predict(*unit, bank.tensors[1], 4, k=5) == queries.tensors[1]
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert figures["kNN_accuracy"] == pytest.approx(100 * right.float().mean().item())
    assert figures["rankme"] == pytest.approx(rankme(features), rel=1e-4)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    backbone = load_backbone(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"not known: train with SimSiam\(mean="):
        backbone.mean
    assert SimSiam.load_from_checkpoint(tmp_path / "own.ckpt").hparams["mean"] is None


def test_a_checkpoint_that_does_not_know_its_images_is_refused_in_a_line(
    tmp_path: Path, program: Program
) -> None:
    trainer = fit(SimSiam(**SIZES), DataLoader(Pairs(), 10), max_steps=1)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    status, _, err = program(
        "knn", "--checkpoint", str(tmp_path / "own.ckpt"), "--dataset", "patterns"
    )
    assert (
        status == 2
        and err.count("\n") == 1
        and "mean, std and size of its images are unknown" in err
    )


def test_a_monitor_without_images_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"KNNMonitor\(bank=..., queries=...\)"):
        fit(SimSiam(**SIZES), DataLoader(Pairs(), 10), callbacks=[KNNMonitor(k=5)])
    with pytest.raises(ValueError, match="both bank and queries"):
        KNNMonitor(bank=DataLoader(Pairs(), 10))


@pytest.mark.parametrize(
    ("steps", "warmup", "peak_at"),
    [(3, None, 0), (20, None, 1), (50, None, 4), (20, 0, 0), (20, 2, 7), (20, 9, 18)],
)
def test_warm_up_and_cosine_take_their_length_from_max_steps(
    steps: int, warmup: float | None, peak_at: int
) -> None:
    """An epoch has 4 steps; a warm-up that is longer than the run leaves one step to the cosine."""
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(
        SimSiam(**SIZES, warmup_epochs=warmup), data(40, 10), max_steps=steps, callbacks=[Watch()]
    )
    assert len(rates) == trainer.global_step == steps and int(np.argmax(rates)) == peak_at
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_backbone_of_ones_own_is_any_module_that_gives_features(tmp_path: Path) -> None:
    network = torchvision.models.shufflenet_v2_x0_5()
    network.fc = nn.Identity()
    module = SimSiam(network, out_dim=32, h_dim=16)
    trainer = fit(module, data(20, 10), max_epochs=1, callbacks=[KNNMonitor(k=5)])
    assert module.projector[0].in_features == 1024 and "kNN_accuracy" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(
        UserError, match="a custom ShuffleNetV2, which this program cannot build"
    ):
        load_backbone(tmp_path / "own.ckpt")
    again = SimSiam.load_from_checkpoint(tmp_path / "own.ckpt", backbone=network)
    assert again.hparams["mean"] == pytest.approx(module.hparams["mean"])

    with pytest.raises(ValueError, match="must give features"):
        SimSiam(nn.Conv2d(3, 8, 3))


class OnGPU(Tensor):
    """A tensor that says it is on a GPU, where all views go through our own networks in one pass."""

    is_cuda = True


def test_views_of_a_foreign_backbone_share_no_statistics() -> None:
    """Its BN layers do not know of views: one pass for all of them would be another method."""
    views = [torch.randn(6, 3, 32, 32).as_subclass(OnGPU) for _ in range(2)]
    for kind, expected in ((nn.BatchNorm2d, [6, 6]), (BatchNorm2d, [12])):  # theirs, ours
        module = SimSiam(
            nn.Sequential(nn.Conv2d(3, 8, 3), kind(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )
        batches: list[int] = []
        module.backbone.register_forward_pre_hook(
            lambda _, inputs, seen=batches: seen.append(len(inputs[0]))
        )
        module.training_step(views, 0)
        assert batches == expected


def test_the_datamodule_alone_gives_views() -> None:
    views = data()
    views.prepare_data()
    views.setup()
    x = next(iter(views.train_dataloader()))
    assert (
        len(x) == 2 and x[0].shape == x[1].shape == (50, 3, 32, 32) and not torch.equal(x[0], x[1])
    )


def run_script(folder: Path, code: str, *args: str) -> str:
    """What a script outside the repository prints."""
    (folder / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", *args]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def use_lightning_cli(args: list[str]) -> int:
    from pytorch_lightning.cli import LightningCLI

    LightningCLI(SimSiam, ViewsDataModule, args=args)
    return 0


def test_lightnings_command_line_has_all_of_it_as_flags(tmp_path: Path) -> None:
    flags = "--model.backbone resnet10 --model.width 4 --model.out_dim 32 --model.h_dim 16 --trainer.accelerator cpu "
    flags += "--data.dataset patterns --data.train_images 100 --data.test_images 10 --data.batch_size 50 "
    flags += "--trainer.max_epochs 1 --trainer.enable_progress_bar false --trainer.enable_model_summary false "
    flags += f"--trainer.default_root_dir {tmp_path}"
    process = Started(use_lightning_cli, ["fit", *flags.split()])
    _, err = process.communicate()
    assert process.returncode == 0, err
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


def figures_of(printed: str) -> list[float]:
    return [float(x) for x in printed.split("FIGURES")[1].split()[:4]]


def run_ddp(args: list[str]) -> int:
    sys.argv = ["script.py", *args]
    exec(DDP, {})
    return 0


def test_two_devices_learn_what_one_does() -> None:
    one = Started(run_ddp, ["1"])
    first, second = (Started(run_ddp, ["2"], **told) for told in torchrun_environments())
    printed = [process.communicate()[0] for process in (one, first, second)]
    assert [process.returncode for process in (one, first, second)] == [0, 0, 0]
    assert figures_of(printed[1]) == pytest.approx(figures_of(printed[0]), rel=1e-4)


@pytest.mark.slow(
    "three fresh starts; that two processes learn what one does is the quick test above"
)
def test_two_devices_in_a_script_learn_what_one_does(tmp_path: Path) -> None:
    one, two = (figures_of(run_script(tmp_path, DDP, n)) for n in ("1", "2"))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_utils_module_of_ones_own_gives_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("")
    code = "try:\n    from simsiam import SimSiam\nexcept ImportError as error:\n    print(error)\n"
    said = run_script(tmp_path, code)
    assert (
        f"simsiam needs its own package 'utils', but Python finds {tmp_path / 'utils.py'}" in said
    )
