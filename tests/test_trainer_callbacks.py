"""The parts with stock callbacks, tuners, loaders and several processes."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from simsiam import CollapseMonitor, KNNMonitor, SimSiam, ViewsDataModule
from tests.trainers import BATCHES, SaveAt, fit, make_data, make_model, make_trainer


def test_early_stopping_works_with_knn_in_every_second_epoch(tmp_path: Path) -> None:
    """Loggers get values of measured epochs only. Callbacks see the latest value in every epoch."""
    logger = CSVLogger(tmp_path)
    stop = EarlyStopping("kNN_accuracy", mode="max", patience=9, strict=True)
    fit(KNNMonitor(k=5, every=2), stop, max_epochs=4, logger=logger)
    text = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("kNN_accuracy")
    measured = [line for line in text[1:] if line.split(",")[column]]
    assert len(measured) == 3  # untrained, and after epochs 2 and 4
    assert stop.stopped_epoch == 0
    assert stop.best_score.isfinite()


def test_checkpoints_every_n_epochs_are_those_of_measured_epochs(tmp_path: Path) -> None:
    """Without `every_n_epochs`, epochs 1 and 2 would be kept with the untrained accuracy."""
    measured: dict[str, float] = {}

    class Recorded(KNNMonitor):
        def _measure_epoch(self, trainer: Any, pl_module: Any, epoch: int) -> None:
            super()._measure_epoch(trainer, pl_module, epoch)
            measured[f"epoch={epoch}"] = self.epoch_metrics["kNN_accuracy"]

    best = ModelCheckpoint(
        tmp_path, "{epoch}", "kNN_accuracy", mode="max", save_top_k=3, every_n_epochs=3
    )
    fit(Recorded(k=5, every=3), best, max_epochs=6, enable_checkpointing=True)
    kept = {Path(path).stem: float(value) for path, value in best.best_k_models.items()}
    assert kept == pytest.approx(measured)
    assert set(kept) == {"epoch=2", "epoch=5"}


def test_knn_is_measured_when_early_stopping_ends_the_run(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    stop = EarlyStopping("train_loss", patience=1, min_delta=10.0)
    trainer = fit(KNNMonitor(k=5, every=50), stop, max_epochs=60, logger=logger)
    assert trainer.current_epoch == 2
    assert "kNN_accuracy" in trainer.callback_metrics
    logger.save()
    last_row = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[-1]
    assert str(trainer.global_step - 1) in last_row.split(",")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_a_checkpoint_within_an_epoch_resumes(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    flags: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2}
    uninterrupted = make_model()
    fit(saved, model=uninterrupted, enable_checkpointing=True, **flags)

    resumed = make_model()
    trainer = make_trainer(saved, enable_checkpointing=True, **flags)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "epoch=0-step=3.ckpt")
    for weight, expected in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_the_rate_finder_suggests_a_rate_for_a_negative_loss(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=10, default_root_dir=tmp_path)
    model = make_model()
    finder = Tuner(trainer).lr_find(
        model, datamodule=make_data(), num_training=25, early_stop_threshold=None
    )
    assert finder is not None
    assert len(finder.results["lr"]) == 25
    suggestion = finder.suggestion()
    assert suggestion != 0.06  # the default
    assert model.hparams["learning_rate"] == suggestion
    trainer.fit(model, datamodule=make_data())
    assert trainer.global_step == 10 * BATCHES


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder_stays_within_the_data_set(mode: str, tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=2, default_root_dir=tmp_path)
    data = make_data(train_images=20)
    with pytest.warns(UserWarning, match="is more than the 20 train images. 20 is used"):
        batch_size = Tuner(trainer).scale_batch_size(
            make_model(), datamodule=data, mode=mode, margin=0
        )
    assert batch_size == 20
    assert data.batch_size == 20


def test_monitors_modules_and_data_can_be_pickled() -> None:
    """ddp_spawn and ddp_notebook send them to other processes."""
    data = make_data()
    monitor = KNNMonitor(k=5)
    fit(monitor, model=make_model(), data=data, max_epochs=1)
    for part in (monitor, KNNMonitor(), CollapseMonitor(), make_model(), make_data()):
        assert type(pickle.loads(pickle.dumps(part))) is type(part)


@pytest.mark.filterwarnings("ignore")  # of LightningCLI's parser
def test_lightning_cli_reads_the_config_that_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["script.py"])
    flags = "--model.backbone resnet10 --model.width 2 --data.dataset patterns "
    flags += "--trainer.callbacks+=simsiam.KNNMonitor --trainer.callbacks.k=7 "
    flags += "--trainer.callbacks+=simsiam.CollapseMonitor --trainer.callbacks.stop=true"
    cli = LightningCLI(
        SimSiam, ViewsDataModule, args=flags.split(), run=False, seed_everything_default=False
    )
    cli.parser.save(cli.config, tmp_path / "config.yaml")

    args = [f"--config={tmp_path / 'config.yaml'}"]
    cli_from_file = LightningCLI(
        SimSiam, ViewsDataModule, args=args, run=False, seed_everything_default=False
    )
    callbacks = {type(callback): callback for callback in cli_from_file.trainer.callbacks}
    assert callbacks[KNNMonitor].k == 7
    assert callbacks[CollapseMonitor].stop


def test_an_indivisible_batch_size_gives_an_error_with_others() -> None:
    data = make_data(batch_size=9, accumulate=2)
    with pytest.raises(
        ValueError, match=r"batch_size 9 must split into 2 equal parts.*Try 8 or 10"
    ):
        fit(data=data, max_epochs=1, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"Pass Trainer\(accumulate_grad_batches=2\)"):
        fit(data=make_data(accumulate=2), max_epochs=1)


# ---------------------------------------------------------------- validation


class Validated(SimSiam):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("features", self(batch[0]).mean())


def make_validated() -> Validated:
    model = Validated("resnet10", width=2, out_dim=16, h_dim=8)
    model.load_state_dict(make_model().state_dict())
    return model


class WithValidation(ViewsDataModule):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(10, 3, 32, 32), torch.arange(10)), 5)


def make_validation_data() -> WithValidation:
    return WithValidation("patterns", train_images=64, test_images=20, batch_size=8)


def test_a_subclass_may_have_validation_batches() -> None:
    trainer = fit(model=make_validated(), data=make_validation_data(), max_epochs=1)
    assert "features" in trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:The dataloader, val_dataloader")
def test_early_stopping_sees_knn_at_a_validation_within_an_epoch(tmp_path: Path) -> None:
    """It sees the latest accuracy: in the first epoch that before training, also after a resume."""
    seen: list[float] = []

    class Recorded(EarlyStopping):
        def _evaluate_stopping_criteria(self, current: torch.Tensor) -> Any:
            seen.append(float(current))
            return super()._evaluate_stopping_criteria(current)

    monitor = KNNMonitor(k=5)
    stop = Recorded("kNN_accuracy", mode="max", patience=9)
    flags = {"model": make_validated(), "data": make_validation_data(), "val_check_interval": 0.5}
    fit(monitor, stop, SaveAt(6, tmp_path / "a.ckpt"), max_epochs=1, **flags)
    assert seen == [monitor.initial] * 2

    seen.clear()
    trainer = make_trainer(KNNMonitor(k=5), stop, max_epochs=1, val_check_interval=0.5)
    data = make_validation_data()
    trainer.fit(make_validated(), datamodule=data, ckpt_path=tmp_path / "a.ckpt")
    assert seen == [monitor.initial]


class SaveAfterValidation(pl.Callback):
    """Saves a checkpoint after the second validation, as ModelCheckpoint does."""

    def __init__(self, file: Path, stop: bool = False) -> None:
        self.file = file
        self.stop = stop
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.validations += 1
        if self.validations == 2:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = self.stop


class Judged(CollapseMonitor):
    """Keeps each z_std that it judges."""

    def __init__(self) -> None:
        super().__init__()
        self.z_stds: list[float] = []

    def _current_z_std(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        self.z_stds.append(super()._current_z_std(trainer, pl_module))
        return self.z_stds[-1]


@pytest.mark.filterwarnings("ignore:The dataloader, val_dataloader")
@pytest.mark.parametrize("interval", [1.0, 0.5])  # saves after epoch 2, and after epoch 1
def test_a_resume_after_the_validation_of_an_epoch_is_exact(
    interval: float, tmp_path: Path
) -> None:
    """The epoch still has to end, but no batch of it is left."""
    flags: dict[str, Any] = {
        "max_epochs": 3,
        "val_check_interval": interval,
        "num_sanity_val_steps": 0,
    }
    file = tmp_path / "a.ckpt"
    undisturbed = make_validated()
    judged = Judged()
    callbacks = [judged, SaveAfterValidation(file)]
    alone = fit(*callbacks, model=undisturbed, data=make_validation_data(), **flags)

    resumed = make_validated()
    judged_again = Judged()
    trainer = make_trainer(judged_again, **flags)
    trainer.fit(resumed, datamodule=make_validation_data(), ckpt_path=file)
    for weight, expected in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert judged_again.z_stds == judged.z_stds[-len(judged_again.z_stds) :]
    assert len(judged_again.z_stds) == (2 if interval == 1.0 else 3)
    assert trainer.callback_metrics["train_loss"] == alone.callback_metrics["train_loss"]


@pytest.mark.filterwarnings("ignore:The dataloader, val_dataloader")
def test_an_epoch_that_a_validation_ends_is_judged_by_its_batches(tmp_path: Path) -> None:
    judged = Judged()
    stop = SaveAfterValidation(tmp_path / "a.ckpt", stop=True)
    flags: dict[str, Any] = {"val_check_interval": 0.25, "num_sanity_val_steps": 0}
    data = make_validation_data()
    trainer = fit(judged, stop, model=make_validated(), data=data, max_epochs=3, **flags)
    assert trainer.global_step == BATCHES // 2
    assert judged.z_stds == [float(trainer.callback_metrics["z_std"])]
