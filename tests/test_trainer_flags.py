"""The parts under the Trainer's ordinary flags: counts, resume, the length of a run, precision."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from simsiam import CollapseMonitor, KNNMonitor, ViewsDataModule
from tests.trainers import BATCHES, final_rate, fit, make_data, make_model, make_trainer


class Record(pl.Callback):
    """Counts the batches of each epoch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.batches.append(0)

    def on_train_batch_start(self, *_: Any) -> None:
        self.batches[-1] += 1


# ---------------------------------------------------------------- how many batches and steps


@pytest.mark.parametrize(
    ("flags", "batches", "steps"),
    [
        ({"accumulate_grad_batches": 2}, BATCHES, 4),
        ({"accumulate_grad_batches": 3}, BATCHES, 3),
        ({"accumulate_grad_batches": 100}, BATCHES, 1),
        ({"limit_train_batches": 3}, 3, 3),
        ({"limit_train_batches": 0.5}, 4, 4),
        ({"limit_train_batches": 5, "accumulate_grad_batches": 2}, 5, 3),
        ({"overfit_batches": 2}, 2, 2),
        ({"reload_dataloaders_every_n_epochs": 1}, BATCHES, BATCHES),
    ],
    ids=str,
)
def test_each_epoch_has_all_its_batches(flags: dict[str, Any], batches: int, steps: int) -> None:
    record = Record()
    trainer = fit(record, max_epochs=3, **flags)
    assert record.batches == [batches] * 3
    assert trainer.global_step == 3 * steps
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


def test_the_cosine_follows_a_schedule_of_accumulation() -> None:
    trainer = fit(GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=3)
    assert trainer.global_step == 8 + 2 + 2
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


class Indices(pl.Callback):
    """Collects the images of each epoch, in the place of the augmentation."""

    def __init__(self, data: ViewsDataModule) -> None:
        self.epochs: list[list[int]] = []
        make_views = data.make_views

        def record(indices: torch.Tensor, epoch: int, images: Any = None) -> list[torch.Tensor]:
            self.epochs[-1] += indices.tolist()
            return make_views(indices, epoch, images)

        data.make_views = record  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])


def test_overfitting_takes_the_same_images_in_each_epoch() -> None:
    data = make_data()
    seen = Indices(data)
    fit(seen, data=data, max_epochs=2, overfit_batches=2)
    assert seen.epochs[0] == seen.epochs[1] and len(set(seen.epochs[0])) == 16


def test_with_accumulation_each_image_is_seen_once_an_epoch() -> None:
    data = make_data()
    seen = Indices(data)
    fit(seen, data=data, max_epochs=2, accumulate_grad_batches=2)
    assert [sorted(epoch) for epoch in seen.epochs] == [list(range(64))] * 2


class SaveAt(pl.Callback):
    """Saves a checkpoint after so many batches."""

    def __init__(self, batches: int, file: Path) -> None:
        self.batches, self.file = batches, file

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize(
    ("batches", "flags"),
    [
        (4, {"accumulate_grad_batches": 2}),
        (13, {"accumulate_grad_batches": 4}),  # between two steps
        (5, {"limit_train_batches": 3}),
        (11, {"limit_train_batches": 5, "accumulate_grad_batches": 2}),
        (11, {}),
    ],
    ids=str,
)
def test_a_resume_in_mid_epoch_is_exact(
    batches: int, flags: dict[str, Any], tmp_path: Path
) -> None:
    """Weights and the epoch's mean equal those of a run that was left alone, to the bit."""
    whole, resumed = make_model(), make_model(learning_rate=1.0)
    left_alone = fit(SaveAt(batches, tmp_path / "a.ckpt"), model=whole, max_epochs=3, **flags)
    trainer = make_trainer(max_epochs=3, **flags)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    loss = trainer.callback_metrics["train_loss"]
    assert torch.equal(loss, left_alone.callback_metrics["train_loss"])


# ---------------------------------------------------------------- the length of a run


class Endless(IterableDataset[Any]):
    """Pairs of views, without a length."""

    def __iter__(self) -> Any:
        for i in range(32):
            x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
            yield [x[0], x[1]]


@pytest.mark.parametrize(
    ("data", "flags", "reason"),
    [
        (None, {"max_epochs": -1, "max_time": "00:00:00:05"}, "the run has no end"),
        (DataLoader(Endless(), 8), {"max_epochs": 1}, "the loader has no length"),
    ],
)
def test_a_run_of_unknown_length_is_told_to_give_max_steps(
    data: Any, flags: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{reason}. Pass Trainer\\(max_steps="):
        fit(data=data, **flags)


def test_a_loader_without_length_trains_for_max_steps() -> None:
    trainer = fit(CollapseMonitor(), data=DataLoader(Endless(), 8), max_steps=6)
    assert trainer.global_step == 6
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "flags", [{"max_steps": 3}, {"max_epochs": 2, "max_steps": 11}, {"max_time": {"seconds": 1}}]
)
def test_an_epoch_that_is_cut_short_has_its_means(flags: dict[str, Any]) -> None:
    """CollapseMonitor and the last kNN measurement need them."""
    monitor = KNNMonitor(k=5, every=100)
    trainer = fit(
        monitor, CollapseMonitor(), **{"max_epochs": -1 if "max_steps" in flags else 500, **flags}
    )
    assert trainer.global_step > 0
    assert {"train_loss", "z_std", "kNN_accuracy", "rankme"} <= set(trainer.callback_metrics)
    assert monitor.latest  # the last epoch was measured


@pytest.mark.parametrize(
    "flags", [{"max_epochs": 0}, {"max_steps": 0}, {"max_epochs": 2, "limit_train_batches": 0}]
)
def test_a_run_without_a_step_ends_normally(flags: dict[str, Any]) -> None:
    assert fit(KNNMonitor(k=5), CollapseMonitor(), **flags).global_step == 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # barebones
@pytest.mark.parametrize(
    "flags", [{"fast_dev_run": True}, {"fast_dev_run": 3}, {"barebones": True, "max_epochs": 1}]
)
def test_debugging_runs_end_normally(flags: dict[str, Any]) -> None:
    if "barebones" in flags:
        trainer = pl.Trainer(accelerator="cpu", **flags)
        trainer.fit(make_model(), datamodule=make_data())
    else:
        trainer = fit(KNNMonitor(k=5), CollapseMonitor(), **flags)
    assert trainer.global_step == {True: 1, 3: 3}.get(flags.get("fast_dev_run"), BATCHES)


# ---------------------------------------------------------------- precision and clipping


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_training_and_knn_compute_in_the_trainers_precision(precision: Any) -> None:
    model = make_model()
    trainer = fit(KNNMonitor(k=5), model=model, max_epochs=1, precision=precision)
    expected = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert model.backbone.conv1.weight.dtype == expected
    assert {"kNN_accuracy", "rankme"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_every_precision(precision: Any, algorithm: str) -> None:
    model, untouched = make_model(weight_decay=0.0), make_model()
    clip = {"gradient_clip_val": 1e-12, "gradient_clip_algorithm": algorithm}
    fit(model=model, max_epochs=1, precision=precision, **clip)
    for weight, initial in zip(model.parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(weight, initial, atol=1e-6, rtol=0)
