"""simsiam/commands/estimate.py: how long a run will take, known from a few images."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from simsiam.commands import estimate
from simsiam.commands.estimate import format_duration
from simsiam.data.datamodule import ViewsDataModule
from simsiam.module import SimSiam


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only moves when a test says so."""
    clock = SimpleNamespace(now=0.0)
    stub = SimpleNamespace(
        perf_counter=lambda: clock.now, process_time=lambda: 2 * clock.now
    )  # two threads
    monkeypatch.setattr(estimate, "time", stub)
    return clock


@pytest.mark.parametrize("count", [2, 50, 512])
@pytest.mark.parametrize("per_image", [1e-3, 0.02, 3.0])
def test_few_images_give_the_time_of_a_step(
    per_image: float, count: int, clock: SimpleNamespace
) -> None:
    calls: list[int] = []

    def step(n: int) -> None:
        clock.now += (
            0.25 + per_image * n + (0.1 if n not in calls else 0)
        )  # the first call of a size takes longer
        calls.append(n)

    expected = 0.25 + per_image * count
    assert estimate.measure_seconds(step, count) == pytest.approx(expected, rel=0.05, abs=0.1)
    assert sum(calls) <= 2 * (2 + 8 + 32 + 128) and (per_image < 0.02 or sum(calls) <= 20)


@pytest.mark.parametrize("disturbed", [0, 1, 2])
def test_one_slow_call_does_not_spoil_the_estimate(disturbed: int, clock: SimpleNamespace) -> None:
    calls: list[int] = []

    def step(n: int) -> None:
        clock.now += 0.1 + 0.1 * n + (10 if len(calls) == disturbed else 0)
        calls.append(n)

    assert 0.5 * 51.3 < estimate.measure_seconds(step, 512) < 2 * 51.3


def test_the_estimate_computes_few_images_of_a_slow_network(
    clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ViewsDataModule("patterns", train_images=400, test_images=40, batch_size=100)
    data.setup()
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
    images: list[int] = []

    def make_slow(function):
        def slow(*args, **kwargs):
            n = len(args[0]) if function.__name__ == "make_views" else len(args[1])
            images.append(n)
            clock.now += 0.5 * n
            return function(*args, **kwargs)

        return slow

    monkeypatch.setattr(data, "make_views", make_slow(data.make_views))
    monkeypatch.setattr(estimate, "extract_features", make_slow(estimate.extract_features))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    seconds = estimate.estimate_seconds(model, data, bf16=False, epochs=10, knn_every=5)
    assert seconds == pytest.approx(
        0.5 * (10 * 400 + 3 * 440)
    )  # kNN: untrained, and after epochs 5 and 10
    assert sum(images) <= 40
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_durations_are_given_in_the_largest_unit_that_fits_twice() -> None:
    seconds = (0.2, 30, 119, 121, 7000, 7300, 200_000)
    expected = [
        "about 1 s",
        "about 30 s",
        "about 119 s",
        "about 2 minutes",
        "about 117 minutes",
        "about 2 hours",
    ]
    assert [format_duration(s) for s in seconds] == [*expected, "about 2 days"]


def choose_sizes(images: int, sizes: list[int]) -> list[int]:
    """Return the compiled sizes of a run with views of `sizes[epoch]` pixels in each epoch."""
    data: Any = SimpleNamespace(train=range(images), views=2, view_size=lambda epoch: sizes[epoch])
    return estimate.choose_compiled_sizes(data, len(sizes))


def test_augmentation_is_compiled_for_the_sizes_that_gain_by_it() -> None:
    assert choose_sizes(50_000, [32] * 800) == [32]
    assert choose_sizes(50_000, [16] * 15 + [24] * 4 + [32]) == [16]
    assert choose_sizes(5_000, [224] * 100) == [224]


def test_short_runs_compile_nothing() -> None:
    assert choose_sizes(50_000, [32] * 5) == []
    assert choose_sizes(1_000, [32] * 100) == []


def test_compiled_augmentation_makes_the_estimate_shorter(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ViewsDataModule("patterns", train_images=400, test_images=40, batch_size=100)
    data.setup()
    make_views = data.make_views

    def make_slowly(indices: Tensor, epoch: int) -> list[Tensor]:
        clock.now += 0.5 * len(indices)
        return make_views(indices, epoch)

    monkeypatch.setattr(data, "make_views", make_slowly)
    model = SimSiam("resnet10", width=4, out_dim=32, h_dim=16)
    eager_seconds = 0.5 * 400 * 10
    expected = eager_seconds * (1 - estimate.SAVED_PART) + estimate.COMPILE_SECONDS
    seconds = estimate.estimate_seconds(model, data, False, 10, 0, compiled_sizes=[32])
    assert seconds == pytest.approx(expected)
