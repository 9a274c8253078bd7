"""The command `report`: one page of a run, or of several side by side."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from simsiam.config.ablations import paper_says
from simsiam.config.commands import DEFAULTS, Report, command_line
from simsiam.evaluation.gallery import OTHER, SAME, Tile, gallery
from simsiam.report import figures as charts
from simsiam.report import page
from simsiam.report.analysis import Classes, Portrait, draw_portrait, known_classes, stored_views
from simsiam.report.page import Markup, element
from simsiam.report.records import GENERATOR, NOTHING, Group, Run, cell, group, measures, number, part, read_runs
from utils.console import print_line, print_table
from utils.device import choose_accelerator
from utils.errors import UserError, check
from utils.filesystem import check_writable, write_atomically, write_text

PACKAGES = ("python", "torch", "torchvision", "pytorch-lightning")
PORTRAITS = 4  # runs that are shown by pictures
PAPER = "paper (%)"
SHORT = ("kNN, last (%)", "loss", "z_std", PAPER)  # in the terminal
MANY_CLASSES = 20  # of more, charts show the extremes
CURVES = (  # column, axis, whether the axis begins at zero, what is seen
    (
        "kNN_accuracy",
        "kNN accuracy (%)",
        False,
        "Top-1 on the test images by weighted kNN; epoch 0 is the untrained network",
    ),
    ("train_loss", "loss (negative cosine)", False, "Mean of the epoch's steps"),
    ("z_std", "z_std", True, "Spread of the projections, mean of the epoch's steps: near 1 is healthy, 0 is collapsed"),
    ("learning_rate", "learning rate", True, "As it was at the epoch's end"),
    ("images_per_second", "images/s", True, "Train images a second, of training alone, without kNN and checkpoints"),
    (
        "perf/mfu",
        "share of the bf16 peak",
        True,
        "The step's counted operations, of a bf16 matrix product's measured rate",
    ),
)
DRAWN = ("classes", "confusion", "map", "neighbours", "views")  # of a run, with its letter before it
FILES = "|".join([*(column.split("/")[-1] for column, *_ in CURVES), *(f"([A-Z]+_)?{name}" for name in DRAWN)])
HOW_TO_READ = (
    "The loss is a negative cosine: it falls from 0 towards \u22121, and \u22121 is not the goal. A loss near \u22121 "
    "whose z_std falls is collapsing: all images get the same projection. A healthy run has z_std near 1 and a kNN "
    "accuracy that climbs. z_std is the deviation of the L2-normalised projections over a batch, times the root of "
    "their dimension."
)


def report(config: Report) -> None:
    """Gather, draw, write; say where the page is and what it comes to."""
    choose_accelerator(config.device.accelerator)
    runs = read_runs(config.report.runs)
    output = Path(config.report.output).expanduser() if config.report.output else default_output(runs)
    check_output(output)
    groups = group(runs)
    pictures = Pictures(output / "figures")
    body = [*front(groups), *curves(groups, pictures), *results(groups), *portraits(config, groups, pictures)]
    body += origins(groups)
    title = f"SimSiam: {runs[0].name}" if len(runs) == 1 else f"SimSiam: {len(runs)} runs"
    pictures.sweep()
    index = output / "index.html"
    write_text(index, page.page(title, body, charts.css(dark=False), charts.css(dark=True), GENERATOR))
    for g in groups:
        print_line(f"{g.name} ({state(g)})")
    short = [row for row in figures(groups) if row[0] in SHORT]
    names, *columns = zip(*short, strict=True)
    plain = [[value.replace("\u00b1", "+-").replace(NOTHING, "-") for value in column] for column in columns]
    print_table("", ["", *names], [[g.mark, *column] for g, column in zip(groups, plain, strict=True)])
    print_line(f"page      {index}\n          {index.resolve().as_uri()}\nfigures   {pictures.folder}")


def default_output(runs: Sequence[Run]) -> Path:
    """`report` in the run's folder, or in the nearest one that holds all of the runs."""
    if len(runs) == 1:
        return runs[0].folder.path / "report"
    parents = [run.folder.path.absolute().parent for run in runs]
    return Path(os.path.commonpath(parents)) / "report"


def check_output(output: Path) -> None:
    """Raise UserError unless a report can be written there and replaces nothing but a report."""
    for folder in (output, output / "figures"):
        check_writable(folder, "--output")
    index = output / "index.html"
    check(
        not index.exists() or page.is_by(GENERATOR, index),
        f"{index} is not a report of this program: give another --output",
    )


class Pictures:
    """The PNG files beside the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: set[str] = set()

    def chart(self, name: str, figure: Figure, title: str, alone: Figure | None = None) -> Markup:
        """A figure for the page, and as a file; `alone` is what the file shows instead."""
        self.made.add(f"{name}.png")
        charts.save_png(alone or figure, self.folder / f"{name}.png")
        return Markup(charts.svg(figure, name, title))

    def save(self, name: str, picture: Any) -> None:
        """A picture as a file."""
        self.made.add(f"{name}.png")
        write_atomically(self.folder / f"{name}.png", lambda partial: picture.save(partial, "PNG"))

    def sweep(self) -> None:
        """Remove what an earlier report drew and this one did not."""
        for file in self.folder.glob("*.png"):
            if re.fullmatch(FILES, file.stem) and file.name not in self.made:
                file.unlink()


# ---------------------------------------------------------------- the runs and their curves


def key(group: Group, place: str) -> Markup:
    """How a group is drawn, and its letter, for one place in the page."""
    if not group.mark:
        return Markup("")
    line = charts.svg(charts.key(group.style), f"{place}-{group.mark}", f"line {group.mark}")
    return element("span", Markup(line), " ", element("b", group.mark), " ", class_="key")


def front(groups: list[Group]) -> Iterator[Markup]:
    runs = [run for g in groups for run in g.runs]
    yield element("h1", "SimSiam: ", runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    yield element("p", f"Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.", class_="small")
    for run in runs:
        yield from (element("p", f"{run.name}: {note}.") for note in run.notes)
    for g in groups:
        words = element("span", f" ({state(g)})", class_="small")
        yield element("p", key(g, "legend"), g.label, words)
    columns = [key(g, "runs") if g.mark else g.label for g in groups]
    rows = figures(groups)
    about = "After the last epoch; kNN is top-1 on the test images."
    if rows[-1][0] == PAPER:
        about += " Of the paper: ImageNet, linear, 100 epochs."
    yield page.table(about, ["", *columns], rows)


def state(group: Group) -> str:
    """How far the runs have come."""
    return "; ".join(dict.fromkeys(run.status() for run in group.runs))


def figures(groups: list[Group]) -> list[list[str]]:
    """Rows of a table: its name, and what each group has come to so far."""

    def last(column: str) -> Callable[[Run], float | None]:
        return lambda run: next(reversed([y for epoch, y in run.curve(column).items() if epoch > 0]), None)

    def best(run: Run) -> float | None:
        return max((y for epoch, y in run.curve("kNN_accuracy").items() if epoch > 0), default=None)

    def speed(run: Run) -> float | None:
        each = list(run.curve("images_per_second").values())
        return sum(each) / len(each) if each else None

    def time(group: Group) -> str:
        return str(timedelta(seconds=round(sum(sum(run.curve("seconds").values()) for run in group.runs))))

    said = paper_says([g.runs[0].settings for g in groups], DEFAULTS)
    paper = [[PAPER, *(words or NOTHING for words in said)]] if any(said) else []
    return [
        ["kNN, last (%)", *(g.each(last("kNN_accuracy")) for g in groups)],
        ["kNN, best (%)", *(g.each(best) for g in groups)],
        ["kNN, untrained (%)", *(g.each(lambda run: run.curve("kNN_accuracy").get(0)) for g in groups)],
        ["loss", *(g.each(last("train_loss"), 4) for g in groups)],
        ["z_std", *(g.each(last("z_std"), 3) for g in groups)],
        ["images/s, mean", *(g.each(speed, 0, ",") for g in groups)],
        ["time, in all", *map(time, groups)],
        *paper,
    ]


def curves(groups: list[Group], pictures: Pictures) -> Iterator[Markup]:
    yield element("h2", "Curves")
    cells, banded = [], False
    for column, axis, zero, about in CURVES:
        drawn = [(g, *g.curve(column)) for g in groups]
        series = [charts.Series(g.mark, g.label, g.style, x, y, s) for g, x, y, s in drawn if x]
        if not series:
            continue
        figure = charts.curves(series, "epoch", axis, zero)
        alone = charts.curves(series, "epoch", axis, zero, legend=bool(groups[0].mark))
        chart = pictures.chart(column.split("/")[-1], figure, f"{axis} by epoch. {in_words(series)}", alone)
        banded |= any(s.spread is not None for s in series)
        cells.append(page.figure(chart, f"{about}."))
    bands = "Of several seeds the line is the mean, and the band one deviation to each side." * banded
    cells.append(element("div", element("h3", "How to read them"), element("p", HOW_TO_READ), element("p", bands)))
    yield element("div", *cells, class_="grid")


def in_words(series: Sequence[charts.Series]) -> str:
    """What a chart shows, for those who do not see it."""
    ends = ((s.mark or s.label, s.y[0], s.x[0], s.y[-1], s.x[-1]) for s in series)
    return " ".join("{}: from {:.4g} (epoch {}) to {:.4g} (epoch {}).".format(*end) for end in ends)


# ---------------------------------------------------------------- what was measured, and pictures


def results(groups: list[Group]) -> Iterator[Markup]:
    names = list(dict.fromkeys(name for g in groups for run in g.runs for name in measures(run)))
    yield element("h2", "Results")
    if not names:
        yield element("p", "Nothing was measured yet: the commands knn, linear and finetune leave their figures here.")
        return
    yield element(
        "p", "Top-1 on the test images, in %, by the commands knn, linear and finetune; \u00b1 is over seeds."
    )
    cells = []
    for title, kinds in (("by nearest neighbours", ("kNN",)), ("with labels", ("linear", "fine-tuned"))):
        mine = [name for kind in kinds for name in names if name.startswith(kind)]
        head = [title, *(key(g, kinds[0]) if g.mark else g.label for g in groups)]
        rows = [[name, *(cell(g, name) for g in groups)] for name in mine]
        cells += [page.table("", head, rows)] if rows else []
    yield element("div", *cells, class_="grid")


def portraits(config: Report, groups: list[Group], pictures: Pictures) -> Iterator[Markup]:
    """A section for the first run of each group; of the first few, for they take time and room."""
    yield element("h2", "What the features know")
    if len(groups) > PORTRAITS:
        yield element("p", f"Of the first {PORTRAITS} of {len(groups)}; a report of the others alone shows theirs.")
    for g in groups[:PORTRAITS]:
        run, portrait = g.runs[0], None
        several = f", of {run.name}" if len(g.runs) > 1 else ""
        yield element("h3", key(g, "features"), g.label, several)
        if config.report.pictures:
            try:
                portrait = draw_portrait(run, config.device.accelerator, config.report.data_dir)
            except UserError as error:
                yield element("p", f"Without neighbours and map: {error}.", class_="small")
        yield from (shown(portrait, g.mark, run.name, pictures) if portrait else recorded(run, g.mark, pictures))


def shown(portrait: Portrait, mark: str, name: str, pictures: Pictures) -> Iterator[Markup]:
    """The pictures of a checkpoint."""
    prefix, names = f"{mark}_" if mark else "", portrait.names
    if portrait.epoch:
        yield element("p", f"Of the checkpoint after epoch {portrait.epoch}.", class_="small")
    yield neighbours(portrait.gallery, portrait.of)
    about = f"{name}: {portrait.of} on the left, their nearest train images, by cosine"
    pictures.save(f"{prefix}neighbours", gallery(about, portrait.gallery))
    there = set(portrait.labels.tolist()) if len(names) <= MANY_CLASSES else set()
    named = {label: name for label, name in enumerate(names) if label in there}
    title = f"Map of the features of {len(portrait.points):,} {portrait.of} by {portrait.method}"
    title += f", {len(names)} classes" * (len(names) > 0)
    drawn = pictures.chart(f"{prefix}map", charts.scatter(portrait.points, portrait.labels, named), title)
    about = {"t-SNE": "neighbours stay neighbours; how far groups are from each other means little"}
    how = about.get(portrait.method, "along the two directions of the greatest variance")
    middle = " Each name stands in the middle of its class." * bool(named)
    cells = list(classes(portrait.classes, prefix, pictures)) if portrait.classes else []
    cells.append(page.figure(drawn, f"{title}: {how}.{middle}"))
    if portrait.views:
        cells.append(views(portrait.views, prefix, pictures))
    yield element("div", *cells, class_="grid")


def recorded(run: Run, mark: str, pictures: Pictures) -> Iterator[Markup]:
    """The same, as far as the run's folder has it already."""
    prefix, known, stored = f"{mark}_" if mark else "", known_classes(run), stored_views(run)
    cells = [*(classes(known, prefix, pictures) if known else ())]
    if stored:
        cells.append(views(stored, prefix, pictures))
    yield element("div", *cells, class_="grid") if cells else element("p", "There is nothing to show.", class_="small")


def neighbours(rows: list[list[Tile]], of: str) -> Markup:
    """The gallery: a query, one of the images `of`, and its neighbours in each row."""
    lines = []
    for row in rows:
        tiles = [element("figure", thumbnail(row[0], of.removesuffix("s")), element("figcaption", row[0].text))]
        for tile in row[1:]:
            alike = "same" if tile.frame == SAME else "other" if tile.frame == OTHER else ""
            words = {"same": "neighbour of the same class", "other": "neighbour of another class"}
            image = thumbnail(tile, words.get(alike, "neighbour"))
            tiles.append(element("figure", image, element("figcaption", tile.text), class_=alike))
        lines.append(element("div", *tiles, class_="row"))
    about = (
        f"Nearest neighbours: {of} on the left, beside each the train images whose features are nearest, with "
        "their class and cosine."
    )
    if any(tile.frame for row in rows for tile in row):
        about += " Solid blue frame: of the same class; dashed orange: of another."
    scroll = element("div", *lines, class_="wide", tabindex="0", role="region", aria_label="nearest neighbours")
    return page.figure(scroll, about)


def thumbnail(tile: Tile, what: str) -> Markup:
    picture = Image.fromarray(tile.image.permute(1, 2, 0).cpu().numpy())
    return page.picture(picture, f"{tile.text}, {what}")


def classes(found: Classes, prefix: str, pictures: Pictures) -> Iterator[Markup]:
    """Accuracy of each class, the best first, and the confusion of classes."""
    totals = found.counts.sum(axis=1)
    shares = 100 * found.counts / np.maximum(totals, 1)[:, None]
    order = [int(i) for i in np.argsort(-shares.diagonal(), kind="stable") if totals[i]]
    few = order if len(order) <= MANY_CLASSES else [*order[:10], *order[-10:]]
    extremes = "" if few == order else ", the ten best and the ten worst"
    values = [float(shares[i, i]) for i in few]
    words = ", ".join(f"{found.names[i]} {value:.1f}" for i, value in zip(few, values, strict=True))
    chart = charts.bars([found.names[i] for i in few], values, "test images classified rightly (%)")
    drawn = pictures.chart(f"{prefix}classes", chart, f"Accuracy of each class in %: {words}")
    yield page.figure(drawn, f"Accuracy of each class{extremes}: {found.how}.")
    named = found.names if len(found.names) <= MANY_CLASSES else None
    chart = charts.matrix(shares, named, "true class", "predicted class")
    wrong = shares - np.diag(shares.diagonal())
    r, c = (int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    worst = f"most often {found.names[r]} is taken for {found.names[c]} ({wrong[r, c]:.1f} %)"
    drawn = pictures.chart(f"{prefix}confusion", chart, f"Confusion of classes: {worst}")
    yield page.figure(drawn, f"Confusion, in % of each true class (the darkest is {shares.max():.0f} %); {worst}.")


def views(picture: Image.Image, prefix: str, pictures: Pictures) -> Markup:
    pictures.save(f"{prefix}views", picture)
    words = "Train images in the left column, and beside each its augmented views, which the run learned from."
    return page.figure(page.picture(picture, words, scale=1.5), words)


# ---------------------------------------------------------------- where it is all from


def origins(groups: list[Group]) -> Iterator[Markup]:
    """The command, versions and hardware of each run."""
    runs = [(g, run) for g in groups for run in g.runs]
    yield element("h2", "How it was made")
    for g, run in runs:
        yield element("h3", key(g, "origin") if run is g.runs[0] else "", run.name)
        where = f"In {run.folder.path.resolve()}; flags that are left out had their default."
        yield element("p", where, class_="small")
        yield element("pre", command_line(run.settings, " \\\n    ") if run.settings else "unknown")
    rows = [list(row) for row in zip(*(machine(run) for _, run in runs), strict=True)]
    names = ["processor", "GPU", "precision", "devices", *PACKAGES]
    table = [[name, *row] for name, row in zip(names, rows, strict=True)]
    head = ["", *(run.name for _, run in runs)]
    yield page.table("Hardware and versions; of a run that was resumed, those of its last part.", head, table)


def machine(run: Run) -> list[str]:
    """Processor, GPU, precision, devices, and the version of each package."""
    known, gpu = part(run.resolved, "hardware"), "none"
    if run.resolved.get("accelerator") != "cpu":
        memory = number(known.get("gpu_memory_gib"))
        gpu = f"{known.get('gpu', 'unknown')}" + (f", {memory:g} GiB" if memory else "")
    cpu = f"{known.get('cpu') or 'unknown'}" + (f", {known['cores']} cores" if "cores" in known else "")
    rest = [run.resolved.get(name) for name in ("precision", "devices")] + [run.versions.get(name) for name in PACKAGES]
    return [cpu, gpu, *("unknown" if value is None else str(value) for value in rest)]
