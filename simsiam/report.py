"""The command `report`: one page of a run, or of several side by side."""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from simsiam.config import Report, command_line
from simsiam.gather import NOTHING, Group, Run, cell, group, measures, number, part, read_runs
from simsiam.pictures import SAME, Tile, gallery
from simsiam.portrait import Classes, Portrait, draw_portrait, known_classes, stored_views
from utils import charts, page
from utils.device import choose_accelerator
from utils.errors import UserError, check
from utils.files import check_writable, write_atomically, write_text
from utils.page import Markup, element
from utils.terminal import print_table, say

PORTRAITS = 4  # runs that are shown by pictures
MANY_CLASSES = 20  # of more, charts show the extremes
CURVES = (  # column, axis, whether the axis begins at zero
    ("kNN_accuracy", "kNN accuracy (%)", False),
    ("train_loss", "loss (negative cosine)", False),
    ("z_std", "z_std (healthy: near 1)", True),
    ("learning_rate", "learning rate at the epoch's end", True),
    ("images_per_second", "speed (images/s)", True),
    ("perf/mfu", "share of the bf16 peak", True),
)
FILES = r"(kNN_accuracy|train_loss|z_std|learning_rate|images_per_second|mfu)|[A-Z]*_?(classes|confusion|map|neighbours|views)"
HOW_TO_READ = (
    "The loss is a negative cosine: it falls from 0 towards \u22121, and \u22121 is not the goal. A loss near \u22121 "
    "whose z_std falls is collapsing: all images get the same projection. A healthy run has z_std near 1 and a kNN "
    "accuracy that climbs. z_std is the deviation of the L2-normalised projections over a batch, times the root of "
    "their dimension."
)


def report(config: Report) -> None:
    """Gather, draw, write; say where the page is and what it comes to."""
    choose_accelerator(config.accelerator)
    runs = read_runs(config.runs)
    output = Path(config.output).expanduser() if config.output else default_output(runs)
    check_output(output)
    groups = group(runs)
    pictures = Pictures(output / "figures")
    body = [*front(groups), *curves(groups, pictures), *results(groups), *portraits(config, groups, pictures)]
    body += origins(groups)
    title = f"SimSiam: {runs[0].name}" if len(runs) == 1 else f"SimSiam: {len(runs)} runs"
    pictures.sweep()
    index = output / "index.html"
    write_text(index, page.page(title, body, charts.css(dark=False), charts.css(dark=True)))
    head, rows = run_table(groups)
    columns = [0, *(head.index(name) for name in ("kNN %", "loss", "z_std"))]
    short = [[str(row[i]).replace("\u00b1", "+-").replace(NOTHING, "-") for i in columns] for row in rows]
    print_table("last epochs", [head[i] for i in columns], short)
    say(f"page      {index}\n          {index.resolve().as_uri()}\nfigures   {pictures.folder}")


def default_output(runs: Sequence[Run]) -> Path:
    """`report` in the run's folder, or in the nearest one that holds all of the runs."""
    if len(runs) == 1:
        return runs[0].folder.path / "report"
    parents = [run.folder.path.absolute().parent for run in runs]
    shared = [
        parts[0] for parts in takewhile(lambda p: len(set(p)) == 1, zip(*(p.parts for p in parents), strict=False))
    ]
    return Path(*shared) / "report"


def check_output(output: Path) -> None:
    """Raise UserError unless a report can be written there and replaces nothing but a report."""
    for folder in (output, output / "figures"):
        check_writable(folder, "--output")
    index = output / "index.html"
    known = not index.exists() or (index.is_file() and page.GENERATOR in index.read_text(errors="replace")[:2000])
    check(known, f"{index} is not a report of this program: give another --output")


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


def key(group: Group) -> Markup:
    """How a group is drawn, and its letter."""
    if not group.mark:
        return Markup("")
    line = charts.svg(charts.key(group.style), f"key{group.mark}", f"line {group.mark}")
    return element("span", Markup(line), " ", element("b", group.mark), " ", class_="key")


def front(groups: list[Group]) -> Iterator[Markup]:
    runs = [run for g in groups for run in g.runs]
    yield element("h1", "SimSiam: ", runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    yield element("p", f"Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. ", states(runs), class_="small")
    for run in runs:
        yield from (element("p", f"{run.name}: {note}.") for note in run.notes)
    head, rows = run_table(groups)
    rows = [[Markup(key(g) + page.text(g.label)), *row[1:]] for g, row in zip(groups, rows, strict=True)]
    yield page.table("Figures of the last epoch; kNN is top-1 on the test images.", head, rows)


def states(runs: Sequence[Run]) -> str:
    return "; ".join(f"{run.name}: {run.status()}" for run in runs) + "."


def run_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a group's figures at the end of its runs, so far."""
    head = ["run", "kNN %", "best kNN %", "untrained %", "loss", "z_std", "images/s", "time", "state"]
    return head, [run_row(g) for g in groups]


def run_row(group: Group) -> list[str]:
    def last(column: str) -> Callable[[Run], float | None]:
        return lambda run: next(reversed([y for epoch, y in run.curve(column).items() if epoch > 0]), None)

    def best(run: Run) -> float | None:
        return max((y for epoch, y in run.curve("kNN_accuracy").items() if epoch > 0), default=None)

    def untrained(run: Run) -> float | None:
        return run.curve("kNN_accuracy").get(0)

    def speed(run: Run) -> float | None:
        each = list(run.curve("images_per_second").values())
        return sum(each) / len(each) if each else None

    seconds = sum(sum(run.curve("seconds").values()) for run in group.runs)
    return [
        group.name,
        group.each(last("kNN_accuracy")),
        group.each(best),
        group.each(untrained),
        group.each(last("train_loss"), 4),
        group.each(last("z_std"), 3),
        group.each(speed, 0, ","),
        str(timedelta(seconds=round(seconds))),
        "; ".join(dict.fromkeys(run.status() for run in group.runs)),
    ]


def curves(groups: list[Group], pictures: Pictures) -> Iterator[Markup]:
    yield element("h2", "Curves")
    cells = []
    for column, axis, zero in CURVES:
        drawn = [(g, *g.curve(column)) for g in groups]
        series = [charts.Series(g.mark, g.label, g.style, x, y, s) for g, x, y, s in drawn if x]
        if not series:
            continue
        figure = charts.curves(series, "epoch", axis, zero)
        alone = charts.curves(series, "epoch", axis, zero, legend=bool(groups[0].mark))
        chart = pictures.chart(column.split("/")[-1], figure, f"{axis} by epoch. {in_words(series)}", alone)
        cells.append(page.figure(chart, caption(axis, series)))
    cells.append(element("div", element("h3", "How to read them"), element("p", HOW_TO_READ)))
    if groups[0].mark:
        keys = [element("p", key(g), page.text(g.label), class_="small") for g in groups]
        yield element("div", *keys)
    yield element("div", *cells, class_="grid")


def in_words(series: Sequence[charts.Series]) -> str:
    """What a chart shows, for those who do not see it."""
    return " ".join(
        f"{s.mark or s.label}: from {s.y[0]:.4g} (epoch {s.x[0]}) to {s.y[-1]:.4g} ({s.x[-1]})." for s in series
    )


def caption(axis: str, series: Sequence[charts.Series]) -> str:
    banded = any(s.spread is not None for s in series)
    return axis[0].upper() + axis[1:] + ". Line: mean of the seeds; band: one deviation to each side." * banded


# ---------------------------------------------------------------- what was measured, and pictures


def results(groups: list[Group]) -> Iterator[Markup]:
    names = list(dict.fromkeys(name for g in groups for run in g.runs for name in measures(run)))
    yield element("h2", "Results")
    if not names:
        yield element("p", "Nothing was measured yet: the commands knn, linear and finetune leave their figures here.")
        return
    names.sort(key=lambda name: ("kNN", "linear", "fine-tuned").index(re.split("[, ]", name)[0]))
    head = ["top-1 on test images, in %", *(key(g) if g.mark else g.label for g in groups)]
    rows = [[name, *(cell(g, name) for g in groups)] for name in names]
    yield page.table("By the commands knn, linear and finetune; \u00b1 is the deviation over seeds.", head, rows)


def portraits(config: Report, groups: list[Group], pictures: Pictures) -> Iterator[Markup]:
    """A section for the first run of each group; of the first few, for they take time and room."""
    yield element("h2", "What the features know")
    if len(groups) > PORTRAITS:
        yield element(
            "p", f"Of the first {PORTRAITS} of {len(groups)} here; call the report with others to see theirs."
        )
    for g in groups[:PORTRAITS]:
        run, portrait = g.runs[0], None
        several = f", of {run.name}" if len(g.runs) > 1 else ""
        yield element("h3", key(g), g.label, several)
        if config.pictures:
            try:
                portrait = draw_portrait(run, config.accelerator, config.data_dir)
            except UserError as error:
                yield element("p", f"Without neighbours and map: {error}.", class_="small")
        yield from (shown(portrait, g.mark, run.name, pictures) if portrait else recorded(run, g.mark, pictures))


def shown(portrait: Portrait, mark: str, name: str, pictures: Pictures) -> Iterator[Markup]:
    """The pictures of a checkpoint."""
    prefix, names = f"{mark}_" if mark else "", portrait.classes.names
    if portrait.epoch:
        yield element("p", f"Of the checkpoint after epoch {portrait.epoch}.", class_="small")
    yield neighbours(portrait.gallery)
    about = f"{name}: test images on the left, their nearest train images, by cosine"
    pictures.save(f"{prefix}neighbours", gallery(about, portrait.gallery))
    sizes = np.bincount(portrait.labels, minlength=len(names))
    named = {label: names[label] for label in range(len(names)) if sizes[label] and len(names) <= MANY_CLASSES}
    title = f"Map of the features of {len(portrait.points):,} test images by {portrait.method}, {len(names)} classes"
    drawn = pictures.chart(f"{prefix}map", charts.scatter(portrait.points, portrait.labels, named), title)
    how = (
        "neighbours stay neighbours; distances between groups mean little"
        if portrait.method == "t-SNE"
        else ("the two directions of the greatest variance")
    )
    cells = [
        *classes(portrait.classes, prefix, pictures),
        page.figure(
            drawn, f"{title}: {how}. Each name stands in the middle of its class." if named else f"{title}: {how}."
        ),
    ]
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


def neighbours(rows: list[list[Tile]]) -> Markup:
    """The gallery: a query and its neighbours in each row."""
    lines = []
    for row in rows:
        tiles = [element("figure", thumbnail(row[0], "test image"), element("figcaption", row[0].text))]
        for tile in row[1:]:
            alike = "same" if tile.frame == SAME else "other"
            image = thumbnail(tile, "neighbour of the same class" if alike == "same" else "neighbour of another class")
            tiles.append(element("figure", image, element("figcaption", tile.text), class_=alike))
        lines.append(element("div", *tiles, class_="row"))
    about = (
        "Nearest neighbours: test images on the left, beside each the train images whose features are nearest, with "
        "their class and cosine. Solid blue frame: of the same class; dashed orange: of another."
    )
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
    yield page.figure(drawn, f"Confusion, in % of each true class: {worst}.")


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
        yield element("h3", key(g) if run is g.runs[0] else "", run.name)
        yield element(
            "p", f"In {run.folder.path.resolve()}; flags that are left out had their default.", class_="small"
        )
        yield element("pre", command_line(run.settings) if run.settings else "unknown")
    names = ["python", "torch", "torchvision", "pytorch-lightning"]
    rows = [[run.name, *machine(run), *(run.versions.get(name, "unknown") for name in names)] for _, run in runs]
    head = ["run", "processor", "GPU", "precision", "devices", *names]
    yield page.table("Hardware and versions; of a run that was resumed, those of its last part.", head, rows, "words")


def machine(run: Run) -> list[str]:
    known, gpu = part(run.resolved, "hardware"), "none"
    if run.resolved.get("accelerator") != "cpu":
        memory = number(known.get("gpu_memory_gib"))
        gpu = f"{known.get('gpu', 'unknown')}" + (f", {memory:g} GiB" if memory else "")
    cpu = f"{known.get('cpu') or 'unknown'}" + (f", {known['cores']} cores" if "cores" in known else "")
    return [cpu, gpu, str(run.resolved.get("precision", "unknown")), str(run.resolved.get("devices", "unknown"))]
