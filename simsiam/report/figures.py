"""Charts by matplotlib, in light and in dark colours. Lines differ in colour, dash and marker, not in hue alone."""

import base64
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from simsiam.report.records import Group
from utils.filesystem import write_atomically

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of fonts that are not installed


class Theme(NamedTuple):
    """Colours of the page and its charts. Text has a contrast of at least 4.5 to the paper, lines of 3 (WCAG 2)."""

    ink: str
    muted: str
    rule: str
    paper: str
    lines: tuple[str, ...]  # of Okabe & Ito (2008), darker on white where they are too pale for it


LIGHT = Theme("#1b1f24", "#57606a", "#d4d9df", "#ffffff", ("#0072b2", "#d55e00", "#009e73", "#b0578a", "#3d3d3d"))
DARK = Theme("#e6e9ec", "#a3adb8", "#3a424b", "#14171a", ("#56b4e9", "#e69f00", "#2fc79c", "#dc9bc2", "#f0e442"))
DASHES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X")  # with 5 colours: 140 lines differ
STYLE: dict[str, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "charts"},  # text stays text; the same figure gives the same file
    **{"text.parse_math": False, "font.sans-serif": ["Segoe UI", "Roboto", "Arial", "DejaVu Sans"], "font.size": 9},
    **{"axes.labelsize": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"grid.linewidth": 0.6, "lines.linewidth": 1.8, "lines.markersize": 5, "savefig.dpi": 160},
}


def theme_style(theme: Theme) -> dict[str, Any]:
    """matplotlib's parameters; C0 to C4 are the theme's lines."""
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.ink)
    colours |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), theme.muted)
    colours |= {"grid.color": theme.rule, "figure.facecolor": theme.paper}
    return STYLE | colours | {"axes.prop_cycle": cycler(color=theme.lines)}


def line_style(index: int) -> dict[str, Any]:
    dash, marker = DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
    return {"color": f"C{index % len(LIGHT.lines)}", "linestyle": dash, "marker": marker}


Curve = tuple[Group, list[int], list[float], list[float] | None]  # x, y and its deviation


class Chart(NamedTuple):
    """A figure as data URIs for light and dark; `alt` says what is seen."""

    light: str
    dark: str
    alt: str
    caption: str


def render_chart(draw: Callable[[], Figure], alt: str = "", caption: str = "", file: Path | None = None) -> Chart:
    """Draw a figure for light and for dark, and save it as PNG on white, where several lines also get a legend."""
    svg = {"format": "svg", "transparent": True, "metadata": dict.fromkeys(("Creator", "Date", "Format", "Type"))}
    uris = []
    for theme in (LIGHT, DARK):
        style = matplotlib.style.context(["default", theme_style(theme)])
        with style, warnings.catch_warnings(action="ignore", category=UserWarning):  # of letters that the font lacks
            figure = draw()
            uris.append(data_uri("svg+xml", partial(figure.savefig, **svg)))
            if file and theme is LIGHT:
                lines = len(figure.axes[0].get_legend_handles_labels()[1])
                if lines > 1:
                    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
                    figure.legend(loc="outside lower left", frameon=False, handlelength=3.5)
                write_atomically(file, partial(figure.savefig, format="png", dpi=200))
    return Chart(uris[0], uris[1], alt, caption)


def encode_image(image: Image.Image) -> str:
    """A picture as a data URI, lossless."""
    return data_uri("webp", lambda out: image.save(out, "WEBP", lossless=True))


def data_uri(kind: str, save: Callable[[io.BytesIO], Any]) -> str:
    save(out := io.BytesIO())
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def draw_curves(curves: Sequence[Curve], x_label: str, y_label: str, from_zero: bool = False) -> Figure:
    """Lines with a letter at their ends, and a band of one deviation around those that are a mean."""
    figure, axes = new_figure(5, 3.1)
    for group, x, y, deviation in curves:
        style, every = line_style(group.index), max(1, len(x) // 8)
        first = group.index * every // 3 % every  # of lines that coincide, all markers are seen
        style["linewidth"] = 1.8 if len(x) <= 100 else 1.1
        axes.plot(x, y, label=f"{group.mark}  {group.label}", markevery=(first, every), **style)
        if deviation is not None:
            edges = np.array(y) - deviation, np.array(y) + deviation
            axes.fill_between(x, *edges, color=style["color"], alpha=0.2, linewidth=0)
    axes.grid(axis="y")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.margins(y=0.08)
    if from_zero:
        axes.set_ylim(min(0, axes.get_ylim()[0]), max(1.08 * max(max(y) for _, _, y, _ in curves), axes.get_ylim()[1]))
    low, high = axes.get_ylim()
    for end in {x[-1] for _, x, _, _ in curves}:  # where lines end close to each other, their marks go above each other
        ending = [(group, y[-1]) for group, x, y, _ in curves if x[-1] == end]
        heights = space_out([y for _, y in ending], 0.065 * (high - low), low, high)
        for (group, _), height in zip(ending, heights, strict=True):
            look = {"color": line_style(group.index)["color"], "weight": "bold", "va": "center"}
            axes.annotate(group.mark, (end, height), (7, 0), textcoords="offset points", annotation_clip=False, **look)
    return figure


def space_out(places: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Places moved so that they lie at least `gap` apart and within the limits; ties move to both sides alike."""
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    free = np.asarray(places, dtype=float)[order] - steps  # a gap is kept where these do not fall
    middle = (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2
    moved = np.clip(middle, low, high - gap * max(0, len(order) - 1)) + steps
    return moved[np.argsort(order)].tolist()


def draw_line_sample(index: int) -> Figure:
    """A line's colour, dash and marker, for a legend."""
    figure = Figure((0.6, 0.2))
    axes = figure.add_axes((0.04, 0, 0.92, 1))
    axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], markersize=7, clip_on=False, **line_style(index))
    axes.set_axis_off()
    return figure


def draw_bars(names: Sequence[str], values: Sequence[float], label: str) -> Figure:
    """Values in percent as horizontal bars, the first on top."""
    figure, axes = new_figure(5, 0.7 + 0.24 * len(names))
    axes.bar_label(axes.barh(range(len(names)), values, 0.7), fmt="%.1f", padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, xlim=(0, 108), ylim=(len(names) - 0.4, -0.6))
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def draw_matrix(shares: np.ndarray, names: Sequence[str] | None, rows: str, columns: str) -> Figure:
    """Shares (C, C) in percent as tints; with names also as figures."""
    figure, axes = new_figure(5.2, 4.9)
    most = max(1.0, float(shares.max()))
    tint = LinearSegmentedColormap.from_list("tint", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 1)])
    axes.imshow(shares, tint, vmin=0, vmax=most, interpolation="none", aspect="auto")
    if names:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
        for (r, c), share in np.ndenumerate(shares):
            colour = "white" if share > 0.85 * most else matplotlib.rcParams["text.color"]
            axes.text(float(c), float(r), f"{share:.0f}", ha="center", va="center", size=8, color=colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=columns, ylabel=rows)
    return figure


def draw_map(points: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> Figure:
    """Points (N, 2) of classes (N,), a colour and a marker for each; those in `names` with their name."""
    figure, axes = new_figure(5.2, 4.9)
    for label in np.unique(labels):
        shown = {"color": f"C{label % 4}", "marker": MARKERS[label % 7], "linewidths": 0, "alpha": 0.6}
        axes.scatter(*points[labels == label].T, s=12, rasterized=True, **shown)
    middles = {label: np.median(points[labels == label], axis=0) for label in names}
    low, high = axes.get_ylim()
    heights = space_out([middle[1] for middle in middles.values()], 0.05 * (high - low))
    for (label, middle), height in zip(middles.items(), heights, strict=True):
        box: dict[str, Any] = {"edgecolor": f"C{label % 4}", "boxstyle": "round,pad=0.2", "alpha": 0.9}
        box["facecolor"] = matplotlib.rcParams["figure.facecolor"]
        axes.text(middle[0], height, names[label], ha="center", va="center", weight="bold", bbox=box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches: 5 are the width of a phone."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()
