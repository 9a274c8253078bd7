"""The command `report`: one page of a run, or of several side by side."""

import importlib
import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from simsiam.config.ablations import paper_says
from simsiam.config.commands import PRETRAIN_DEFAULTS, command_line
from simsiam.config.evaluation_commands import Report
from simsiam.report import figures, records
from simsiam.report.records import Group, Run, summarize
from utils.console import print_line, print_table
from utils.errors import UserError, require
from utils.filesystem import check_writable, write_atomically, write_text

TEMPLATE = Path(figures.__file__).with_name("template.html.j2")
MAX_SECTIONS = 4  # groups whose first run is shown by pictures, which take time and room
CURVES = {  # column: axis, whether the axis begins at zero, caption
    "kNN_accuracy": (
        "kNN accuracy (%)",
        False,
        "top-1 on the test images by weighted kNN; epoch 0 is untrained.",
    ),
    "train_loss": ("loss (negative cosine)", False, "mean of the epoch's steps."),
    "z_std": (
        "z_std",
        True,
        "spread of the projections, mean of the epoch; near 1 is healthy, 0 is collapsed.",
    ),
    "rankme": (
        "effective rank",
        True,
        "RankMe of the backbone's features on train images; it needs no labels.",
    ),
    "images_per_second": (
        "images/s",
        True,
        "train images a second, of training alone, without kNN and checkpoints.",
    ),
}
FILES = re.compile(
    rf"({'|'.join(CURVES)}|([A-Z]+[0-9]*_)?(classes|confusion|map|neighbours|views))\.png"
)
SUMMARY: dict[
    str, tuple[str, Callable[[Run], list[float]]]
] = {  # name: format, none or one figure of a run
    "kNN, last (%)": (".2f", lambda run: run.values("kNN_accuracy")[-1:]),
    "kNN, best (%)": (".2f", lambda run: sorted(run.values("kNN_accuracy"))[-1:]),
    "kNN, untrained (%)": (
        ".2f",
        lambda run: [y for name, y in run.rows[0].items() if name == "kNN_accuracy"],
    ),
    "loss": (".4f", lambda run: run.values("train_loss")[-1:]),
    "z_std": (".3f", lambda run: run.values("z_std")[-1:]),
    "RankMe": (".1f", lambda run: run.values("rankme")[-1:]),
    "images/s, mean": (
        ",.0f",
        lambda run: [mean(y)] if (y := run.values("images_per_second")) else [],
    ),
    "minutes": (".1f", lambda run: [sum(y) / 60] if (y := run.values("seconds")) else []),
}
PAPER = "paper (%)"  # of ImageNet, linear, 100 epochs


def report(config: Report) -> None:
    """Read the runs, draw the figures, write the page; print where it is and the main figures."""
    runs = records.read_runs(config.report.runs)
    parent = os.path.commonpath([run.folder.path for run in runs])
    output = Path(config.report.output or f"{parent}/report").expanduser()
    index, folder = output / "index.html", output / "figures"
    for needed in (output, folder):
        check_writable(needed, "--output")
    free = not index.exists() or records.is_report(index)
    require(free, f"{index} is not a report of this program: give another --output")
    for file in folder.glob("*.png"):
        if FILES.fullmatch(file.name):  # of an earlier report
            file.unlink()

    groups = records.group_runs(runs)
    runs, summary = [run for group in groups for run in group.runs], summarize_groups(groups)
    measured = dict.fromkeys(name for run in runs for name in run.accuracies)
    machine = dict.fromkeys(name for run in runs for name in run.machine)
    page = render_page(
        title=f"SimSiam: {runs[0].name}" if len(runs) == 1 else f"SimSiam: {len(runs)} runs",
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        groups=groups,
        runs=runs,
        summary=summary,
        curves=draw_curves(groups, folder),
        results={name: [group.accuracy(name) for group in groups] for name in measured},
        sections=[describe_features(group, config, folder) for group in groups[:MAX_SECTIONS]],
        machines={name: [run.machine.get(name, "-") for run in runs] for name in machine},
    )
    write_text(index, page)
    for group in groups:
        print_line(f"{group.mark}: {group.label} ({group.status})".removeprefix(": "))
    names = [name for name in ("kNN, last (%)", "loss", "z_std", PAPER) if name in summary]
    rows = [[group.mark, *(summary[name][i] for name in names)] for i, group in enumerate(groups)]
    print_table("", ["", *names], rows)
    print_line(f"page      {index}\n          {index.resolve().as_uri()}\nfigures   {folder}")


def render_page(**content: Any) -> str:
    """The template, filled; in ASCII, so that no locale can spoil it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.finalize = lambda value: (
        value if isinstance(value, Markup) else records.printable(value)
    )
    environment.filters["encode"] = encode_picture
    content |= {"light": figures.LIGHT, "dark": figures.DARK, "generator": records.GENERATOR}
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        content, command_line=command_line
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


def encode_picture(picture: Image.Image) -> str:
    picture.save(out := io.BytesIO(), "WEBP", lossless=True, method=0)
    return figures.data_uri("webp", out.getvalue())


def summarize_groups(groups: Sequence[Group]) -> dict[str, list[str]]:
    """A table: by name, a figure for each group."""
    table = {}
    for name, (form, get) in SUMMARY.items():
        table[name] = [
            summarize([y for run in group.runs for y in get(run)], form) for group in groups
        ]
    paper = paper_says([group.runs[0].settings for group in groups], PRETRAIN_DEFAULTS)
    return table | ({PAPER: [words or "-" for words in paper]} if any(paper) else {})


def draw_curves(groups: Sequence[Group], folder: Path) -> list[dict[str, str]]:
    charts = []
    for column, (axis, from_zero, caption) in CURVES.items():
        if shown := [group for group in groups if group.curve(column)[0]]:
            ends = [
                f"{group.mark or group.label} ends at {group.curve(column)[1][-1]:.4g}"
                for group in shown
            ]
            draw = partial(figures.draw_curves, shown, column, axis, from_zero)
            alt = f"{axis} by epoch: {', '.join(ends)}."
            charts.append(
                figures.render_chart(
                    draw, f"{folder}/{column}.png", f"{axis} by epoch: {caption}", alt
                )
            )
    return charts


def describe_features(group: Group, config: Report, folder: Path) -> dict[str, Any]:
    """The pictures of a group's first run: of its checkpoint, and the views in its folder."""
    run, stem = group.runs[0], f"{folder}/{group.mark}_" if group.mark else f"{folder}/"
    found = {
        "group": group,
        "run": run,
        "problem": None,
        "gallery": [],
        "charts": [],
        "views": None,
    }
    if run.folder.views.exists():
        with run.note_damage(run.folder.views), Image.open(run.folder.views) as file:
            found["views"] = file.convert("RGB")
            found["views"].thumbnail((2000, 2000))
    if found["views"]:
        write_atomically(Path(f"{stem}views.png"), partial(shutil.copyfile, run.folder.views))
    if config.report.pictures:
        try:  # torch is imported only now: a page without pictures does not wait for it
            return found | importlib.import_module("simsiam.report.analysis").analyse_run(
                run, config, stem
            )
        except UserError as error:
            found["problem"] = error
    return found
