"""Charts as figures that follow a page's light and dark, and as PNG; no run of a chart is told by its hue alone."""

import io
import logging
import math
import re
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.filesystem import write_atomically

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of fonts that it looks for

# A figure is drawn in the light colours; in a page each of them is a variable, which has a value for light and dark.
INK, MUTED, RULE, PAPER = "#1b1f24", "#57606a", "#d4d9df", "#fefefe"
# The colours of Okabe & Ito (2008), which everyone can tell apart; those too pale for white paper come on dark alone.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0578a", "#3d3d3d")
DARK = ("#56b4e9", "#e69f00", "#2fc79c", "#dc9bc2", "#f0e442")
VARIABLES = dict(zip((INK, MUTED, RULE, PAPER, *LIGHT), ("ink", "muted", "rule", "paper", *"01234"), strict=True))
DASHES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X")  # 5, 4, 7: all 140 pairs differ
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
STYLE = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "charts",  # the same figure is the same file
    "text.parse_math": False,  # a name with dollars is a name
    "font.size": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def css(dark: bool) -> str:
    """The variables that a chart's colours are."""
    if not dark:
        return "".join(f"--{name}: {colour}; " for colour, name in VARIABLES.items()).strip()
    colours = ("#e6e9ec", "#a3adb8", "#3a424b", "#14171a", *DARK)
    return "".join(f"--{name}: {c}; " for c, name in zip(colours, VARIABLES.values(), strict=True)).strip()


class Series(NamedTuple):
    """A line: points (x, y), and half the height of a band around it where there is one."""

    mark: str  # a letter or two at the line's end; "" where there is one line
    label: str
    style: int  # which colour, dash and marker
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def look(style: int) -> dict[str, Any]:
    dash, marker = DASHES[style % len(DASHES)], MARKERS[style % len(MARKERS)]
    return {"color": LIGHT[style % len(LIGHT)], "linestyle": dash, "marker": marker}


def new(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches: 5 are the width of a phone."""
    figure = Figure((width, height), layout="constrained", facecolor="none")
    return figure, figure.add_subplot(facecolor="none")


@matplotlib.style.context(["default", STYLE])
def curves(series: Sequence[Series], x_label: str, y_label: str, zero: bool = False, legend: bool = False) -> Figure:
    """Lines over a common axis.

    Args:
        zero: let the axis begin at 0.
        legend: name the lines below the axes, for a picture that stands alone.
    """
    figure, axes = new(5, 3.1 + 0.2 * len(series) * legend)
    for s in series:
        spaced = max(1, len(s.x) // 8)
        start = s.style * spaced // 3 % spaced  # markers of lines that lie on one another show beside each other
        axes.plot(s.x, s.y, label=f"{s.mark}  {s.label}", markevery=(start, spaced), **look(s.style))
        if len(s.x) > 100:
            axes.lines[-1].set_linewidth(1.1)
        if s.spread is not None:
            y, spread = np.array(s.y), np.array(s.spread)
            axes.fill_between(s.x, y - spread, y + spread, color=look(s.style)["color"], alpha=0.2, linewidth=0)
    axes.grid(axis="y")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.margins(y=0.08)
    if zero:
        axes.set_ylim(min(0, axes.get_ylim()[0]), max(1.08 * max(max(s.y) for s in series), axes.get_ylim()[1]))
    label_ends(axes, [s for s in series if s.mark and len(s.x)])
    if legend:
        figure.legend(loc="outside lower left", frameon=False, ncols=1, handlelength=3.5)
    return figure


def label_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Write each line's mark at its end; where ends lie close, one above the other."""
    low, high = axes.get_ylim()
    ends = {s.x[-1] for s in series}
    for same in ([s for s in series if s.x[-1] == end] for end in ends):
        heights = apart([s.y[-1] for s in same], 0.065 * (high - low), low, high)
        for s, height in zip(same, heights, strict=True):
            look_ = {"color": look(s.style)["color"], "weight": "bold", "va": "center", "annotation_clip": False}
            axes.annotate(s.mark, (s.x[-1], height), xytext=(7, 0), textcoords="offset points", **look_)


def apart(places: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Places on a line, moved as little as it takes for each to be `gap` from the next, and all within the limits."""

    def first(group: list[int]) -> float:  # those that would touch stand evenly around their mean
        half = gap * (len(group) - 1) / 2
        return max(min(sum(places[i] for i in group) / len(group), high - half), low + half) - half

    groups: list[list[int]] = []
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        groups.append([i])
        while len(groups) > 1 and first(groups[-1]) - first(groups[-2]) < gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    moved = {i: first(group) + n * gap for group in groups for n, i in enumerate(group)}
    return [moved[i] for i in range(len(places))]


@matplotlib.style.context(["default", STYLE])
def key(style: int) -> Figure:
    """A line's colour, dash and marker, for a list of the lines."""
    figure = Figure((0.6, 0.2), facecolor="none")
    axes = figure.add_axes((0.04, 0, 0.92, 1), facecolor="none")
    axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], markersize=7, clip_on=False, **look(style))
    axes.set_axis_off()
    return figure


@matplotlib.style.context(["default", STYLE])
def bars(names: Sequence[str], values: Sequence[float], label: str) -> Figure:
    """Values in percent as bars to the right, each with its figure, the first one on top."""
    figure, axes = new(5, 0.7 + 0.24 * len(names))
    axes.barh(range(len(names)), values, 0.7, color=LIGHT[0])
    for i, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (value, i), xytext=(3, 0), textcoords="offset points", va="center", size=9)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, xlim=(0, 108), ylim=(len(names) - 0.4, -0.6))
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


@matplotlib.style.context(["default", STYLE])
def matrix(shares: np.ndarray, names: Sequence[str] | None, rows: str, columns: str) -> Figure:
    """Shares (C, C) in percent as tints, with their figures where the rows and columns have names."""
    figure, axes = new(5.2, 4.9)
    most = max(1.0, float(shares.max()))
    tint = LinearSegmentedColormap.from_list("tint", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 1)])
    axes.imshow(shares, tint, vmin=0, vmax=most, interpolation="none", aspect="auto")
    if names:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
        for (r, c), share in np.ndenumerate(shares):
            colour = "white" if share > 0.85 * most else INK
            axes.text(float(c), float(r), f"{share:.0f}", ha="center", va="center", color=colour, size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=columns, ylabel=rows)
    return figure


@matplotlib.style.context(["default", STYLE])
def scatter(points: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> Figure:
    """Points (N, 2) of classes (N,), each class with a colour and a marker, those in `names` with their name."""
    figure, axes = new(5.2, 4.9)
    for label in np.unique(labels):
        mine, style = points[labels == label], int(label)
        shown = {"color": LIGHT[style % 4], "marker": MARKERS[style % 7], "linewidths": 0, "alpha": 0.6}
        axes.scatter(*mine.T, s=12, rasterized=True, **shown)
    middles = {label: np.median(points[labels == label], axis=0) for label in names if (labels == label).any()}
    low, high = axes.get_ylim()
    heights = apart([middle[1] for middle in middles.values()], 0.05 * (high - low))
    for (label, middle), height in zip(middles.items(), heights, strict=True):
        box = {"facecolor": PAPER, "edgecolor": LIGHT[label % 4], "boxstyle": "round,pad=0.2", "alpha": 0.9}
        axes.text(middle[0], height, names[label], ha="center", va="center", size=9, weight="bold", bbox=box)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.style.context(["default", STYLE])
def svg(figure: Figure, name: str, title: str) -> str:
    """A figure as an element of a page.

    Args:
        name: one of its own in the page; ids begin with it.
        title: what is seen, for those who do not see it.
    """
    out = io.StringIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of letters that the font has not
        figure.savefig(out, format="svg", dpi=160, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    kept = set(re.findall(rf'(?:href="#|url\(#)({name}-[^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in kept else "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font-family: [^;\"]*|(font: (?:bold |\d+ )*[\d.]+px) [^;\"]*", replace_font, text)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg class="chart" {box[0] if box else ""} role="img"><title>{escape(title)}</title>'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def replace_font(found: re.Match[str]) -> str:
    return f"{found[1]} {SANS}" if found[1] else f"font-family: {SANS}"


@matplotlib.style.context(["default", STYLE])
def save_png(figure: Figure, file: Path) -> None:
    """A figure on white paper, as a file."""
    paper = {"format": "png", "dpi": 200, "facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.12}
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        write_atomically(file, lambda partial: figure.savefig(partial, **paper))
