"""Find and read the runs of a report, in the folders that the command line names."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from simsiam.report.records import Run, is_run, read_run, read_text_tolerantly
from utils.console import print_line
from utils.errors import require

PAGE_FILE = "index.html"  # of a report
GENERATOR = "SimSiam report"  # content of <meta name="generator"> in the page
PAGE_HEAD = 2000  # the <meta> is within this number of characters at the start of a page
MAX_DEPTH = 3  # levels of folders that are searched; `report runs` finds ablation/VARIANT/seed_N


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read each run once. A folder that contains runs stands for all of them.

    Folders that contain nothing but an earlier report are ignored, so that `report runs/*` works.

    Raises:
        UserError: if a path is neither the folder of a run nor contains runs, or if no run has
            finished an epoch.
    """
    # Each folder once, in the order of the command line.
    folders = list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))
    titles: dict[Path, str] = {}  # by the run's folder; a run without a title has the folder's name
    for folder in folders:
        inner_runs = find_runs_below(folder)
        if is_run(folder):
            titles[folder] = ""
            _print_ignored_runs(folder, inner_runs, folders)
        elif inner_runs:
            for run in inner_runs:
                titles.setdefault(run, str(run.relative_to(folder.parent)))
        elif not is_report(folder / PAGE_FILE):
            titles[folder] = ""  # `read_run` below says what is wrong with this folder

    runs = [read_run(folder, title) for folder, title in titles.items()]
    # The first row is the network before training.
    has_epochs = any(len(run.rows) > 1 for run in runs)
    require(has_epochs, f"{', '.join(paths)}: no epoch is recorded yet")
    return runs


def _print_ignored_runs(folder: Path, inner_runs: Sequence[Path], named: Collection[Path]) -> None:
    """Print which runs inside the folder of another run are not in the report."""
    ignored = [str(run.relative_to(folder)) for run in inner_runs if run not in named]
    if ignored:
        names = ", ".join(ignored)
        print_line(
            f"{folder.name}: the runs inside this run are left out: {names}. "
            "Name their folders too to include them."
        )


def find_runs_below(path: Path, depth: int = MAX_DEPTH) -> list[Path]:
    """Return the folders of all runs inside a folder, for example of --seeds or ablate."""
    if depth == 0 or not path.is_dir():
        return []
    runs: list[Path] = []
    for folder in sorted(path.iterdir(), key=lambda folder: split_numbers(folder.name)):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if is_run(folder):
            runs.append(folder)
        else:
            runs += find_runs_below(folder, depth - 1)
    return runs


def split_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts seed_2 before seed_10."""
    key: list[tuple[int, str]] = []
    for part in re.split(r"(\d+)", name):
        if part.isdecimal():
            key.append((int(part), ""))
        else:
            key.append((-1, part))
    return key


def is_report(page: Path) -> bool:
    """Return whether an HTML file is a report that this program wrote."""
    return page.is_file() and f'content="{GENERATOR}"' in read_text_tolerantly(page)[:PAGE_HEAD]
