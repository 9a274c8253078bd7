"""Charts by matplotlib, in light and in dark colours. Lines differ in colour, dash and marker, not in hue alone."""

import base64
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simsiam.report.records import Group
from utils.console import MANY_CLASSES
from utils.filesystem import write_atomically

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of fonts that are not installed
# Of the page and of lines (Okabe & Ito 2008, some darker on white). Contrast to paper: text 4.5, lines 3 (WCAG 2).
LIGHT = {"ink": "#1b1f24", "muted": "#57606a", "rule": "#d4d9df", "paper": "#ffffff"}
LIGHT |= {"c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#b0578a", "c4": "#3d3d3d"}
DARK = {"ink": "#e6e9ec", "muted": "#a3adb8", "rule": "#3a424b", "paper": "#14171a"}
DARK |= {"c0": "#56b4e9", "c1": "#e69f00", "c2": "#2fc79c", "c3": "#dc9bc2", "c4": "#f0e442"}
MAX_LABEL = 48  # letters of a class's name on a chart
DASHES, MARKERS = (
    ("-", "--", "-.", ":"),
    ("o", "s", "^", "D", "v", "P", "X"),
)  # with 5 colours: 140 lines differ


def make_style(theme: dict[str, str]) -> dict[str, Any]:
    """matplotlib's parameters; C0 to C4 are the lines."""
    return {
        **{
            "svg.fonttype": "none",
            "svg.hashsalt": "charts",
        },  # text stays text; the same figure gives the same file
        **{
            "text.parse_math": False,
            "font.sans-serif": ["Segoe UI", "Roboto", "Arial", "DejaVu Sans"],
            "font.size": 9,
        },
        **{
            "axes.labelsize": 9.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        },
        **{
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "legend.frameon": False,
        },
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme["ink"]
        ),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), theme["muted"]),
        **{
            "grid.color": theme["rule"],
            "axes.prop_cycle": cycler(color=[theme[f"c{i}"] for i in range(5)]),
        },
    }


def render_chart(
    draw: Callable[[], Figure], file: str, caption: str, alt: str | None = None
) -> dict[str, str]:
    """A figure as `light` and `dark` data URIs, with its texts (alt: as the caption); also saved as PNG on white."""
    chart, metadata = (
        {"caption": caption, "alt": alt or caption},
        dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        style = matplotlib.style.context(["default", make_style(theme)])
        with (
            style,
            warnings.catch_warnings(action="ignore", category=UserWarning),
        ):  # of letters that the font lacks
            figure, svg = draw(), io.BytesIO()
            figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
            chart[name] = data_uri("svg+xml", svg.getvalue())
            figure.set_layout_engine("none")  # it is laid out
            if theme is LIGHT:
                fast = {"compress_level": 1}
                write_atomically(
                    Path(file), partial(figure.savefig, format="png", dpi=200, pil_kwargs=fast)
                )
    return chart


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def new_figure(height: float) -> tuple[Figure, Axes]:
    """An empty figure, 5 inches wide: the width of a phone."""
    figure = Figure((5, height), layout="constrained")
    return figure, figure.add_subplot()


def line_style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 5}", "linestyle": DASHES[index % 4], "marker": MARKERS[index % 7]}


def draw_curves(groups: Sequence[Group], column: str, label: str, from_zero: bool) -> Figure:
    """A line for each group, and a band of one deviation around those that are a mean."""
    figure, axes = new_figure(3.1 + 0.2 * len(groups) * (len(groups) > 1))
    for group in groups:
        epochs, y, deviation = group.curve(column)
        style, every = line_style(group.index), max(1, len(epochs) // 8)
        first = group.index * every // 3 % every  # of lines that coincide, all markers are seen
        axes.plot(
            epochs,
            y,
            label=fill(f"{group.mark} {group.label}", 72),
            markevery=(first, every),
            **style,
        )
        if deviation is not None:
            edges = np.array(y) - deviation, np.array(y) + deviation
            axes.fill_between(epochs, *edges, color=style["color"], alpha=0.2, linewidth=0)
    axes.grid(axis="y")
    axes.set(xlabel="epoch", ylabel=label, ymargin=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if from_zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if len(groups) > 1:
        figure.legend(loc="outside lower left", handlelength=3.5)
    return figure


def label_of(name: str) -> str:
    """Return the name of a class as a chart shows it: cut, so that it leaves room for the chart."""
    if len(name) > MAX_LABEL:
        name = name[: MAX_LABEL - 3] + "..."
    return f" {name}" if name.startswith("_") else name  # matplotlib hides what begins with "_"


def draw_bars(names: Sequence[str], values: Sequence[float]) -> Figure:
    """Accuracies in percent as horizontal bars, the first on top."""
    names = [label_of(name) for name in names]
    figure, axes = new_figure(0.7 + 0.24 * len(names))
    axes.bar_label(
        axes.barh(range(len(names)), values, 0.7, tick_label=names), fmt="%.1f", padding=3
    )
    axes.set(xlim=(0, 108), ylim=(len(names) - 0.4, -0.6), xticks=range(0, 101, 20))
    axes.set_xlabel("test images classified rightly (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def draw_matrix(shares: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion (C, C) in percent as tints; with names also as figures."""
    names = [label_of(name) for name in names]
    figure, axes = new_figure(4.7)
    most, tint = (
        max(1.0, shares.max()),
        LinearSegmentedColormap.from_list("tint", ["#0072b200", "#0072b2"]),
    )
    axes.imshow(shares, tint, vmin=0, vmax=most, interpolation="none", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for (r, c), share in np.ndenumerate(shares) if names else ():
        colour = "white" if share > 0.85 * most else matplotlib.rcParams["text.color"]
        axes.text(
            float(c), float(r), f"{share:.0f}", ha="center", va="center", size=8, color=colour
        )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def draw_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Points (N, 2) of classes (N,), a colour and a marker for each, and a legend if there are names."""
    figure, axes = new_figure(4.7)
    names = [label_of(name) for name in names]
    for label in np.unique(labels):
        shown = {
            "color": f"C{label % 5}",
            "marker": MARKERS[label % 7],
            "label": names[label] if names else None,
        }
        axes.scatter(
            *points[labels == label].T, s=12, linewidths=0, alpha=0.7, rasterized=True, **shown
        )
    if names:
        figure.legend(loc="outside lower center", ncols=4, markerscale=1.5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def draw_classes(
    counts: np.ndarray, names: list[str], classifier: str, stem: str
) -> list[dict[str, str]]:
    """Accuracy of each class, the best first, and the confusion of classes; counts (C, C), row the true class."""
    totals = counts.sum(axis=1)
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    right, wrong = shares.diagonal(), shares - np.diag(shares.diagonal())
    order = [int(i) for i in np.argsort(-right, kind="stable") if totals[i]]
    shown = [*order[:10], *order[10:][-10:]]
    title = "Accuracy of each class" + ", the ten best and the ten worst" * (
        len(shown) < len(order)
    )
    alt = f"{title} in %: " + ", ".join(f"{names[i]} {right[i]:.1f}" for i in shown)
    bars = partial(draw_bars, [names[i] for i in shown], right[shown])
    r, c = np.unravel_index(wrong.argmax(), wrong.shape)
    worst = f"most often {names[r]} is taken for {names[c]} ({wrong[r, c]:.1f} %)"
    matrix = partial(draw_matrix, shares, names if len(names) <= MANY_CLASSES else ())
    return [
        render_chart(bars, f"{stem}classes.png", f"{title}: {classifier}.", alt),
        render_chart(
            matrix, f"{stem}confusion.png", f"Confusion, in % of each true class: {worst}."
        ),
    ]
