"""utils/schedule.py: bolts' class against the closed form of its docstring."""

import math

import pytest
import torch

from utils.schedule import LinearWarmupCosineAnnealingLR, warmup_cosine


def rates(warmup: int, total: int, **group: bool) -> list[float]:
    """Return the rate before each step, and after the last one."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], **group}], lr=0.06)
    schedule = warmup_cosine(optimizer, warmup, total)
    all_rates = []
    for _ in range(total):
        all_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    all_rates.append(optimizer.param_groups[0]["lr"])
    return all_rates


@pytest.mark.parametrize(
    ("warmup", "total"), [(0, 50), (1, 50), (2, 50), (10, 50), (49, 50), (970, 77600 // 8)]
)
def test_rate_of_each_step_is_the_closed_form(warmup: int, total: int) -> None:
    def closed_form(s: int) -> float:
        if s < warmup:
            return 0.06 * s / max(1, warmup - 1)
        return 0.06 / 2 * (1 + math.cos(math.pi * (s - warmup) / (total - warmup)))

    expected = [closed_form(s) for s in range(total + 1)]
    assert rates(warmup, total) == pytest.approx(expected, abs=1e-12)


def test_the_rate_is_zero_in_the_first_step_only_and_at_the_end() -> None:
    all_rates = rates(10, 100)
    assert all_rates[-1] == pytest.approx(0, abs=1e-12)
    assert all_rates[0] == 0
    assert all_rates[1] > 0.005


def test_a_constant_group_keeps_its_rate() -> None:
    assert set(rates(10, 50, constant_lr=True)) == {0.06}


def test_the_class_is_lightning_bolts_own() -> None:
    assert LinearWarmupCosineAnnealingLR.__name__ == "LinearWarmupCosineAnnealingLR"
    assert "pl_bolts" in LinearWarmupCosineAnnealingLR.__init__.__code__.co_filename


@pytest.mark.parametrize(("warmup", "total"), [(50, 50), (60, 50), (-1, 50)])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        rates(warmup, total)
