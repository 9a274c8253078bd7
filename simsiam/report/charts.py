"""The lists of all charts on the page. Add a chart to CURVES or to FEATURE_CHARTS.

CURVES are metrics by epoch, from metrics.jsonl. FEATURE_CHARTS show what the network has learned,
from a checkpoint. The page shows all charts of both lists. A new report deletes the PNG files of an
earlier one; `is_figure` takes their names from the same lists.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simsiam.report.figures import Chart, render_chart
from simsiam.report.groups import Group
from simsiam.report.plots import draw_bars, draw_curves, draw_map, draw_matrix
from simsiam.report.summary import describe_test_images
from simsiam.report.thumbnails import Thumbnails, draw_thumbnails
from utils.console import MANY_CLASSES, format_count

# With many classes, only the best and the worst ones get a bar: this number of each.
EXTREMES = MANY_CLASSES // 2


class CurveChart(NamedTuple):
    """A metric by epoch.

    Attributes:
        label: text next to the y axis.
        from_zero: whether the y axis begins at zero.
        explanation: the end of the caption. {images} stands for `describe_test_images`.
    """

    label: str
    from_zero: bool
    explanation: str


# The keys are columns of metrics.jsonl and names of the PNG files.
CURVES = {
    "kNN_accuracy": CurveChart(
        "kNN accuracy (%)",
        from_zero=False,
        explanation="top-1 by weighted kNN on {images}. Epoch 0 is before training.",
    ),
    "train_loss": CurveChart(
        "loss (negative cosine)",
        from_zero=False,
        explanation="mean over the steps of the epoch.",
    ),
    "z_std": CurveChart(
        "z_std",
        from_zero=True,
        explanation="spread of the projections, mean over the steps of the epoch. "
        "Near 1 is healthy, 0 is collapsed.",
    ),
    "rankme": CurveChart(
        "effective rank",
        from_zero=True,
        explanation="RankMe of the backbone's features on train images. It needs no labels.",
    ),
    "images_per_second": CurveChart(
        "images/s",
        from_zero=True,
        explanation="train images per second of training; kNN and checkpoints do not count.",
    ),
}


def render_curves(groups: Sequence[Group], folder: Path) -> list[dict[str, str]]:
    """Draw the curves that have values in any group, and save each as a PNG in `folder`.

    Returns:
        For each curve, the dictionary that `render_chart` returns.
    """
    rendered: list[dict[str, str]] = []
    images = describe_test_images([run for group in groups for run in group.runs])
    for column, curve_chart in CURVES.items():
        measured_groups: list[Group] = []
        ends: list[str] = []
        for group in groups:
            values = group.curve(column).means
            if values:
                measured_groups.append(group)
                ends.append(f"{group.mark or group.label} ends at {values[-1]:.4g}")
        if not measured_groups:
            continue
        label = curve_chart.label
        explanation = curve_chart.explanation.format(images=images)
        chart = Chart(
            draw=partial(draw_curves, measured_groups, column, label, curve_chart.from_zero),
            caption=f"{label} by epoch: {explanation}",
            alt=f"{label} by epoch: {', '.join(ends)}.",
        )
        rendered.append(render_chart(chart, folder / f"{column}.png"))
    return rendered


class FeatureAnalysis(NamedTuple):
    """The results of a checkpoint that the feature charts show.

    Attributes:
        class_names: of all C classes.
        image_kind: name of the images on the map, such as "test images".
        points: (N, 2), the images' features reduced to the plane.
        labels: (N,), the images' classes; -1 for an image without a label.
        labelled: whether all images on the map have labels.
        accuracies: (C,) percent of each class, nan for a class without images; None if there are
            too few labels.
        confusion: (C, C) counts of images, by true class (row) and predicted class (column);
            None if there are too few labels, or more than MAX_CONFUSION_CLASSES classes.
        classified: name of the images in `accuracies` and `confusion`.
        classifier: name of the classifier that predicted the classes.
        thumbnails: what the map shows in place of the points, if not all images have labels.
    """

    class_names: list[str]
    image_kind: str
    points: np.ndarray
    labels: np.ndarray
    labelled: bool
    accuracies: np.ndarray | None
    confusion: np.ndarray | None
    classified: str
    classifier: str
    thumbnails: Thumbnails | None = None


def chart_class_accuracies(analysis: FeatureAnalysis) -> Chart | None:
    """Return a chart of the accuracy of each class, or of the best and the worst classes."""
    if analysis.accuracies is None:
        return None
    names = analysis.class_names
    accuracies = analysis.accuracies

    # The classes from the best to the worst, without those that have no images.
    from_best = [int(i) for i in np.argsort(-accuracies, kind="stable") if accuracies[i] >= 0]

    title = "Accuracy of each class"
    shown = from_best
    if len(from_best) > MANY_CLASSES:
        title += f", the {EXTREMES} best and the {EXTREMES} worst"
        shown = from_best[:EXTREMES] + from_best[-EXTREMES:]
    shown_names = [names[i] for i in shown]
    shown_accuracies = [float(accuracies[i]) for i in shown]
    listing = ", ".join(f"{names[i]} {accuracies[i]:.1f}" for i in shown)
    return Chart(
        draw=partial(draw_bars, shown_names, shown_accuracies, analysis.classified),
        caption=f"{title}: {analysis.classifier}.",
        alt=f"{title} in %: {listing}",
    )


def chart_confusion(analysis: FeatureAnalysis) -> Chart | None:
    """Return a chart of the confusion matrix, whose caption names the most frequent mistake."""
    if analysis.confusion is None:
        return None
    names = analysis.class_names
    percentages = confusion_percentages(analysis.confusion)
    mistakes = percentages - np.diag(percentages.diagonal())
    true, predicted = np.unravel_index(mistakes.argmax(), mistakes.shape)
    if mistakes[true, predicted] > 0:
        mistake = (
            f"most often {names[true]} is taken for {names[predicted]} "
            f"({mistakes[true, predicted]:.1f} %)"
        )
    else:
        mistake = "no image is taken for one of another class"
    shown_names = names if len(names) <= MANY_CLASSES else []
    return Chart(
        draw=partial(draw_matrix, percentages, shown_names),
        caption=f"Confusion, in % of each true class: {mistake}.",
    )


def confusion_percentages(confusion: np.ndarray) -> np.ndarray:
    """Return counts (C, C) as percentages of their row; a class without images has zeros."""
    image_counts = confusion.sum(axis=1, keepdims=True)
    return 100 * confusion / np.maximum(image_counts, 1)


def chart_map(analysis: FeatureAnalysis) -> Chart:
    """Return a chart of the features in the plane: of points, or of thumbnails without labels."""
    total = f"{len(analysis.points):,} {analysis.image_kind}"
    if analysis.thumbnails is not None:
        shown = len(analysis.thumbnails.images)
        return Chart(
            draw=partial(draw_thumbnails, analysis.thumbnails),
            caption=(
                f"Map of the features of {total} by PCA. Each place shows one of the images there, "
                f"{shown:,} in all."
            ),
        )
    names = analysis.class_names
    shown_names = names if analysis.labelled and len(names) <= MANY_CLASSES else []
    return Chart(
        draw=partial(draw_map, analysis.points, analysis.labels, shown_names),
        caption=f"Map of the features of {total} by PCA, {format_count(len(names), 'class')}.",
    )


# The keys are names of the PNG files. A function returns None if its chart cannot be drawn.
FEATURE_CHARTS: dict[str, Callable[[FeatureAnalysis], Chart | None]] = {
    "classes": chart_class_accuracies,
    "confusion": chart_confusion,
    "map": chart_map,
}
FEATURE_PICTURES = ("neighbours", "views")  # names of the PNG files that are not charts


def render_feature_charts(analysis: FeatureAnalysis, stem: str) -> list[dict[str, str]]:
    """Draw the charts of a checkpoint, and save each as {stem}NAME.png.

    Returns:
        For each chart, the dictionary that `render_chart` returns.
    """
    rendered: list[dict[str, str]] = []
    for name, make_chart in FEATURE_CHARTS.items():
        chart = make_chart(analysis)
        if chart is not None:
            rendered.append(render_chart(chart, Path(f"{stem}{name}.png")))
    return rendered


def file_stem(folder: Path, group: Group) -> str:
    """Return the beginning of the paths of a group's PNG files, such as "figures/A_"."""
    if group.mark:
        return f"{folder}/{group.mark}_"
    return f"{folder}/"


def is_figure(file: Path) -> bool:
    """Return whether a file has the name of a PNG file of a report, so that it may be deleted."""
    curves = "|".join(CURVES)
    pictures = "|".join([*FEATURE_CHARTS, *FEATURE_PICTURES])
    pattern = rf"({curves}|([A-Z]+[0-9]*_)?({pictures}))\.png"
    return re.fullmatch(pattern, file.name) is not None
