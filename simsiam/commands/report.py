"""The command `report`: one page of a run, or of several side by side."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torchvision.transforms.functional import to_pil_image

from simsiam.config.ablations import paper_says
from simsiam.config.commands import Report, command_line
from simsiam.evaluation.gallery import draw_gallery
from simsiam.evaluation.metrics import MANY_CLASSES
from simsiam.report import figures, records
from simsiam.report.analysis import Analysis, analyse_run
from simsiam.report.figures import Chart, render_chart
from simsiam.report.records import Confusion, Group, Run
from utils.console import print_line, print_table
from utils.device import PACKAGES, choose_accelerator
from utils.errors import UserError, check
from utils.filesystem import check_writable, write_atomically, write_text

TEMPLATE = Path(figures.__file__).with_name("template.html.j2")
MAX_SECTIONS = 4  # groups whose first run is shown by pictures, which take time and room
CURVES = (  # column, axis, whether the axis begins at zero, caption
    ("kNN_accuracy", "kNN accuracy (%)", False, "Top-1 on the test images by weighted kNN; epoch 0 is untrained."),
    ("train_loss", "loss (negative cosine)", False, "Mean of the epoch's steps."),
    (
        "z_std",
        "z_std",
        True,
        "Spread of the projections, mean of the epoch's steps: near 1 is healthy, 0 is collapsed.",
    ),
    ("learning_rate", "learning rate", True, "As it was at the epoch's end."),
    ("images_per_second", "images/s", True, "Train images a second, of training alone, without kNN and checkpoints."),
    ("perf/mfu", "share of the bf16 peak", True, "Counted operations of a step, of a matrix product's measured rate."),
)
CURVE_FILES = "|".join(column.split("/")[-1] for column, *_ in CURVES)
FILES = re.compile(rf"({CURVE_FILES}|([A-Z]+[0-9]*_)?(classes|confusion|map|neighbours|views))\.png")
SUMMARY: tuple[tuple[str, str, Callable[[Run], Iterable[float]]], ...] = (  # name, format, figure of a run
    ("kNN, last (%)", ".2f", lambda run: run.values("kNN_accuracy")[-1:]),
    ("kNN, best (%)", ".2f", lambda run: sorted(run.values("kNN_accuracy"))[-1:]),
    ("kNN, untrained (%)", ".2f", lambda run: [y for epoch, y in run.curve("kNN_accuracy").items() if epoch == 0]),
    ("loss", ".4f", lambda run: run.values("train_loss")[-1:]),
    ("z_std", ".3f", lambda run: run.values("z_std")[-1:]),
    ("images/s, mean", ",.0f", lambda run: [mean(y)] if (y := run.values("images_per_second")) else []),
)
PAPER = "paper (%)"
TERMINAL = ("kNN, last (%)", "loss", "z_std", PAPER)


def report(config: Report) -> None:
    """Read the runs, draw the figures, write the page; print where it is and the main figures."""
    options, accelerator = config.report, config.device.accelerator
    paths, output, data_dir = options.runs, options.output, options.data_dir
    analyse = partial(analyse_run, accelerator=accelerator, data_dir=data_dir) if options.pictures else None
    choose_accelerator(accelerator)
    runs = records.read_runs(paths)
    parents = [run.folder.path.absolute().parent for run in runs]
    parent = runs[0].folder.path if len(runs) == 1 else os.path.commonpath(parents)
    output = Path(output or Path(parent, "report")).expanduser()
    index, folder = output / "index.html", output / "figures"
    for needed in (output, folder):
        check_writable(needed, "--output")
    free = not index.exists() or records.is_report(index)
    check(free, f"{index} is not a report of this program: give another --output")
    for file in folder.glob("*.png"):
        if FILES.fullmatch(file.name):  # of an earlier report
            file.unlink()

    groups = records.group_runs(runs)
    runs = [run for group in groups for run in group.runs]
    summary = summarize_groups(groups)
    page = render_page(
        title=f"SimSiam: {runs[0].name}" if len(runs) == 1 else f"SimSiam: {len(runs)} runs",
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        groups=groups,
        runs=runs,
        samples=[render_chart(partial(figures.draw_line_sample, group.index)) for group in groups],
        summary=summary,
        curves=draw_curves(groups, folder),
        results=tabulate_results(groups),
        sections=[describe_features(group, analyse, folder) for group in groups[:MAX_SECTIONS]],
        machines=describe_machines(runs),
    )
    write_text(index, page)
    for group in groups:
        print_line(f"{group.mark}: {group.label} ({group.status})".removeprefix(": "))
    names, *columns = zip(*(row for row in summary if row[0] in TERMINAL), strict=True)
    plain = [[value.replace("\u00b1", "+-").replace("\u2013", "-") for value in column] for column in columns]
    print_table("", ["", *names], [[group.mark, *column] for group, column in zip(groups, plain, strict=True)])
    print_line(f"page      {index}\n          {index.resolve().as_uri()}\nfigures   {folder}")


def render_page(**content: Any) -> str:
    """The template, filled; in ASCII, so that no locale can spoil it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.finalize = lambda value: value if isinstance(value, Markup) else records.printable(value)
    environment.filters["encode"] = lambda tile: figures.encode_image(to_pil_image(tile))
    constants = {"light": figures.LIGHT, "dark": figures.DARK, "generator": records.GENERATOR}
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(content, command_line=command_line, **constants)
    return page.encode("ascii", "xmlcharrefreplace").decode()


def summarize_groups(groups: list[Group]) -> list[list[str]]:
    """Rows of a table: a name, and a figure for each group."""
    rows = [[name, *(group.summarize(figure, form) for group in groups)] for name, form, figure in SUMMARY]
    seconds = [round(sum(sum(run.values("seconds")) for run in group.runs)) for group in groups]
    rows.append(["time, in all", *(str(timedelta(seconds=s)) for s in seconds)])
    paper = paper_says([group.runs[0].settings for group in groups], records.DEFAULTS)
    return [*rows, [PAPER, *(words or "\u2013" for words in paper)]] if any(paper) else rows


def draw_curves(groups: list[Group], folder: Path) -> list[Chart]:
    charts = []
    for column, axis, from_zero, caption in CURVES:
        curves = [(group, *curve) for group in groups if (curve := group.curve(column))[0]]
        ends = ((group.mark or group.label, y[0], x[0], y[-1], x[-1]) for group, x, y, _ in curves)
        words = ["{}: from {:.4g} (epoch {}) to {:.4g} (epoch {}).".format(*end) for end in ends]
        draw = partial(figures.draw_curves, curves, "epoch", axis, from_zero)
        alt, file = " ".join([f"{axis} by epoch.", *words]), folder / f"{column.split('/')[-1]}.png"
        charts += [render_chart(draw, alt, caption, file)] if curves else []
    return charts


def tabulate_results(groups: list[Group]) -> list[tuple[str, list[list[str]]]]:
    """Tables of what the commands measured: the head of the first column, and rows."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in records.accuracies(run)))
    tables = []
    for head, kinds in (("by nearest neighbours", ("kNN",)), ("with labels", ("linear", "fine-tuned"))):
        chosen = [name for kind in kinds for name in names if name.startswith(kind)]
        tables.append((head, [[name, *(group.accuracy(name) for group in groups)] for name in chosen]))
    return [(head, rows) for head, rows in tables if rows]


def describe_machines(runs: Sequence[Run]) -> list[list[Any]]:
    """Rows of a table: processor, GPU, precision, devices and versions of each run."""
    names, columns = ["processor", "GPU", "precision", "devices", "python", *PACKAGES], []
    for run in runs:
        hardware = records.get_mapping(run.resolved, "hardware")
        memory = records.finite_number(hardware.get("gpu_memory_gib"))
        gpu = f"{hardware.get('gpu', 'unknown')}" + (f", {memory:g} GiB" if memory else "")
        cpu = f"{hardware.get('cpu') or 'unknown'}" + (f", {hardware['cores']} cores" if "cores" in hardware else "")
        rest = [run.resolved.get("precision"), run.resolved.get("devices"), *map(run.versions.get, names[4:])]
        column = [cpu, "none" if run.resolved.get("accelerator") == "cpu" else gpu, *rest]
        columns.append(["unknown" if value is None else value for value in column])
    return [list(row) for row in zip(names, *columns, strict=True)]


def describe_features(group: Group, analyse: Callable[[Run], Analysis] | None, folder: Path) -> dict[str, Any]:
    """The pictures of a group's first run: of its checkpoint, and those that its folder has."""
    run, prefix, analysis, problem = group.runs[0], f"{group.mark}_" if group.mark else "", None, None
    try:
        analysis = analyse(run) if analyse else None
    except UserError as error:
        problem = str(error)
    confusion, views = analysis.confusion if analysis else records.read_confusion(run), records.read_views(run)
    charts = draw_classes(confusion, folder, prefix) if confusion else []
    if analysis:
        heading = f"{run.name}: {analysis.source} on the left, their nearest train images, by cosine"
        picture = draw_gallery(analysis.gallery, records.printable(heading))
        write_atomically(folder / f"{prefix}neighbours.png", partial(picture.save, format="PNG"))
        charts.append(draw_map(analysis, folder / f"{prefix}map.png"))
    if views:
        write_atomically(folder / f"{prefix}views.png", partial(views.save, format="PNG"))
    shown = figures.encode_image(views) if views else None
    return {"group": group, "run": run, "analysis": analysis, "problem": problem, "charts": charts, "views": shown}


def draw_map(analysis: Analysis, file: Path) -> Chart:
    names, points, there = analysis.names, analysis.points, set(analysis.labels.tolist())
    named = {i: name for i, name in enumerate(names) if i in there} if len(names) <= MANY_CLASSES else {}
    title = f"Map of the features of {len(points):,} {analysis.source} by {analysis.method}"
    title += f", {len(names)} classes" * bool(names)
    about = {"t-SNE": "neighbours stay neighbours; how far groups are from each other means little"}
    how = about.get(analysis.method, "along the two directions of the greatest variance")
    caption = f"{title}: {how}." + " Each name stands in the middle of its class." * bool(named)
    return render_chart(partial(figures.draw_map, points, analysis.labels, named), title, caption, file)


def draw_classes(confusion: Confusion, folder: Path, prefix: str) -> list[Chart]:
    """Accuracy of each class, the best first, and the confusion of classes."""
    names, totals = confusion.names, confusion.counts.sum(axis=1)
    shares = 100 * confusion.counts / np.maximum(totals, 1)[:, None]
    order = [int(i) for i in np.argsort(-shares.diagonal(), kind="stable") if totals[i]]
    shown = order if len(order) <= MANY_CLASSES else [*order[:10], *order[-10:]]
    values = [float(shares[i, i]) for i in shown]
    alt = ", ".join(f"{names[i]} {value:.1f}" for i, value in zip(shown, values, strict=True))
    caption = "Accuracy of each class" + ", the ten best and the ten worst" * (shown != order)
    bars = partial(figures.draw_bars, [names[i] for i in shown], values, "test images classified rightly (%)")
    wrong = shares - np.diag(shares.diagonal())
    r, c = (int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    worst = f"most often {names[r]} is taken for {names[c]} ({wrong[r, c]:.1f} %)"
    tint = f"Confusion, in % of each true class (the darkest is {shares.max():.0f} %); {worst}."
    ticks = names if len(names) <= MANY_CLASSES else None
    matrix = partial(figures.draw_matrix, shares, ticks, "true class", "predicted class")
    return [
        render_chart(
            bars, f"{caption} in %: {alt}", f"{caption}: {confusion.method}.", folder / f"{prefix}classes.png"
        ),
        render_chart(matrix, f"Confusion of classes: {worst}", tint, folder / f"{prefix}confusion.png"),
    ]
