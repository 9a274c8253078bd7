"""Colours and style of the charts, and their output as PNG files and data URIs.

Each chart is drawn twice, in light and in dark colours; a browser shows the one that fits.
"""

import base64
import io
import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.filesystem import write_atomically

# matplotlib would log a warning for each font in `make_style` that is not installed.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Colours of the page, and of lines (c0 to c4). The colours of lines are those of Okabe & Ito 2008;
# on white some are darker. The contrast to "paper" is at least 4.5 for text, 3 for lines (WCAG 2).
LIGHT = {
    "ink": "#1b1f24",
    "muted": "#57606a",
    "rule": "#d4d9df",
    "paper": "#ffffff",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#009e73",
    "c3": "#b0578a",
    "c4": "#3d3d3d",
}
DARK = {
    "ink": "#e6e9ec",
    "muted": "#a3adb8",
    "rule": "#3a424b",
    "paper": "#14171a",
    "c0": "#56b4e9",
    "c1": "#e69f00",
    "c2": "#2fc79c",
    "c3": "#dc9bc2",
    "c4": "#f0e442",
}
THEMES = {"light": LIGHT, "dark": DARK}
LINE_COLOURS = [name for name in LIGHT if name.startswith("c")]

# Lines differ in colour, dash and marker, so that people who cannot see hues can tell them apart.
# The 5 colours, 4 dashes and 7 markers give 140 different lines.
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH = 5  # inches of a chart; its text stays readable on a phone
PNG_DPI = 200
MAX_LABEL = 48  # characters of a class name on a chart


class Chart(NamedTuple):
    """A chart and its texts.

    Attributes:
        draw: returns a new figure in the colours of matplotlib's current style.
        caption: text below the chart.
        alt: text in place of the chart for people who do not see it; empty for the caption.
    """

    draw: Callable[[], Figure]
    caption: str
    alt: str = ""


def make_style(theme: dict[str, str]) -> dict[str, Any]:
    """Return matplotlib's parameters for the colours of a theme."""
    return {
        # Text in an SVG stays text, and the same figure gives the same file.
        "svg.fonttype": "none",
        "svg.hashsalt": "charts",
        # A "$" in the name of a run or a class is no formula.
        "text.parse_math": False,
        "font.sans-serif": ["Segoe UI", "Roboto", "Arial", "DejaVu Sans"],
        "font.size": 9,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "legend.frameon": False,
        "text.color": theme["ink"],
        "axes.labelcolor": theme["ink"],
        "xtick.labelcolor": theme["ink"],
        "ytick.labelcolor": theme["ink"],
        "axes.edgecolor": theme["muted"],
        "xtick.color": theme["muted"],
        "ytick.color": theme["muted"],
        "grid.color": theme["rule"],
        "axes.prop_cycle": cycler(color=[theme[colour] for colour in LINE_COLOURS]),
    }


def render_chart(chart: Chart, png_file: Path) -> dict[str, str]:
    """Draw a chart for the page, and save it as a PNG on white.

    Returns:
        The values that the page's template uses: "light" and "dark" are data URIs of SVG images,
        "caption" and "alt" are texts.
    """
    # matplotlib leaves out entries that are None, so the file does not change with the time.
    svg_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    rendered = {"caption": chart.caption, "alt": chart.alt or chart.caption}
    for name, theme in THEMES.items():
        style = matplotlib.style.context(["default", make_style(theme)])
        # matplotlib warns of characters that no font has.
        quiet = warnings.catch_warnings(action="ignore", category=UserWarning)
        with style, quiet:
            figure = chart.draw()
            svg = io.BytesIO()
            figure.savefig(svg, format="svg", transparent=True, metadata=svg_metadata)
            rendered[name] = data_uri("svg+xml", svg.getvalue())
            if theme is LIGHT:
                figure.set_layout_engine("none")  # the first savefig has computed the layout
                save_png = partial(
                    figure.savefig,
                    format="png",
                    dpi=PNG_DPI,
                    pil_kwargs={"compress_level": 1},  # fast
                )
                write_atomically(png_file, save_png)
    return rendered


def data_uri(image_type: str, content: bytes) -> str:
    """Return an image as a URI that contains it; `image_type` is the second half of a MIME type."""
    return f"data:image/{image_type};base64,{base64.b64encode(content).decode()}"


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of `height` inches, and its axes."""
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def line_style(index: int) -> dict[str, Any]:
    """Return matplotlib's arguments for the line of a group."""
    return {
        "color": choose_colour(index),
        "linestyle": DASHES[index % len(DASHES)],
        "marker": choose_marker(index),
    }


def choose_colour(index: int) -> str:
    """Return matplotlib's name, "C0" to "C4", for a colour of the current theme."""
    return f"C{index % len(LINE_COLOURS)}"


def choose_marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def shorten_label(name: str) -> str:
    """Return the name of a class as a chart shows it: shortened, so that the chart has room."""
    if len(name) > MAX_LABEL:
        name = name[: MAX_LABEL - 3] + "..."
    if name.startswith("_"):
        name = f" {name}"  # matplotlib hides labels that begin with "_"
    return name
