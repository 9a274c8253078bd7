"""Charts that everyone can read, and the map of the features."""

import itertools
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from simsiam.report import figures
from simsiam.report.analysis import project_features
from simsiam.report.records import group_runs, read_run
from tests.report.conftest import rows


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_text_and_lines_stand_out_from_the_paper(theme: figures.Theme) -> None:
    """By WCAG 2: text 4.5 to 1, lines 3 to 1."""
    needed = dict.fromkeys(theme.lines, 3.0) | {theme.ink: 4.5, theme.muted: 4.5}
    for colour, contrast in needed.items():
        low, high = sorted((luminance(colour), luminance(theme.paper)))
        assert (high + 0.05) / (low + 0.05) >= contrast, colour


def test_no_two_lines_look_alike() -> None:
    styles = [tuple(figures.line_style(index).values()) for index in range(140)]
    assert len(set(styles)) == 140
    for one, next_ in itertools.pairwise(styles):
        assert all(a != b for a, b in zip(one, next_, strict=True))  # colour, dash and marker


def test_a_band_is_a_deviation_to_each_side_of_the_mean(runs: Path) -> None:
    (together,) = group_runs([read_run(runs / name) for name in "abc"])
    epochs, middle, deviation = together.curve("train_loss")
    columns = list(zip(*([row["train_loss"] for row in rows(runs / name)] for name in "abc"), strict=True))
    assert epochs == [1, 2, 3] and deviation == [stdev(column) for column in columns]
    assert middle == [mean(column) for column in columns]
    drawn = figures.draw_curves([(together, epochs, middle, deviation)], "epoch", "loss").axes[0]
    corners = {(x, round(y, 9)) for x, y in drawn.collections[0].get_paths()[0].vertices.tolist()}
    edges = {(e, round(m + s * d, 9)) for e, m, d in zip(epochs, middle, deviation, strict=True) for s in (-1, 1)}
    assert edges <= corners and drawn.lines[0].get_ydata().tolist() == middle


@pytest.mark.parametrize(
    ("places", "moved"),
    [([], []), ([1, 5], [1, 5]), ([1, 1], [0.5, 1.5]), ([3, 1, 1.5], [3, 0.75, 1.75]), ([2, 2, 2], [1, 2, 3])],
)
def test_labels_move_apart_and_no_further(places: list[float], moved: list[float]) -> None:
    assert figures.space_out(places, 1) == moved
    assert figures.space_out([9, 9.5, 2], 1, low=0, high=9.5) == [8.5, 9.5, 2]
    assert figures.space_out([0, 5], 1, 1, 9) == [1, 5]


def test_without_scikit_learn_the_map_is_by_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(8, 0, -1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.manifold", None)
        points, method = project_features(features, "run")
    x = (features - features.mean(dim=0)).double().numpy()
    theirs = x @ np.linalg.svd(x)[2][:2].T
    assert method == "PCA" and np.allclose(np.abs(points), np.abs(theirs), atol=1e-3)  # the signs are anyone's
    assert project_features(features, "run")[1] == "t-SNE"
    for few in (torch.ones(50, 8), torch.ones(1, 8)):  # collapsed; alone
        points, method = project_features(few, "run")
        assert method == "PCA" and points.shape == (len(few), 2) and np.isfinite(points).all()
