"""simsiam/callbacks/progress.py: what a person sees on a terminal while a run goes on, and what it will take."""

import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer

from simsiam.callbacks import progress
from simsiam.callbacks.progress import ProgressCallback, about
from simsiam.data.datamodule import ViewsDataModule
from simsiam.module import SimSiam
from tests.helpers import SMALL
from tests.terminal import run_on_a_terminal


def screen(columns: int, tmp_path: Path, *flags: str) -> list[str]:
    """All lines that a run drew on a terminal, without colours."""
    status, shown, err = run_on_a_terminal(columns, *SMALL, *flags, "--save-dir", str(tmp_path))
    assert (status, err) == (0, ""), shown
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()))


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow("as 80"))])
def test_the_bar_tells_epoch_step_loss_rate_and_time_and_finished_epochs_stay(
    columns: int, tmp_path: Path
) -> None:
    lines = screen(columns, tmp_path, "--epochs", "3")
    bars = [line for line in lines if "\u2501" in line and "epoch" in line]
    assert bars and all(len(line) <= columns for line in bars)
    assert bars[0].startswith("epoch 1/3 ")
    full = r"epoch 3/3 .* 4/4  loss -?\d\.\d{4}  [\d,]+ images/s  left \d:\d\d:\d\d"
    assert any(re.match(full, line) for line in bars), bars
    done = [
        line
        for line in lines
        if re.match(r"epoch \d/3  loss -?\d\.\d{4}  kNN \d+\.\d\d %  z_std", line)
    ]
    assert [line[6] for line in done] == ["1", "2", "3"]


@pytest.mark.slow("a fresh start; the usual width is a quick test")
def test_a_narrow_terminal_keeps_what_is_worth_most(tmp_path: Path) -> None:
    bars = [
        line
        for line in screen(50, tmp_path, "--epochs", "2")
        if "\u2501" in line and "epoch" in line
    ]
    last = bars[-1]
    assert len(last) <= 50 and "4/4" in last and "left" in last and "images/s" not in last


def test_the_time_left_knows_that_later_views_are_larger() -> None:
    data = ViewsDataModule(
        "patterns", train_images=40, test_images=10, batch_size=4, image_schedule=("16:2",)
    )
    data.setup()
    trainer = Trainer(max_epochs=4, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule, trainer.fit_loop.max_batches = data, 10  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit_loop.epoch_progress.current.completed = (
        trainer.fit_loop.epoch_progress.current.processed
    ) = 1
    bar = ProgressCallback(str)
    bar.steps, bar.seconds, bar.work = 20, 20.0, 20 * 16.0**2  # a second for each step of 16 pixels
    assert bar._left(trainer, 10) == timedelta(seconds=2 * 10 * 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only moves when a test says so."""
    clock = SimpleNamespace(now=0.0)
    stub = SimpleNamespace(
        perf_counter=lambda: clock.now, process_time=lambda: 2 * clock.now
    )  # two threads
    monkeypatch.setattr(progress, "time", stub)
    return clock


@pytest.mark.parametrize("count", [2, 50, 512])
@pytest.mark.parametrize("per_image", [1e-3, 0.02, 3.0])
def test_the_time_of_a_step_is_known_from_few_images(
    per_image: float, count: int, clock: SimpleNamespace
) -> None:
    calls: list[int] = []

    def step(n: int) -> None:
        clock.now += (
            0.25 + per_image * n + (0.1 if n not in calls else 0)
        )  # the first call of a size takes longer
        calls.append(n)

    expected = 0.25 + per_image * count
    assert progress.measure_seconds(step, count) == pytest.approx(expected, rel=0.05, abs=0.1)
    assert sum(calls) <= 2 * (2 + 8 + 32 + 128) and (per_image < 0.02 or sum(calls) <= 20)


@pytest.mark.parametrize("disturbed", [0, 1, 2])
def test_one_slow_call_does_not_spoil_the_estimate(disturbed: int, clock: SimpleNamespace) -> None:
    calls: list[int] = []

    def step(n: int) -> None:
        clock.now += 0.1 + 0.1 * n + (10 if len(calls) == disturbed else 0)
        calls.append(n)

    assert 0.5 * 51.3 < progress.measure_seconds(step, 512) < 2 * 51.3


def test_the_estimate_computes_few_images_of_a_slow_network(
    clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ViewsDataModule("patterns", train_images=400, test_images=40, batch_size=100)
    data.setup()
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
    images: list[int] = []

    def make_slow(function):
        def slow(*args):
            n = len(args[0]) if function.__name__ == "make_views" else len(args[1])
            images.append(n)
            clock.now += 0.5 * n
            return function(*args)

        return slow

    monkeypatch.setattr(data, "make_views", make_slow(data.make_views))
    monkeypatch.setattr(progress, "extract_features", make_slow(progress.extract_features))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    seconds = progress.estimate_seconds(model, data, bf16=False, epochs=10, knn_every=5)
    assert seconds == pytest.approx(
        0.5 * (10 * 400 + 3 * 440)
    )  # kNN: untrained, and after epochs 5 and 10
    assert sum(images) <= 40
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_time_is_told_in_words() -> None:
    seconds = (0.2, 30, 119, 121, 7000, 7300, 200_000)
    expected = [
        "about 1 s",
        "about 30 s",
        "about 119 s",
        "about 2 minutes",
        "about 117 minutes",
        "about 2 hours",
    ]
    assert [about(s) for s in seconds] == [*expected, "about 2 days"]
