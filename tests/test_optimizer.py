"""The learning rate falls to 0 at the end of a run: also of a second fit, and after a resume."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from tests.test_lightning import RateRecorder
from tests.trainers import BATCHES, SaveAt, final_rate, fit, make_data, make_model, make_trainer


def resume(file: Path, *callbacks: pl.Callback, **flags: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, **flags)
    trainer.fit(make_model(), datamodule=make_data(), ckpt_path=file)
    return trainer


def test_a_checkpoint_is_not_resumed_for_longer_than_its_schedule(tmp_path: Path) -> None:
    """The cosine would rise again."""
    fit(max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    message = "falls to 0 until step 16, but this Trainer ends at step 32, so the rate would rise"
    with pytest.raises(ValueError, match=message):
        resume(tmp_path / "a.ckpt", max_epochs=4)


def test_a_shorter_rest_of_a_run_warns_that_the_rate_stays_above_0(tmp_path: Path) -> None:
    fit(SaveAt(3, tmp_path / "a.ckpt"), max_epochs=3)
    with pytest.warns(UserWarning, match="until step 24, but this Trainer ends at step 16, at a"):
        trainer = resume(tmp_path / "a.ckpt", max_epochs=2)
    assert final_rate(trainer) > 0.01


def weight_averaging() -> pl.Callback:
    return StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)


def early_stopping() -> pl.Callback:
    return EarlyStopping("train_loss", patience=1, min_delta=10.0)


def name_case(value: Any) -> str:
    """Return the name of flags or of callbacks, which is the same in each process of pytest."""
    if isinstance(value, list):
        return ", ".join(make.__name__ for make in value)
    return str(value)


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    ("flags", "make_callbacks"),
    [
        ({"max_epochs": 3}, []),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, []),
        ({"max_epochs": 3, "limit_train_batches": 5}, []),
        ({"max_epochs": 3, "overfit_batches": 5}, []),
        ({"max_epochs": -1, "max_steps": 11}, []),
        ({"max_epochs": 3, "max_steps": 11}, []),
        ({"max_epochs": 3, "max_time": {"hours": 1}}, []),
        ({"max_epochs": 9}, [early_stopping]),
        ({"max_epochs": 4}, [weight_averaging]),  # adds an epoch without steps
    ],
    ids=name_case,
)
def test_a_resume_with_the_same_flags_does_not_warn(
    flags: dict[str, Any], make_callbacks: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "a.ckpt"
    fit(SaveAt(4, file), *[make() for make in make_callbacks], **flags)
    # A warning would fail this test.
    trainer = resume(file, *[make() for make in make_callbacks], **flags)
    assert trainer.global_step > 1


def test_a_fast_dev_run_with_a_checkpoint_does_not_warn(tmp_path: Path) -> None:
    fit(SaveAt(3, tmp_path / "a.ckpt"), max_epochs=2)
    resume(tmp_path / "a.ckpt", fast_dev_run=True)  # A warning would fail this test.


def test_the_rate_falls_to_0_at_the_end_of_a_second_fit(tmp_path: Path) -> None:
    recorder = RateRecorder()
    save = SaveAt(2 * BATCHES + 3, tmp_path / "a.ckpt")
    model = make_model()
    trainer = fit(recorder, save, model=model, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, datamodule=make_data())
    assert trainer.global_step == 4 * BATCHES
    first = recorder.rates[: 2 * BATCHES]
    second = recorder.rates[2 * BATCHES :]
    assert second == pytest.approx(first)
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)

    # A checkpoint of the second fit resumes with the rates of the second fit.
    recorder = RateRecorder()
    trainer = resume(tmp_path / "a.ckpt", recorder, max_epochs=4)
    assert recorder.rates == pytest.approx(second[3:])
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("size", [2, 32])  # smaller and larger than that of `make_data`
def test_the_rate_falls_to_0_over_the_steps_of_a_batch_size_that_was_found(
    size: int, tmp_path: Path
) -> None:
    recorder = RateRecorder()
    finder = BatchSizeFinder(steps_per_trial=1, init_val=size, max_trials=1)
    trainer = fit(finder, recorder, max_epochs=2, default_root_dir=tmp_path)
    rates = recorder.rates[-trainer.global_step :]  # without those of the finder
    assert trainer.global_step == 2 * 64 // size
    assert max(rates) == pytest.approx(0.06)
    assert rates.index(max(rates)) < len(rates) / 4
    assert final_rate(trainer) == pytest.approx(0, abs=1e-9)


def test_a_rate_that_was_found_is_the_peak_of_the_run(tmp_path: Path) -> None:
    recorder = RateRecorder()
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    model = make_model(predictor_lr_scale=10.0)
    trainer = fit(finder, recorder, model=model, max_epochs=2, default_root_dir=tmp_path)
    found = model.hparams["learning_rate"]
    assert found != 0.06
    assert max(recorder.rates[-trainer.global_step :]) == pytest.approx(found)
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs[1] == pytest.approx(10 * found)
