"""The parts in a second fit, listed in any order, resumed after an error, and in subclasses."""

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
from simsiam.hparams import to_plain
from tests.trainers import BATCHES, SaveAt, fit, make_data, make_model, make_trainer
from utils.errors import UserError

IMAGES = torch.randn(20, 3, 16, 16)
LOADER = DataLoader(TensorDataset(IMAGES, torch.arange(20) % 4), batch_size=10)
SIZES: dict[str, Any] = {"backbone": "resnet10", "width": 2, "out_dim": 16, "h_dim": 8}


def same_weights(a: pl.LightningModule, b: pl.LightningModule) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# ---------------------------------------------------------------- a second fit, and prediction


def test_a_monitor_measures_the_last_epoch_of_a_second_fit() -> None:
    monitor = KNNMonitor(k=5, every=100)
    fit(monitor, max_epochs=2)
    # The second fit ends after two epochs, too.
    stop = EarlyStopping("train_loss", patience=1, min_delta=10.0)
    trainer = fit(monitor, stop, max_epochs=60)
    assert trainer.current_epoch == 2
    assert monitor.epoch_metrics


def test_a_collapse_is_reported_in_a_second_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.callbacks.collapse.is_collapsed", lambda *_: True)
    lines: list[str] = []
    monitor = CollapseMonitor(print_fn=lines.append)
    for _ in range(2):
        fit(monitor, max_epochs=2)
    assert len(lines) == 2


class OtherImages(pl.LightningDataModule):
    """Images for `predict` that are not the training images."""

    mean = (0.1, 0.1, 0.1)
    std = (0.9, 0.9, 0.9)
    size = 99
    classes = ("z",)

    def predict_dataloader(self) -> Any:
        return LOADER


def test_predicting_other_images_changes_no_hyper_parameters() -> None:
    model = make_model()
    trainer = fit(model=model, max_epochs=1)
    before = dict(model.hparams)
    trainer.predict(model, datamodule=OtherImages())
    assert dict(model.hparams) == before
    assert model.backbone.image_size == before["image_size"]


def test_a_trainer_with_a_monitor_predicts_from_a_loader() -> None:
    features = make_trainer(KNNMonitor(), CollapseMonitor()).predict(make_model(), LOADER)
    assert features is not None
    assert len(features) == 2


def test_a_collapse_is_judged_by_the_rank_of_the_same_epoch() -> None:
    """The order in which the monitors are listed does not matter."""
    ranks: list[float | None] = []

    class Recorded(CollapseMonitor):
        def _current_rank(self, trainer: pl.Trainer) -> float | None:
            ranks.append(super()._current_rank(trainer))
            return ranks[-1]

    knn = KNNMonitor(k=5)
    for callbacks in ([Recorded(), knn], [knn, Recorded()]):
        fit(*callbacks, max_epochs=1)
        assert ranks.pop() == knn.epoch_metrics["rankme"]


# ---------------------------------------------------------------- resumed


# Both are within an optimizer step of epoch 2, which has 4 batches: after 3 of them, and after 1.
@pytest.mark.parametrize("batches", [11, 13])
def test_a_resume_follows_an_accumulation_schedule(batches: int, tmp_path: Path) -> None:
    def schedule() -> pl.Callback:
        return GradientAccumulationScheduler({0: 1, 1: 4})

    uninterrupted = make_model()
    save = SaveAt(batches, tmp_path / "a.ckpt")
    fit(save, schedule(), model=uninterrupted, max_epochs=3)

    resumed = make_model(learning_rate=1.0)  # the checkpoint has another rate
    trainer = make_trainer(schedule(), max_epochs=3)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 8 + 2 + 2
    assert same_weights(uninterrupted, resumed)


class Failing(SimSiam):
    """Raises an error for one batch. Batches are counted from 1 over all epochs."""

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
    [
        (4, 2),  # the gradient of batch 3 is accumulated
        (5, 2),  # no gradient is accumulated
        (8, 2),  # the last batch of the epoch
        (3, 1),  # no accumulation
    ],
)
def test_a_resume_after_an_error_in_a_batch_is_exact(
    fails_at: int, accumulate: int, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    uninterrupted = make_model()
    fit(model=uninterrupted, **flags)

    failing = Failing(**SIZES)
    failing.load_state_dict(make_model().state_dict())
    failing.fails_at = fails_at
    with pytest.raises(MemoryError):
        fit(OnExceptionCheckpoint(tmp_path), model=failing, enable_checkpointing=True, **flags)

    (checkpoint,) = tmp_path.iterdir()
    resumed = make_model(learning_rate=1.0)  # the checkpoint has another rate
    trainer = make_trainer(**flags)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=checkpoint)
    assert same_weights(uninterrupted, resumed)


@pytest.mark.parametrize("weights_only", [True, False])
def test_only_resumable_checkpoints_have_gradients(weights_only: bool, tmp_path: Path) -> None:
    save = SaveAt(3, tmp_path / "a.ckpt", weights_only)
    fit(save, max_epochs=1, accumulate_grad_batches=2)
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert ("accumulated_gradients" in saved) is not weights_only


# ---------------------------------------------------------------- subclasses


class WithoutEpochStart(SimSiam):
    """Overrides a hook without calling super()."""

    def on_train_epoch_start(self) -> None:
        pass


@pytest.mark.parametrize("step", [BATCHES - 2, BATCHES - 1])
def test_an_epoch_resumed_at_its_last_batches_has_its_means(step: int, tmp_path: Path) -> None:
    """With one batch left, Lightning does not know yet in that batch that the epoch is done."""
    file = tmp_path / "a.ckpt"
    alone = fit(SaveAt(step, file), CollapseMonitor(), max_epochs=1)
    resumed = make_trainer(CollapseMonitor(), max_epochs=1)
    resumed.fit(make_model(), datamodule=make_data(), ckpt_path=file)
    for name in ("train_loss", "z_std"):
        assert resumed.callback_metrics[name] == alone.callback_metrics[name]


def test_an_overridden_epoch_start_does_not_change_the_means() -> None:
    model = make_model()
    other = WithoutEpochStart(**SIZES)
    other.load_state_dict(model.state_dict())
    loss = fit(model=model, max_epochs=3).callback_metrics["train_loss"]
    other_loss = fit(model=other, max_epochs=3).callback_metrics["train_loss"]
    assert torch.equal(loss, other_loss)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_a_backbone_learns_after_it_was_frozen() -> None:
    """torch's fused SGD fails if a parameter starts to learn in a later step."""
    model = make_model()
    backbone: Any = model.backbone
    before = backbone.conv1.weight.clone()
    fit(BackboneFinetuning(1), model=model, max_epochs=3)
    assert not torch.equal(backbone.conv1.weight, before)


class OwnLabelledViews(ViewsDataModule):
    """Has the images of ViewsDataModule, but makes views by itself."""

    def train_dataloader(self) -> Any:
        return DataLoader([([x, x.flip(2)], 0) for x in IMAGES], batch_size=10)  # pyright: ignore[reportArgumentType]


class OwnPairs(ViewsDataModule):
    """The same, without labels."""

    def train_dataloader(self) -> Any:
        return DataLoader([[x, x.flip(2)] for x in IMAGES], batch_size=10)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [OwnLabelledViews, OwnPairs])
def test_views_of_a_subclass_are_not_augmented_again(kind: Any) -> None:
    data = kind("patterns", train_images=64, test_images=20, batch_size=8)
    assert fit(KNNMonitor(k=5), data=data, max_epochs=1).global_step == 2


class WithFunction(SimSiam):
    """Reads an argument that is no plain value from `self.hparams`."""

    def __init__(self, function: Any = torch.relu, **options: Any) -> None:
        super().__init__(**options)
        self.function = self.hparams["function"]


@pytest.mark.filterwarnings("ignore:hyper-parameters that are not plain")
def test_arguments_that_cannot_be_saved_stay_usable(tmp_path: Path) -> None:
    model = WithFunction(**SIZES)
    fit(model=model, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    assert model.hparams["function"] is torch.relu
    assert load_backbone(tmp_path / "a.ckpt").num_features == 16
    assert WithFunction.load_from_checkpoint(tmp_path / "a.ckpt").function is torch.relu


class ForgetsSuper(WithFunction):
    """Writes a checkpoint without calling super()."""

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
def test_values_without_a_plain_form_are_refused(value: Any) -> None:
    """`torch.load(weights_only=True)` could not read them."""
    with pytest.raises(TypeError, match="is not plain"):
        to_plain(value)


def test_long_doubles_become_floats() -> None:
    assert to_plain(np.array([0.5], dtype=np.longdouble)) == [0.5]
