"""Draw the charts with matplotlib, in the colours of its current style."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simsiam.report.figures import (
    choose_colour,
    choose_marker,
    line_style,
    new_figure,
    shorten_label,
)
from simsiam.report.groups import Group

# Heights in inches.
CURVE_HEIGHT = 3.1
LEGEND_LINE_HEIGHT = 0.2
BAR_HEIGHT = 0.24
BAR_AXIS_HEIGHT = 0.7
SQUARE_HEIGHT = 4.7  # of the matrix and the map, which are almost square

MARKERS_PER_LINE = 8  # approximately
LEGEND_CHARACTERS = 60  # in a line of a legend, as wide as the figure
# In the matrix, cells above this fraction of the highest value have a dark tint and white text.
WHITE_TEXT_FRACTION = 0.85


def draw_curves(groups: Sequence[Group], column: str, label: str, from_zero: bool) -> Figure:
    """Draw a metric by epoch: a line for each group, and a band if the line is a mean.

    Args:
        groups: groups that have values of the metric.
        column: the metric's name in metrics.jsonl.
        label: text next to the y axis.
        from_zero: whether the y axis begins at zero.
    """
    has_legend = len(groups) > 1
    labels: list[str] = []
    for group in groups:
        text = f"{group.mark} {group.label}"
        labels.append(fill(text, LEGEND_CHARACTERS, break_on_hyphens=False))
    height = CURVE_HEIGHT
    if has_legend:
        height += LEGEND_LINE_HEIGHT * len("\n".join(labels).splitlines())
    figure, axes = new_figure(height)

    for group, group_label in zip(groups, labels, strict=True):
        curve = group.curve(column)
        style = line_style(group.index)
        # The markers of three successive groups are shifted by a third of a step each. So markers
        # of different groups stay visible where their lines coincide.
        marker_step = max(1, len(curve.epochs) // MARKERS_PER_LINE)
        first_marker = group.index * marker_step // 3 % marker_step
        axes.plot(
            curve.epochs,
            curve.means,
            label=group_label,
            markevery=(first_marker, marker_step),
            **style,
        )
        if curve.deviations is not None:
            # The band is one standard deviation to each side.
            means = np.array(curve.means)
            lower = means - curve.deviations
            upper = means + curve.deviations
            axes.fill_between(
                curve.epochs, lower, upper, color=style["color"], alpha=0.2, linewidth=0
            )

    axes.grid(axis="y")
    axes.set(xlabel="epoch", ylabel=label, ymargin=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if from_zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if has_legend:
        figure.legend(loc="outside lower left", handlelength=3.5)
    return figure


def draw_bars(names: Sequence[str], accuracies: Sequence[float], image_kind: str) -> Figure:
    """Draw the accuracies of classes, in percent, as horizontal bars from top to bottom.

    Args:
        image_kind: name of the images, such as "test images".
    """
    labels = [shorten_label(name) for name in names]
    figure, axes = new_figure(BAR_AXIS_HEIGHT + BAR_HEIGHT * len(labels))
    bars = axes.barh(range(len(labels)), accuracies, 0.7, tick_label=labels)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    # With the greater limit of y first, the first bar is at the top.
    axes.set(xlim=(0, 108), ylim=(len(labels) - 0.4, -0.6), xticks=range(0, 101, 20))
    axes.set_xlabel(f"{image_kind} classified correctly (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def draw_matrix(percentages: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix as tints, and with `names` also as numbers.

    Args:
        percentages: (C, C). Each row belongs to a true class, and has the percentage of its images
            for each predicted class.
        names: of the C classes; empty if there are too many to write them.
    """
    labels = [shorten_label(name) for name in names]
    figure, axes = new_figure(SQUARE_HEIGHT)
    highest = max(1.0, percentages.max())
    tint = LinearSegmentedColormap.from_list("tint", ["#0072b200", "#0072b2"])
    axes.imshow(percentages, tint, vmin=0, vmax=highest, interpolation="none", aspect="auto")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    if labels:
        for (row, column), percentage in np.ndenumerate(percentages):
            if percentage > WHITE_TEXT_FRACTION * highest:
                colour = "white"
            else:
                colour = matplotlib.rcParams["text.color"]
            axes.text(
                float(column),
                float(row),
                f"{percentage:.0f}",
                ha="center",
                va="center",
                size=8,
                color=colour,
            )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def draw_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw points in the plane, with a colour and a marker for each class.

    Args:
        points: (N, 2).
        labels: (N,), the class of each point.
        names: of the classes, for the legend; empty for a map without legend.
    """
    figure, axes = new_figure(SQUARE_HEIGHT)
    classes: list[int] = np.unique(labels).tolist()
    for label in classes:
        x, y = points[labels == label].T
        axes.scatter(
            x,
            y,
            s=12,
            linewidths=0,
            alpha=0.7,
            rasterized=True,
            color=choose_colour(label),
            marker=choose_marker(label),
            label=shorten_label(names[label]) if names else None,
        )
    if names:
        figure.legend(loc="outside lower center", ncols=4, markerscale=1.5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure
