"""simsiam/callbacks/collapse.py and simsiam/collapse.py."""

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from simsiam import CollapseMonitor, KNNMonitor
from simsiam.collapse import has_lost_rank, is_collapsed, lost_rank_threshold
from tests.trainers import BATCHES, SaveAt, fit, make_data, make_model, make_trainer
from utils import distributed
from utils.errors import NOT_FINITE_STATUS, RunError

IMAGES = 8000
TOO_HIGH = {"learning_rate": 0.3, "weight_decay": 0.1}  # loses the rank within two epochs


@pytest.mark.parametrize(
    ("z_std", "rank", "collapsed"),
    [
        (0.33, 40.0, False),
        (0.33, 1.5, True),
        (0.33, None, False),
        (0.05, None, True),
        (0.97, 1.5, False),
    ],
)
def test_collapse_needs_low_z_std_and_low_rank_if_measured(
    z_std: float, rank: float | None, collapsed: bool
) -> None:
    assert is_collapsed(z_std, rank) == collapsed


@pytest.mark.parametrize(
    ("ranks", "features", "images", "lost"),
    [
        ([48.0, 5.0, 4.0], 128, IMAGES, True),
        ([48.0, 5.0], 128, IMAGES, False),  # may be a dip
        ([5.0, 4.0, 9.0], 128, IMAGES, False),  # has recovered
        ([13.1, 13.1], 128, IMAGES, False),  # the lowest ranks of a run that learned something
        ([9.0, 9.0], 512, IMAGES, False),
        ([5.0, 4.0], 512, IMAGES, True),
        ([5.0, 5.0], 32, IMAGES, False),  # a narrow network
        ([1.5, 1.0], 32, IMAGES, True),
        ([5.0, 5.0], 128, 40, False),  # few images
        ([4.0], 128, IMAGES, False),
        ([], 128, IMAGES, False),
    ],
)
def test_a_rank_is_lost_if_it_is_low_twice_in_a_row(
    ranks: list[float], features: int, images: int, lost: bool
) -> None:
    assert has_lost_rank(ranks, lost_rank_threshold(features, images)) == lost


def train(*callbacks: pl.Callback, **settings: float) -> list[str]:
    """Train on real patterns and return the warnings. A collapse would end the run."""
    warnings: list[str] = []
    monitor = CollapseMonitor(stop=True, print_fn=warnings.append)
    model = make_model(width=4, warmup_epochs=0, **settings)
    fit(monitor, KNNMonitor(k=5), *callbacks, model=model, max_epochs=3)
    return warnings


def test_a_high_weight_decay_costs_the_rank_and_is_warned_of_once() -> None:
    (warning,) = train(**TOO_HIGH)
    assert "effective rank of the 32 features" in warning
    assert "in epoch 2 " in warning
    assert "weight decay" in warning


def test_a_healthy_narrow_network_is_not_warned_of() -> None:
    assert train() == []


def resume(file: Path, monitor: CollapseMonitor) -> None:
    trainer = make_trainer(monitor, KNNMonitor(k=5), max_epochs=3)
    model = make_model(width=4, warmup_epochs=0, **TOO_HIGH)
    trainer.fit(model, datamodule=make_data(), ckpt_path=file)


@pytest.mark.parametrize("batches", [BATCHES + 3, 2 * BATCHES + 3])  # before and after the warning
def test_a_resumed_run_is_warned_as_if_it_had_not_stopped(batches: int, tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    warnings = train(SaveAt(batches, file), **TOO_HIGH)
    resumed_warnings: list[str] = []
    resume(file, CollapseMonitor(print_fn=resumed_warnings.append))
    if batches < 2 * BATCHES:
        assert resumed_warnings == warnings
    else:
        assert resumed_warnings == []


def test_a_checkpoint_without_the_state_of_the_monitor_resumes(tmp_path: Path) -> None:
    """Those of earlier versions have none."""
    file = tmp_path / "a.ckpt"
    fit(SaveAt(BATCHES + 3, file), model=make_model(width=4, warmup_epochs=0), max_epochs=3)
    assert "CollapseMonitor" not in torch.load(file, weights_only=True)["callbacks"]
    resumed_warnings: list[str] = []
    resume(file, CollapseMonitor(print_fn=resumed_warnings.append))
    assert resumed_warnings == []


def test_a_run_that_has_been_warned_of_a_collapse_can_be_stopped_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("simsiam.callbacks.collapse.is_collapsed", lambda *_: True)
    file = tmp_path / "a.ckpt"
    warnings: list[str] = []
    save = SaveAt(BATCHES + 3, file)
    monitor = CollapseMonitor(print_fn=warnings.append)
    fit(monitor, save, model=make_model(width=4), max_epochs=3)
    assert len(warnings) == 1
    with pytest.raises(RunError, match="has collapsed in epoch 2"):
        resume(file, CollapseMonitor(stop=True))


# ---------------------------------------------------------------- a training that has diverged

DIVERGING: dict[str, float] = {"learning_rate": 1e20, "warmup_epochs": 0}


def test_a_loss_that_is_not_finite_is_reported_once() -> None:
    warnings: list[str] = []
    monitor = CollapseMonitor(print_fn=warnings.append)
    fit(monitor, model=make_model(**DIVERGING), max_epochs=3)
    (warning,) = warnings
    assert "the training has diverged in epoch 1: the loss is not finite" in warning
    with pytest.raises(RunError, match="has diverged in epoch 1") as error:
        fit(CollapseMonitor(stop=True), model=make_model(**DIVERGING), max_epochs=3)
    assert error.value.status == NOT_FINITE_STATUS


def test_features_that_are_not_finite_have_no_accuracy() -> None:
    """The vote of such features has the accuracy of chance, which looks like a measurement."""
    stop = EarlyStopping("kNN_accuracy", mode="max", patience=9)
    monitor = KNNMonitor(k=5)
    trainer = fit(monitor, stop, model=make_model(**DIVERGING), max_epochs=3)
    assert math.isnan(monitor.epoch_metrics["kNN_accuracy"])
    assert trainer.current_epoch == 1


def test_only_one_process_of_a_trainer_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        KNNMonitor().print_fn(f"from {rank}")
        CollapseMonitor().print_fn(f"from {rank}")
    assert capsys.readouterr().out == "from 0\nfrom 0\n"
