"""The charts can be read by everyone, and show the right numbers."""

import base64
import itertools
import warnings
from pathlib import Path
from statistics import mean, stdev
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from simsiam.report import figures, plots
from simsiam.report.analysis import project_features
from simsiam.report.charts import FEATURE_CHARTS, FeatureAnalysis, render_feature_charts
from simsiam.report.groups import MAX_DESCRIPTION, describe_settings, group_runs
from simsiam.report.records import read_run, replace_unprintable
from tests.report.conftest import HOSTILE, rows


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_text_and_lines_have_enough_contrast(theme: dict[str, str]) -> None:
    """WCAG 2 asks for 4.5 to 1 for text, and 3 to 1 for lines."""
    for name in theme.keys() - {"paper", "rule"}:
        low, high = sorted((luminance(theme[name]), luminance(theme["paper"])))
        assert (high + 0.05) / (low + 0.05) >= (4.5 if name in ("ink", "muted") else 3.0), name


def test_no_two_lines_look_alike() -> None:
    styles = [tuple(figures.line_style(index).values()) for index in range(140)]
    assert len(set(styles)) == 140
    for one, next_ in itertools.pairwise(styles):
        assert all(a != b for a, b in zip(one, next_, strict=True))  # colour, dash and marker


def test_description_has_all_values_of_a_setting() -> None:
    settings = {"epochs": 20, "image_schedule": ["16:15", "24:4"], "stop_grad": False}
    assert describe_settings(settings) == "epochs 20, image-schedule 16:15 24:4, no-stop-grad"


def test_band_is_one_deviation_to_each_side_of_the_mean(runs: Path) -> None:
    (together,) = group_runs([read_run(runs / name) for name in "abc"])
    epochs, middle, deviation = together.curve("train_loss")
    columns = list(
        zip(*([row["train_loss"] for row in rows(runs / name)] for name in "abc"), strict=True)
    )
    assert epochs == [1, 2, 3] and deviation == [stdev(column) for column in columns]
    assert middle == [mean(column) for column in columns]
    drawn = plots.draw_curves([together], "train_loss", "loss", False).axes[0]
    corners = {(x, round(y, 9)) for x, y in drawn.collections[0].get_paths()[0].vertices.tolist()}
    edges = {
        (e, round(m + s * d, 9))
        for e, m, d in zip(epochs, middle, deviation, strict=True)
        for s in (-1, 1)
    }
    assert edges <= corners and drawn.lines[0].get_ydata().tolist() == middle


def test_labels_of_classes_are_short_and_none_is_hidden() -> None:
    names = ["n" * 200, "_background", "cat"]
    labels = np.arange(3)
    figure = plots.draw_map(np.zeros((3, 2)), labels, names)
    legend = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert legend == ["n" * 45 + "...", "_background", "cat"]
    for chart in (plots.draw_bars(names, [1, 2, 3], "images"), plots.draw_matrix(np.eye(3), names)):
        ticks = [tick.get_text().strip() for tick in chart.axes[0].get_yticklabels()]
        assert ticks == legend


def test_hostile_names_stay_text_in_charts(tmp_path: Path) -> None:
    name = replace_unprintable(HOSTILE)
    analysis = make_analysis(class_names=[name, "b"], confusion=np.ones((2, 2), dtype=int))
    charts = render_feature_charts(analysis, f"{tmp_path}/")
    assert len(charts) == len(FEATURE_CHARTS)
    for chart in charts:
        for theme in figures.THEMES:
            svg = ElementTree.fromstring(base64.b64decode(chart[theme].split(",")[1]))
            assert name in "".join(svg.itertext())
            assert not [e for e in svg.iter() if e.tag.split("}")[-1] == "script"]


def make_analysis(class_names: list[str], confusion: np.ndarray | None) -> FeatureAnalysis:
    """Return the analysis of two images, one of each of the first two classes."""
    accuracies = None if confusion is None else 100 * confusion.diagonal() / confusion.sum(axis=1)
    return FeatureAnalysis(
        class_names=class_names,
        image_kind="test images",
        points=np.eye(2),
        labels=np.arange(2),
        labelled=True,
        accuracies=accuracies,
        confusion=confusion,
        classified="test images",
        classifier="kNN",
    )


def test_charts_of_classes_need_labels(tmp_path: Path) -> None:
    render_feature_charts(make_analysis(["a", "b"], None), f"{tmp_path}/")
    names = {file.name for file in tmp_path.iterdir()}
    assert "map.png" in names
    assert names.isdisjoint({"classes.png", "confusion.png"})


def test_without_a_confusion_matrix_the_classes_have_accuracies(tmp_path: Path) -> None:
    """A run of thousands of classes has none, which would take gigabytes."""
    analysis = make_analysis(["a", "b"], np.eye(2))._replace(confusion=None)
    render_feature_charts(analysis, f"{tmp_path}/")
    names = {file.name for file in tmp_path.iterdir()}
    assert "classes.png" in names and "confusion.png" not in names


def test_a_class_without_images_has_no_bar() -> None:
    analysis = make_analysis(["a", "b"], np.eye(2))._replace(accuracies=np.array([50, np.nan]))
    chart = FEATURE_CHARTS["classes"](analysis)
    assert chart is not None
    assert [tick.get_text() for tick in chart.draw().axes[0].get_yticklabels()] == ["a"]


@pytest.mark.parametrize(("classes", "bars"), [(20, 20), (21, 20), (100, 20)])
def test_bars_show_the_best_and_worst_of_many_classes(classes: int, bars: int) -> None:
    names = [f"class {i}" for i in range(classes)]
    right = np.arange(classes)  # of 100 test images of each class
    confusion = np.diag(right)
    confusion[:, 0] += 100 - right
    chart = FEATURE_CHARTS["classes"](make_analysis(names, confusion))
    assert chart is not None
    ticks = [tick.get_text() for tick in chart.draw().axes[0].get_yticklabels()]
    assert len(ticks) == bars == len(set(ticks))
    assert ("the 10 best and the 10 worst" in chart.caption) == (classes > bars)
    assert "most often" in FEATURE_CHARTS["confusion"](make_analysis(names, confusion)).caption


def test_confusion_of_a_perfect_classifier_names_no_mistake() -> None:
    chart = FEATURE_CHARTS["confusion"](make_analysis(["a", "b"], np.diag([5, 7])))
    assert chart is not None
    assert "most often" not in chart.caption and "no image" in chart.caption


def test_curves_keep_their_height_below_a_long_legend(runs: Path) -> None:
    (group,) = group_runs([read_run(runs / "a")])
    groups = [group._replace(index=i, label=f"{i} " + "long label " * 8) for i in range(20)]
    figure = plots.draw_curves(groups, "train_loss", "loss", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a layout that has no room
        figure.draw_without_rendering()
    height = figure.axes[0].get_window_extent().height / figure.dpi
    assert height > 0.7 * plots.CURVE_HEIGHT


def test_legend_is_no_wider_than_the_figure(runs: Path, tmp_path: Path) -> None:
    (group,) = group_runs([read_run(runs / "a")])
    label = "batch-size 512, base-learning-rate 0.0455, weight-decay 0.0014, warmup-epochs 0.44, m"
    groups = [group._replace(index=i, mark="ABC"[i], label=label) for i in range(3)]

    def draw() -> Figure:
        figure = plots.draw_curves(groups, "train_loss", "loss", False)
        figure.draw_without_rendering()
        widths.append(figure.legends[0].get_window_extent().x1 / figure.bbox.x1)
        return figure

    widths: list[float] = []
    figures.render_chart(figures.Chart(draw, "caption"), tmp_path / "chart.png")
    assert max(widths) <= 1


def test_description_is_cut_between_settings() -> None:
    settings = {"batch_size": 100, "epochs": 2}
    assert describe_settings(settings) == "batch-size 100, epochs 2"
    many = {f"name{i}": 1000 + i for i in range(20)}
    cut = describe_settings(many)
    assert len(cut) <= MAX_DESCRIPTION and cut.endswith("1006, ...")
    assert describe_settings({"data_dir": "x" * 200}).endswith("xxx...")


def test_map_shows_the_principal_components() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(
        8, 0, -1
    )
    points = project_features(features)
    x = (features - features.mean(dim=0)).double().numpy()
    theirs = x @ np.linalg.svd(x)[2][:2].T
    assert np.allclose(np.abs(points), np.abs(theirs), atol=1e-3)  # signs are arbitrary
    for few in (torch.ones(50, 8), torch.ones(1, 8)):  # collapsed, and a single image
        points = project_features(few)
        assert points.shape == (len(few), 2) and np.isfinite(points).all()
