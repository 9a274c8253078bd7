"""The parts used twice, listed in any order, resumed after an error, and extended by subclasses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    OnExceptionCheckpoint,
)
from torch.utils.data import DataLoader, TensorDataset

from simsiam import CollapseMonitor, KNNMonitor, SimSiam, ViewsDataModule, load_backbone
from simsiam.inputs import to_plain
from tests.trainers import fit, make_data, make_model, make_trainer
from utils.errors import UserError

IMAGES = torch.randn(20, 3, 16, 16)
LOADER = DataLoader(TensorDataset(IMAGES, torch.arange(20) % 4), batch_size=10)
SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 2, "out_dim": 16, "h_dim": 8}


def same_weights(a: pl.LightningModule, b: pl.LightningModule) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ---------------------------------------------------------------- twice, and other stages


def test_a_monitor_measures_the_last_epoch_of_a_second_fit() -> None:
    monitor = KNNMonitor(k=5, every=100)
    fit(monitor, max_epochs=2)
    stop = EarlyStopping("train_loss", patience=1, min_delta=10.0)  # after two epochs, as before
    trainer = fit(monitor, stop, max_epochs=60)
    assert trainer.current_epoch == 2 and monitor.latest


def test_a_collapse_is_reported_in_a_second_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.callbacks.collapse.is_collapsed", lambda *_: True)
    lines: list[str] = []
    monitor = CollapseMonitor(print_fn=lines.append)
    for _ in range(2):
        fit(monitor, max_epochs=2)
    assert len(lines) == 2


class OtherImages(pl.LightningDataModule):
    """Images to predict that are not those of the training."""

    mean, std, size, classes = (0.1,) * 3, (0.9,) * 3, 99, ("z",)

    def predict_dataloader(self) -> Any:
        return LOADER


def test_predicting_other_images_does_not_change_what_training_saw() -> None:
    model = make_model()
    trainer = fit(model=model, max_epochs=1)
    before = dict(model.hparams)
    trainer.predict(model, datamodule=OtherImages())
    assert dict(model.hparams) == before and model.backbone.image_size == before["image_size"]


def test_a_trainer_with_a_monitor_predicts_from_a_loader() -> None:
    features = make_trainer(KNNMonitor(), CollapseMonitor()).predict(make_model(), LOADER)
    assert features is not None and len(features) == 2


def test_a_collapse_is_judged_by_the_rank_of_the_same_epoch() -> None:
    """In whatever order the monitors are listed."""
    ranks: list[float | None] = []

    class Recorded(CollapseMonitor):
        def _current_rank(self, trainer: pl.Trainer) -> float | None:
            ranks.append(super()._current_rank(trainer))
            return ranks[-1]

    knn = KNNMonitor(k=5)
    for callbacks in ([Recorded(), knn], [knn, Recorded()]):
        fit(*callbacks, max_epochs=1)
        assert ranks.pop() == knn.latest["rankme"]


# ---------------------------------------------------------------- resumed


class SaveAt(pl.Callback):
    """Saves a checkpoint after so many batches."""

    def __init__(self, batches: int, file: Path, weights_only: bool = False) -> None:
        self.batches = batches
        self.file = file
        self.weights_only = weights_only

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            trainer.save_checkpoint(self.file, weights_only=self.weights_only)


@pytest.mark.parametrize("batches", [11, 13])  # within a step of epoch 2, and between two
def test_a_resume_follows_a_schedule_of_accumulation(batches: int, tmp_path: Path) -> None:
    def schedule() -> pl.Callback:
        return GradientAccumulationScheduler({0: 1, 1: 4})

    whole, resumed = make_model(), make_model(learning_rate=1.0)
    fit(SaveAt(batches, tmp_path / "a.ckpt"), schedule(), model=whole, max_epochs=3)
    trainer = make_trainer(schedule(), max_epochs=3)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 8 + 2 + 2 and same_weights(whole, resumed)


class Failing(SimSiam):
    """Raises in its training step for one batch, counted from 1 over all epochs."""

    fails_at = 0
    batch = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batch += 1
        if self.batch == self.fails_at:
            raise MemoryError
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`?.fit.ckpt_path")
@pytest.mark.parametrize(
    ("fails_at", "accumulate"),
    [(4, 2), (5, 2), (8, 2), (3, 1)],  # with a gradient waiting, without, in the last batch
)
def test_a_resume_after_an_error_in_a_batch_is_exact(
    fails_at: int, accumulate: int, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    whole, failing, resumed = make_model(), Failing(**SIZES), make_model(learning_rate=1.0)
    fit(model=whole, **flags)
    failing.load_state_dict(make_model().state_dict())
    failing.fails_at = fails_at
    with pytest.raises(MemoryError):
        fit(OnExceptionCheckpoint(tmp_path), model=failing, enable_checkpointing=True, **flags)
    trainer = make_trainer(**flags)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=next(tmp_path.iterdir()))
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("weights_only", [True, False])
def test_only_what_can_be_resumed_has_gradients(weights_only: bool, tmp_path: Path) -> None:
    save = SaveAt(3, tmp_path / "a.ckpt", weights_only)
    fit(save, max_epochs=1, accumulate_grad_batches=2)
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert ("accumulated_gradients" in saved) is not weights_only


# ---------------------------------------------------------------- other people's extensions


class Quiet(SimSiam):
    """Its epochs' start is its own business, which must not falsify the means."""

    def on_train_epoch_start(self) -> None:
        pass


def test_the_means_of_an_epoch_are_of_that_epoch_alone() -> None:
    """Also if a subclass overrides the hook of an epoch's start."""
    plain, other = make_model(), Quiet(**SIZES)
    other.load_state_dict(plain.state_dict())
    losses = [fit(model=m, max_epochs=3).callback_metrics["train_loss"] for m in (plain, other)]
    assert torch.equal(*losses)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_a_backbone_that_is_frozen_first_learns_later() -> None:
    """torch's fused SGD cannot start with a parameter in a later step."""
    model = make_model()
    backbone: Any = model.backbone
    before = backbone.conv1.weight.clone()
    fit(BackboneFinetuning(1), model=model, max_epochs=3)
    assert not torch.equal(backbone.conv1.weight, before)


class OwnLabelledViews(ViewsDataModule):
    """Takes the splits and the monitor's images, but has views of its own."""

    def train_dataloader(self) -> Any:
        return DataLoader([([x, x.flip(2)], 0) for x in IMAGES], batch_size=10)  # pyright: ignore[reportArgumentType]


class OwnPairs(ViewsDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader([[x, x.flip(2)] for x in IMAGES], batch_size=10)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [OwnLabelledViews, OwnPairs])
def test_views_of_a_subclass_are_not_augmented_again(kind: Any) -> None:
    data = kind("patterns", train_images=64, test_images=20, batch_size=8)
    assert fit(KNNMonitor(k=5), data=data, max_epochs=1).global_step == 2


class WithFunction(SimSiam):
    """Uses an argument that is no plain value through `self.hparams`."""

    def __init__(self, function: Any = torch.relu, **options: Any) -> None:
        super().__init__(**options)
        self.function = self.hparams["function"]


@pytest.mark.filterwarnings("ignore:hyper-parameters that are not plain")
def test_arguments_that_are_not_saved_stay_usable(tmp_path: Path) -> None:
    model = WithFunction(**SIZES)
    fit(model=model, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    assert model.hparams["function"] is torch.relu
    assert load_backbone(tmp_path / "a.ckpt").num_features == 16
    assert WithFunction.load_from_checkpoint(tmp_path / "a.ckpt").function is torch.relu


class ForgetsSuper(WithFunction):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"]["function"] = "relu"


@pytest.mark.filterwarnings("ignore:hyper-parameters that are not plain")
def test_a_checkpoint_written_without_super_says_so(tmp_path: Path) -> None:
    fit(model=ForgetsSuper(**SIZES), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"hyper-parameters function.*does not call super\(\)"):
        load_backbone(tmp_path / "a.ckpt")


def test_the_backbone_of_a_compiled_module_loads(tmp_path: Path) -> None:
    model = make_model()
    plain: Any = model.backbone
    model.backbone = torch.compile(plain, backend="eager")  # pyright: ignore[reportAttributeAccessIssue]
    fit(model=model, max_epochs=0).save_checkpoint(tmp_path / "a.ckpt")
    loaded: Any = load_backbone(tmp_path / "a.ckpt")
    assert torch.equal(loaded.conv1.weight, plain.conv1.weight)


@pytest.mark.parametrize(
    "value",
    [
        1j,
        np.complex64(1j),
        np.array([1j]),
        np.datetime64("2020-01-01"),
        np.array([None, object()]),
        torch.ones(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_plain_form_is_refused(value: Any) -> None:
    """`torch.load(weights_only=True)` could not read it."""
    with pytest.raises(TypeError, match="is not plain"):
        to_plain(value)


def test_numbers_that_python_lacks_become_floats() -> None:
    assert to_plain(np.array([0.5], dtype=np.longdouble)) == [0.5]
