"""The command `report`: write one page about one or several runs."""

import importlib
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from simsiam.config.commands import pretrain_command
from simsiam.config.evaluation_commands import Report
from simsiam.report.charts import file_stem, is_figure, render_curves
from simsiam.report.find_runs import GENERATOR, PAGE_FILE, is_report, read_runs
from simsiam.report.groups import Group, group_runs
from simsiam.report.page import render_page
from simsiam.report.records import Run
from simsiam.report.summary import (
    PAPER_RESULT,
    PRINTED_METRICS,
    UNKNOWN,
    describe_knn,
    summarize_groups,
)
from utils.console import print_line, print_table
from utils.errors import UserError, require
from utils.filesystem import check_writable, write_atomically, write_text
from utils.run_dir import REPORT_FOLDER

MAX_SECTIONS = 4  # groups that get pictures of their checkpoint, which take time and space
MAX_VIEWS_SIDE = 2000  # pixels of the picture of views on the page


def report(config: Report) -> None:
    """Read the runs, write the page and its figures, and print the most important metrics.

    Raises:
        UserError: if there is no run, or the page cannot be written or would replace a file that
            is not a report.
    """
    runs = read_runs(config.report.runs)
    output = choose_output(config, runs)
    page_file = output / PAGE_FILE
    figures_folder = output / "figures"
    clear_output(page_file, figures_folder)

    groups = group_runs(runs)
    summary = summarize_groups(groups)
    page = render_page(
        "template.html.j2",
        **describe_runs(groups),
        generator=GENERATOR,
        paper_result=PAPER_RESULT,
        pretrain_command=pretrain_command,
        summary=summary,
        knn_description=describe_knn(runs),
        curves=render_curves(groups, figures_folder),
        sections=[
            describe_features(group, config, figures_folder) for group in groups[:MAX_SECTIONS]
        ],
    )
    write_text(page_file, page)

    print_summary(groups, summary)
    print_line(f"page      {page_file}")
    print_line(f"          {page_file.resolve().as_uri()}")
    print_line(f"figures   {figures_folder}")


def choose_output(config: Report, runs: Sequence[Run]) -> Path:
    """Return the folder for the page and its figures."""
    if config.report.output:
        return Path(config.report.output).expanduser()
    # The folder of a single run, or the folder that contains all runs.
    common_folder = Path(os.path.commonpath([run.folder.path for run in runs]))
    return common_folder / REPORT_FOLDER


def clear_output(page_file: Path, figures_folder: Path) -> None:
    """Check that the page can be written, and remove the PNG files of an earlier report.

    Raises:
        UserError: if the folders cannot be written, or there is a page that is not a report.
    """
    for folder in (page_file.parent, figures_folder):
        check_writable(folder, "--output")
    is_free = not page_file.exists() or is_report(page_file)
    require(is_free, f"{page_file} is not a report of this program. Pass another --output.")
    for file in figures_folder.glob("*.png"):
        if is_figure(file):
            file.unlink()


def describe_runs(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the variables of the page's template that need neither charts nor a checkpoint."""
    runs = [run for group in groups for run in group.runs]
    subject = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"

    # Each name once, in the order in which the runs have them.
    accuracy_names = dict.fromkeys(name for run in runs for name in run.accuracies)
    machine_names = dict.fromkeys(name for run in runs for name in run.machine)
    return {
        "title": f"SimSiam: {subject}",
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "groups": groups,
        "runs": runs,
        "has_knn": any(run.values("kNN_accuracy") for run in runs),
        "results": {name: [group.accuracy(name) for group in groups] for name in accuracy_names},
        "machines": {
            name: [run.machine.get(name, UNKNOWN) for run in runs] for name in machine_names
        },
    }


def describe_features(group: Group, config: Report, folder: Path) -> dict[str, Any]:
    """Return the variables of a section of the page: pictures of a group's first run.

    The section shows the run's augmented views, and the analysis of its checkpoint. If the
    checkpoint cannot be used, `problem` is the reason.
    """
    run = group.runs[0]
    stem = file_stem(folder, group)
    section: dict[str, Any] = {
        "group": group,
        "run": run,
        "problem": None,
        "gallery": [],
        "charts": [],
        "views": read_views(run),
    }
    if section["views"] is not None:
        views = run.folder.views
        write_atomically(Path(f"{stem}{views.name}"), partial(shutil.copyfile, views))
    if config.report.pictures:
        # The module imports torch. A page without pictures does not wait for that.
        analysis = importlib.import_module("simsiam.report.analysis")
        try:
            section.update(analysis.analyse_run(run, config, stem))
        except UserError as error:
            section["problem"] = str(error).rstrip(".")  # the template ends the sentence
    return section


def read_views(run: Run) -> Image.Image | None:
    """Return the picture of augmented views in a run's folder; None without a readable one."""
    if not run.folder.views.exists():
        return None
    with run.note_damage(run.folder.views), Image.open(run.folder.views) as file:
        views = file.convert("RGB")
        views.thumbnail((MAX_VIEWS_SIDE, MAX_VIEWS_SIDE))
        return views
    return None  # the file is damaged: `note_damage` has caught the error


def print_summary(groups: Sequence[Group], summary: dict[str, list[str]]) -> None:
    """Print the label of each group, and a table of the most important metrics."""
    for group in groups:
        line = f"{group.label} ({group.status})"
        if group.mark:
            line = f"{group.mark}: {line}"
        print_line(line)
    names = [name for name in PRINTED_METRICS if name in summary]
    rows: list[list[str]] = []
    for i, group in enumerate(groups):
        rows.append([group.mark] + [summary[name][i] for name in names])
    print_table("", ["", *names], rows)
