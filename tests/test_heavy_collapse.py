"""The benchmark of heavy views that hardly show the image."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import heavy_collapse
from tests.benchmarks.heavy_collapse import AXIS_PROBABILITY, KINDS, ShiftedHeavyViews


def make_data(heavy_only: bool) -> ShiftedHeavyViews:
    data = ShiftedHeavyViews(
        "patterns",
        train_images=400,
        test_images=10,
        batch_size=400,
        heavy_views=2,
        heavy_only=heavy_only,
    )
    data.setup()
    return data


def test_a_part_of_the_heavy_views_is_black_but_for_two_rows_or_columns() -> None:
    data = make_data(heavy_only=False)
    views = data.make_views(torch.arange(400), 0)
    assert len(views) == 4
    black = -data.mean / data.std
    for view, may_be_shifted in zip(views, [False, False, True, True], strict=True):
        is_black = torch.isclose(view, black[:, None, None]).all(dim=1)  # (B, S, S)
        without_rows = is_black[:, :30].flatten(1).all(dim=1)
        without_columns = is_black[:, :, :30].flatten(1).all(dim=1)
        shifted = (without_rows | without_columns).float().mean().item()
        expected = 1 - (1 - AXIS_PROBABILITY) ** 2 if may_be_shifted else 0
        assert shifted == pytest.approx(expected, abs=0.08)  # three and a half standard errors


def test_heavy_views_can_take_the_place_of_the_standard_views() -> None:
    indices = torch.arange(400)
    heavy = make_data(heavy_only=False).make_views(indices, 0)[2:]
    assert all(map(torch.equal, make_data(heavy_only=True).make_views(indices, 0), heavy))


def test_finished_runs_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []

    def train(kind: Any, rate: float, seed: int, args: Any) -> dict[str, Any]:
        trained.append(seed)
        return {"untrained": 20.0, "knn": 30.0, "rankme": 9.0, "z_std": 1.0, "warnings": []}

    monkeypatch.setattr(heavy_collapse, "train", train)
    flags = ["--results", str(tmp_path / "r.jsonl"), "--rates", "0.5", "--seeds"]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", ["heavy_collapse.py", *flags, *seeds])
        heavy_collapse.main()
    assert trained == [0] * len(KINDS) + [1] * len(KINDS)
    assert "+10.00 +- 0.00" in capsys.readouterr().out
