"""Reads what runs left behind. Files may hold anything: what cannot be read is left out, and noted."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from string import ascii_uppercase
from typing import Any, NamedTuple

import yaml
from PIL import Image

from simsiam.collapse import is_collapsed
from simsiam.config.commands import PRETRAIN_DEFAULTS, settings_that_matter
from utils.console import plural, print_line
from utils.errors import require
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory
from utils.settings import to_flags

GENERATOR = "SimSiam report"  # of the page's <meta name="generator">
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    SyntaxError,
    yaml.YAMLError,
)
DAMAGE += (Image.DecompressionBombError,)  # what reading a file raises that may hold anything
DEEPEST = 3  # levels below a named folder, where runs are looked for: ablation/VARIANT/seed_N
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def printable(value: Any) -> str:
    """Text that HTML and SVG can hold: control characters and lone surrogates become U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", str(value))


def read_damaged(file: Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 become U+FFFD."""
    return file.read_text(encoding="utf-8", errors="replace")


def numbers(row: Any) -> dict[str, float]:
    """The figures of a mapping; what is none, such as text or NaN, is left out."""
    known = row.items() if isinstance(row, dict) else ()
    return {str(name): y for name, y in known if type(y) in (int, float) and abs(y) < 1e12}


@dataclass
class Run:
    """One run's files."""

    folder: RunDirectory
    rows: list[
        dict[str, float]
    ]  # of metrics.jsonl, after epoch 0: the untrained network, known of a finished run
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(
        default_factory=dict
    )  # hardware, precision, devices and versions
    accuracies: dict[str, list[float]] = field(
        default_factory=dict
    )  # top-1 in percent, by what measured it
    notes: list[str] = field(default_factory=list)  # what is damaged
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or self.folder.path.name

    @property
    def status(self) -> str:
        row, unfinished = self.rows[-1], "running" if is_locked(self.folder.path) else "stopped"
        state = "finished" if self.folder.summary.exists() else unfinished
        collapsed = "z_std" in row and is_collapsed(row["z_std"], row.get("rankme"))
        return (
            f"{state}, {row['epoch']:.0f} of {self.settings.get('epochs', '?')} epochs"
            + ", collapsed" * collapsed
        )

    def values(self, column: str) -> list[float]:
        """Of the epochs in which it was measured, without the untrained network."""
        return [row[column] for row in self.rows[1:] if column in row]

    def comparable_settings(self) -> dict[str, Any]:
        """Those that change what is learned, without the seed; an older run lacks those at their default."""
        return (
            settings_that_matter({**PRETRAIN_DEFAULTS, **self.settings, "seed": None})
            if self.settings
            else {}
        )

    def is_further_seed(self, runs: "Sequence[Run]") -> bool:
        """Whether it differs from these in the seed, and in nothing else."""
        alike = self.comparable_settings() == runs[0].comparable_settings() != {}
        return alike and self.settings.get("seed") not in [run.settings.get("seed") for run in runs]

    @contextmanager
    def note_damage(self, file: Path) -> Iterator[None]:
        try:
            yield
        except DAMAGE:
            self.notes.append(f"{file.relative_to(self.folder.path)} is damaged or missing")


def read_run(path: Path, title: str = "") -> Run:
    """UserError where there is no run."""
    folder = RunDirectory(path)
    run = Run(folder, [{"epoch": 0}], title=title)
    require(path.exists(), f"{path}: no such folder")
    require(path.is_dir(), f"{path} is a file, not the folder of a run")
    require(is_run(path), f"{path} is not the folder of a run, and holds none")
    with run.note_damage(folder.config):
        content = yaml.safe_load(read_damaged(folder.config))
        resolved, versions = content.get("resolved") or {}, content.get("versions") or {}
        chosen = {name: resolved[name] for name in ("precision", "devices") if name in resolved}
        run.machine = {**(resolved.get("hardware") or {}), **chosen, **versions}
        run.settings = {str(name): value for name, value in content["settings"].items()}
        if digest := resolved.get("images"):  # of a person's own: which they are
            run.settings["images"] = f"of {Path(run.settings['data_dir']).name} ({digest:.8})"
    with run.note_damage(folder.metrics):
        run.rows += [row for row in map(numbers, folder.rows()) if row.get("epoch", 0) > 0]
    if folder.summary.exists():
        with run.note_damage(folder.summary):
            untrained = json.loads(read_damaged(folder.summary)).get("kNN_untrained")
            run.rows[0] |= numbers({"kNN_accuracy": untrained})
    for file in sorted(folder.results.glob("*/summary.json")):
        with run.note_damage(file):
            run.accuracies |= read_accuracies(file.parent.name, json.loads(read_damaged(file)))
    return run


def read_accuracies(name: str, content: Mapping[str, Any]) -> dict[str, list[float]]:
    """What the commands knn, linear and finetune measured, of finetune one for each seed."""
    measured = {}
    for row in (row for row in content.get("table", ()) if "accuracy" in numbers(row)):
        weight = "" if row.get("k") == 1 else f", T {row.get('temperature')}"
        measured[f"kNN, {row.get('features')} features, k {row.get('k')}{weight}"] = [
            row["accuracy"]
        ]
    labels = content.get("labels") or content.get("train_images")
    epochs = content["settings"].get("epochs") if "finetune" in name else None
    counts = [
        plural(count, what) for count, what in ((labels, "label"), (epochs, "epoch")) if count
    ]
    if seeds := [*numbers(content.get("seeds") or {"": content.get("test_accuracy")}).values()]:
        measured[", ".join([name.replace("_", " "), *counts])] = seeds
    return measured


def is_run(path: Path) -> bool:
    """Whether a folder has the files of a run."""
    folder = RunDirectory(path)
    return folder.config.exists() or folder.metrics.exists()


def find_runs_below(path: Path, depth: int = DEEPEST) -> list[Path]:
    """Return the folders of runs inside a folder, as --seeds and ablate make them."""
    if depth == 0 or not path.is_dir():
        return []
    found: list[Path] = []
    for folder in sorted(path.iterdir(), key=lambda folder: split_numbers(folder.name)):
        if not folder.is_dir() or folder.name.startswith(".") or is_report(folder / "index.html"):
            continue
        if is_run(folder):
            found.append(folder)
        else:
            found += find_runs_below(folder, depth - 1)
    return found


def split_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts seed_2 before seed_10."""
    key: list[tuple[int, str]] = []
    for part in re.split(r"(\d+)", name):
        key.append((int(part), "") if part.isdecimal() else (-1, part))
    return key


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read each run once; of a folder that holds runs, all of these. Earlier reports are ignored.

    Raises:
        UserError: where there is no run, or none has an epoch.
    """
    named = dict.fromkeys(Path(path).expanduser().resolve() for path in paths)
    titles: dict[Path, str] = {}  # by the folder of a run; empty for one that is named itself
    for path in named:
        below = find_runs_below(path)
        if is_run(path) or (not below and not is_report(path / "index.html")):
            titles[path] = ""
            left_out = [str(run.relative_to(path)) for run in below if run not in named]
            if left_out:
                names = ", ".join(left_out)
                print_line(f"{path.name}: the runs inside this run are left out: {names}")
        else:
            for run in below:
                titles.setdefault(run, str(run.relative_to(path.parent)))
    runs = [read_run(path, title) for path, title in titles.items()]
    require(any(len(run.rows) > 1 for run in runs), f"{', '.join(paths)}: no epoch is recorded yet")
    return runs


def is_report(index: Path) -> bool:
    """Whether an HTML file is a report of this program."""
    return index.is_file() and f'content="{GENERATOR}"' in read_damaged(index)[:2000]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed: often a single one."""

    runs: list[Run]
    index: int
    mark: str  # a letter; "" where there is one group
    label: str

    @property
    def status(self) -> str:
        return "; ".join(dict.fromkeys(run.status for run in self.runs))

    def curve(self, column: str) -> tuple[list[float], list[float], list[float] | None]:
        """Epochs that all runs have, the mean of their values, and the standard deviation of several."""
        curves = [
            {row["epoch"]: row[column] for row in run.rows if column in row} for run in self.runs
        ]
        curves = [curve for curve in curves if curve]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        return (
            epochs,
            [mean(v) for v in values],
            [stdev(v) for v in values] if len(curves) > 1 else None,
        )

    def accuracy(self, name: str) -> str:
        """One of `accuracies`: over the runs, or of a single one over its command's seeds."""
        found = [run.accuracies[name] for run in self.runs if name in run.accuracies]
        return summarize(found[0] if len(found) == 1 else [mean(values) for values in found])


def summarize(values: Sequence[float], form: str = ".2f") -> str:
    """A figure, or the mean and standard deviation of several."""
    spread = f" \u00b1 {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}" if values else "-"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Seeds of the same settings together; groups are named by the settings that differ, or by their runs."""
    found: list[list[Run]] = []
    for run in runs:
        group = next((group for group in found if run.is_further_seed(group)), None)
        if group is None:
            found.append([run])
        else:
            group.append(run)
    known = [group[0].comparable_settings() for group in found]
    names = [
        name
        for name in dict.fromkeys(chain(*known))
        if len({str(k.get(name)) for k in known if k}) > 1
    ]
    labels = [describe_settings({name: k[name] for name in names if name in k}) for k in known]
    groups = []
    for i, members in enumerate(found):
        told = [labels[i]] if known[i] and names else []
        if not told or labels.count(labels[i]) > 1:
            told += [run.name for run in members]
        seeds = f" (mean of {len(members)} seeds)" * (len(members) > 1)
        mark = f"{ascii_uppercase[i % 26]}{i // 26 or ''}" * (len(found) > 1)
        groups.append(Group(members, i, mark, printable(", ".join(told) + seeds)))
    return groups


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Settings in words: figures, and what is not at its default."""
    told = {
        k: v
        for k, v in settings.items()
        if type(v) in (int, float) or v != PRETRAIN_DEFAULTS.get(k)
    }
    flags = (" ".join(to_flags({name: value})) for name, value in told.items())
    return ", ".join(flag[2:].replace("=", " ", 1) for flag in flags if flag)[:90] or "baseline"
