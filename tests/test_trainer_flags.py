"""The parts under the Trainer's ordinary flags: counts, resume, the length of a run, precision."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from simsiam import CollapseMonitor, KNNMonitor, ViewsDataModule
from tests.trainers import BATCHES, SaveAt, final_rate, fit, make_data, make_model, make_trainer


class BatchCounter(pl.Callback):
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
    counter = BatchCounter()
    trainer = fit(counter, max_epochs=3, **flags)
    assert counter.batches == [batches] * 3
    assert trainer.global_step == 3 * steps
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


def test_the_cosine_follows_an_accumulation_schedule() -> None:
    trainer = fit(GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=3)
    assert trainer.global_step == 8 + 2 + 2
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


class IndexRecorder(pl.Callback):
    """Records the indices of the images of each epoch, where the datamodule makes views."""

    def __init__(self, data: ViewsDataModule) -> None:
        self.epochs: list[list[int]] = []
        make_views = data.make_views

        def record(indices: torch.Tensor, epoch: int, images: Any = None) -> list[torch.Tensor]:
            self.epochs[-1] += indices.tolist()
            return make_views(indices, epoch, images)

        data.make_views = record  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append([])


def test_overfit_batches_takes_the_same_images_in_each_epoch() -> None:
    data = make_data()
    recorder = IndexRecorder(data)
    fit(recorder, data=data, max_epochs=2, overfit_batches=2)
    first, second = recorder.epochs
    assert first == second
    assert len(set(first)) == 16


def test_with_accumulation_each_image_is_seen_once_an_epoch() -> None:
    data = make_data()
    recorder = IndexRecorder(data)
    fit(recorder, data=data, max_epochs=2, accumulate_grad_batches=2)
    assert [sorted(epoch) for epoch in recorder.epochs] == [list(range(64))] * 2


@pytest.mark.parametrize(
    ("batches", "flags"),
    [
        (4, {"accumulate_grad_batches": 2}),
        (13, {"accumulate_grad_batches": 4}),  # within an optimizer step
        (5, {"limit_train_batches": 3}),
        (11, {"limit_train_batches": 5, "accumulate_grad_batches": 2}),
        (11, {}),
    ],
    ids=str,
)
def test_a_resume_within_an_epoch_is_exact(
    batches: int, flags: dict[str, Any], tmp_path: Path
) -> None:
    """Weights and the epoch's mean equal those of an uninterrupted run, to the bit."""
    save = SaveAt(batches, tmp_path / "a.ckpt")
    expected = make_model()
    expected_loss = fit(save, model=expected, max_epochs=3, **flags).callback_metrics["train_loss"]

    resumed = make_model(learning_rate=1.0)  # the checkpoint has another rate
    trainer = make_trainer(max_epochs=3, **flags)
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")
    for name, weight in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    assert torch.equal(trainer.callback_metrics["train_loss"], expected_loss)


# ---------------------------------------------------------------- the length of a run


class PairStream(IterableDataset[Any]):
    """Pairs of views. The data set does not know its length."""

    def __iter__(self) -> Any:
        for i in range(32):
            x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
            yield [x[0], x[1]]


@pytest.mark.parametrize(
    ("data", "flags", "reason"),
    [
        (None, {"max_epochs": -1, "max_time": "00:00:00:05"}, "the run has no end"),
        (DataLoader(PairStream(), 8), {"max_epochs": 1}, "the loader has no length"),
    ],
)
def test_a_run_of_unknown_length_needs_max_steps(
    data: Any, flags: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{reason}. Pass Trainer\\(max_steps="):
        fit(data=data, **flags)


def test_a_loader_without_length_trains_for_max_steps() -> None:
    trainer = fit(CollapseMonitor(), data=DataLoader(PairStream(), 8), max_steps=6)
    assert trainer.global_step == 6
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_epochs": -1, "max_steps": 3},
        {"max_epochs": 2, "max_steps": 11},
        {"max_epochs": 500, "max_time": {"seconds": 1}},
    ],
)
def test_an_epoch_that_ends_early_has_its_means(flags: dict[str, Any]) -> None:
    """CollapseMonitor and the last kNN measurement need them."""
    monitor = KNNMonitor(k=5, every=100)
    trainer = fit(monitor, CollapseMonitor(), **flags)
    assert trainer.global_step > 0
    assert {"train_loss", "z_std", "kNN_accuracy", "rankme"} <= set(trainer.callback_metrics)
    assert monitor.epoch_metrics  # kNN was measured after the last epoch


@pytest.mark.parametrize(
    "flags", [{"max_epochs": 0}, {"max_steps": 0}, {"max_epochs": 2, "limit_train_batches": 0}]
)
def test_a_run_without_a_step_ends_normally(flags: dict[str, Any]) -> None:
    assert fit(KNNMonitor(k=5), CollapseMonitor(), **flags).global_step == 0


@pytest.mark.parametrize(("batches", "steps"), [(True, 1), (3, 3)])
def test_fast_dev_run_ends_normally(batches: Any, steps: int) -> None:
    trainer = fit(KNNMonitor(k=5), CollapseMonitor(), fast_dev_run=batches)
    assert trainer.global_step == steps


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_barebones_run_ends_normally() -> None:
    trainer = pl.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    trainer.fit(make_model(), datamodule=make_data())
    assert trainer.global_step == BATCHES


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
    model = make_model(weight_decay=0.0)
    untrained = make_model()
    clip = {"gradient_clip_val": 1e-12, "gradient_clip_algorithm": algorithm}
    fit(model=model, max_epochs=1, precision=precision, **clip)
    # Gradients that are clipped to nearly 0 leave the weights as they were.
    for weight, initial in zip(model.parameters(), untrained.parameters(), strict=True):
        torch.testing.assert_close(weight, initial, atol=1e-6, rtol=0)
