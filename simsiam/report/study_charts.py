"""The charts of a page about a search. Each trial is a line or a point."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from simsiam.report.figures import WIDTH, Chart, new_figure, render_chart
from simsiam.report.study import OUTCOMES, StudyRecord, TrialRecord, score_of

CURVE_HEIGHT = 3.8
ROW_HEIGHT = 0.55  # of a setting
LEGEND_HEIGHT = 1.1
BAR_HEIGHT = 0.3
SCATTER_HEIGHT = 1.6  # of a row of two

# How trials are drawn, by their outcome: colour, dash, width, marker. Outcomes differ in more than
# the colour, for people who cannot see hues.
STYLES: dict[str, dict[str, Any]] = {
    "best": {"color": "C2", "linestyle": "-", "linewidth": 2.6, "marker": "o", "zorder": 5},
    "start": {"color": "C4", "linestyle": "-", "linewidth": 2.0, "marker": "s", "zorder": 4},
    "finished": {"color": "C0", "linestyle": "-", "linewidth": 1.1, "marker": "o", "zorder": 3},
    "stopped": {"color": "C0", "linestyle": ":", "linewidth": 0.9, "marker": ".", "zorder": 2},
    "collapsed": {"color": "C1", "linestyle": "--", "linewidth": 1.3, "marker": "X", "zorder": 3},
}
NAMES = {
    "best": "the best trial",
    "start": "your own settings",
    "finished": "trained to the end",
    "stopped": "not trained to the end",
    "collapsed": "collapsed or diverged",
}


def kind_of(trial: TrialRecord, study: StudyRecord) -> str:
    """Return the key of STYLES for a trial."""
    if trial is study.best:
        return "best"
    if trial.is_start:
        return "start"
    if trial.outcome in ("collapsed", "diverged"):
        return "collapsed"
    if trial.outcome == "finished":
        return "finished"
    return "stopped"


def add_legend(figure: Figure, study: StudyRecord) -> None:
    kinds = [kind_of(trial, study) for trial in study.trials]
    lines: list[Line2D] = []
    for kind, style in STYLES.items():
        if kind in kinds:
            label = f"{NAMES[kind]} ({kinds.count(kind)})"
            lines.append(Line2D([], [], label=label, markersize=5, **style))
    figure.legend(handles=lines, loc="outside lower left", ncols=2, handlelength=3.2)


def draw_scores(study: StudyRecord) -> Figure:
    """Draw the score of each trial by epoch."""
    figure, axes = new_figure(CURVE_HEIGHT + LEGEND_HEIGHT / 2)
    for trial in study.trials:
        if trial.curve:
            epochs, scores = zip(*trial.curve, strict=True)
            axes.plot(epochs, scores, markersize=4, **STYLES[kind_of(trial, study)])
    if study.rung < study.trial_epochs:
        axes.axvline(study.rung, color="C3", linestyle="--", linewidth=0.8, zorder=1)
    axes.grid(axis="y")
    axes.set(xlabel="epoch", ylabel=study.unit)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    add_legend(figure, study)
    return figure


class Scale:
    """Where the values of a setting are on its axis, from 0 to 1, and how they are written."""

    def __init__(self, values: Sequence[Any], logarithmic: bool) -> None:
        self.is_number = all(isinstance(value, int | float) for value in values)
        self.logarithmic = logarithmic
        key = None if self.is_number else str
        self.values = sorted(set(values), key=key)

    def position(self, value: Any) -> float:
        if len(self.values) == 1:
            return 0.5
        if not self.is_number:
            return self.values.index(value) / (len(self.values) - 1)
        low = self.transform(self.values[0])
        high = self.transform(self.values[-1])
        return (self.transform(value) - low) / (high - low)

    def transform(self, value: float) -> float:
        return math.log(value) if self.logarithmic else float(value)

    def ends(self) -> tuple[str, str]:
        first, last = self.values[0], self.values[-1]
        if self.is_number:
            return f"{first:.2g}", f"{last:.3g}"
        return str(first), str(last)


def draw_parallel(study: StudyRecord) -> Figure:
    """Draw a line for each trial, through its value on the axis of each setting, to its score."""
    shown = [trial for trial in study.trials if trial.score is not None]
    rows = [*study.settings, study.unit]
    figure, axes = new_figure(ROW_HEIGHT * len(rows) + LEGEND_HEIGHT)
    columns: dict[str, list[Any]] = {}
    for name in study.settings:
        columns[name] = [trial.values.get(name) for trial in shown]
    columns[study.unit] = [trial.score for trial in shown]

    points: list[list[float]] = [[] for _ in shown]
    for row, name in enumerate(rows):
        scale = Scale(columns[name], name in study.logarithmic)
        for trial_points, value in zip(points, columns[name], strict=True):
            trial_points.append(scale.position(value))
        low, high = scale.ends()
        axes.plot([0, 1], [row, row], color="grey", linewidth=0.7, zorder=0)
        axes.text(-0.06, row, name, ha="right", va="center", size=9)
        axes.text(0.0, row + 0.13, low, ha="center", va="top", size=7.5)
        axes.text(1.0, row + 0.13, high, ha="center", va="top", size=7.5)
    for trial, trial_points in zip(shown, points, strict=True):
        axes.plot(trial_points, range(len(rows)), markersize=4, **STYLES[kind_of(trial, study)])
    # The names of the settings are to the left of the axes.
    axes.set(xlim=(-0.6, 1.06), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    add_legend(figure, study)
    return figure


def draw_values(study: StudyRecord) -> Figure:
    """Draw the score of each trial by the value of each setting, in a small chart each."""
    names = list(study.settings)
    num_rows = math.ceil(len(names) / 2)
    figure = Figure((WIDTH, SCATTER_HEIGHT * num_rows + LEGEND_HEIGHT / 2), layout="constrained")
    grid: Any = figure.subplots(num_rows, 2, sharey=True, squeeze=False)
    # With an odd number of settings, one chart is left over. It is hidden below.
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_setting(axes, study, name)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(study.unit, size=9)
    add_legend(figure, study)
    return figure


def _draw_setting(axes: Axes, study: StudyRecord, name: str) -> None:
    trials = [trial for trial in study.trials if name in trial.values and trial.score is not None]
    if name in study.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        # matplotlib would write powers of ten as formulas, which are off in the charts of a page.
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for trial in trials:
        style = STYLES[kind_of(trial, study)]
        axes.plot(
            trial.values[name],
            score_of(trial),
            color=style["color"],
            marker=style["marker"],
            zorder=style["zorder"],
            markersize=5,
        )
    axes.grid(axis="y")
    axes.set_xlabel(name, size=9)


def draw_importances(importances: Mapping[str, float]) -> Figure:
    """Draw the importance of each setting as a horizontal bar, in percent."""
    figure, axes = new_figure(0.8 + BAR_HEIGHT * len(importances))
    percentages = [100 * value for value in importances.values()]
    bars = axes.barh(range(len(importances)), percentages, 0.7, tick_label=list(importances))
    axes.bar_label(bars, fmt="%.0f", padding=3)
    highest = max(percentages, default=0.0)
    axes.set(xlim=(0, 1.15 * max(1.0, highest)), ylim=(len(importances) - 0.4, -0.6))
    axes.set_xlabel("importance (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def render_study(
    study: StudyRecord, importances: Mapping[str, float], folder: Path
) -> dict[str, dict[str, str]]:
    """Draw the charts that have something to show, and save each as a PNG in `folder`.

    Returns:
        The dictionaries that `render_chart` returns, by the name of the chart.
    """
    charts: dict[str, Chart] = {}
    scored = [trial for trial in study.trials if trial.score is not None]
    if scored:
        ranking = sorted(scored, key=score_of, reverse=True)
        listing = ", ".join(f"trial {trial.number} {trial.score:.4g}" for trial in ranking[:5])
        caption = f"{study.unit} by epoch: a line for each trial."
        if study.rung < study.trial_epochs:
            caption += (
                " At the dashed vertical line, the trials of the worse half are stopped, which "
                "saves time for others."
            )
        charts["curves"] = Chart(
            partial(draw_scores, study),
            caption,
            f"{study.unit} by epoch. The highest last values: {listing}.",
        )
        charts["parallel"] = Chart(
            partial(draw_parallel, study),
            "Each trial is a line from top to bottom. It crosses each axis at the value that the "
            "trial has of this setting, from the lowest on the left to the highest on the right. "
            f"The last axis is the result: {study.unit}, where right is better.",
        )
        charts["values"] = Chart(
            partial(draw_values, study),
            f"{study.unit} by the value of each setting: a point for each trial. If the high "
            "points are all on one side, the setting matters, and that side is the better one.",
        )
    if importances:
        listing = ", ".join(f"{name} {100 * value:.0f}" for name, value in importances.items())
        charts["importance"] = Chart(
            partial(draw_importances, importances),
            "How much each setting tells the best trials from all (PED-ANOVA, in %).",
            f"Importance in %: {listing}.",
        )
    return {name: render_chart(chart, folder / f"{name}.png") for name, chart in charts.items()}


def describe_outcomes(study: StudyRecord) -> str:
    """Return how many trials ended how, such as "3 trained to the end, 1 collapsed"."""
    counts = [f"{study.count(name)} {text}" for name, text in OUTCOMES.items() if study.count(name)]
    return "; ".join(counts)
