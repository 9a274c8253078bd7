"""Reads what runs left behind. Files may hold anything: what is damaged or missing is left out, and noted."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from string import ascii_uppercase
from typing import Any, NamedTuple

import yaml
from PIL import Image

from simsiam.config.commands import DEFAULTS, settings_that_matter
from simsiam.config.options import is_collapsed
from utils.cli import to_flags
from utils.console import plural
from utils.errors import UserError, check
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory

GENERATOR = "SimSiam report"  # of the page's <meta name="generator">
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def printable(value: Any) -> str:
    """Text that HTML and SVG can hold: control characters and lone surrogates become U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", str(value))


def finite_number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) < 1e12 else None


def get_mapping(content: Any, name: str) -> dict[str, Any]:
    """A mapping inside another; empty where there is none."""
    found = content.get(name) if isinstance(content, dict) else None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def read_mapping(file: Path, parse: Callable[[str], Any]) -> dict[Any, Any]:
    """The mapping in a file; empty if it is damaged or missing."""
    try:
        return dict(parse(file.read_text(errors="replace")))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}


@dataclass
class Run:
    """One run's files."""

    folder: RunDirectory
    rows: list[dict[str, Any]]  # of metrics.jsonl, after epoch 0: the untrained network, known of a finished run
    settings: dict[str, Any]  # of config.yaml, as `resolved` and `versions`
    resolved: dict[str, Any]
    versions: dict[str, Any]
    results: dict[str, dict[str, Any]]  # results/NAME/summary.json by name
    notes: list[str]  # what is damaged

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    @property
    def status(self) -> str:
        row = self.rows[-1]
        open_state = "running" if is_locked(self.folder.path) else "stopped"
        state = "finished" if self.folder.summary.exists() else open_state
        collapsed = (z_std := finite_number(row.get("z_std"))) is not None and is_collapsed(
            z_std, finite_number(row.get("rankme"))
        )
        return f"{state}, {row['epoch']} of {self.settings.get('epochs', '?')} epochs" + ", collapsed" * collapsed

    def curve(self, name: str) -> dict[int, float]:
        """A column of the rows by epoch."""
        return {row["epoch"]: y for row in self.rows if (y := finite_number(row.get(name))) is not None}

    def values(self, name: str) -> list[float]:
        """The curve without the untrained network."""
        return [y for epoch, y in self.curve(name).items() if epoch > 0]

    def comparable_settings(self) -> dict[str, Any]:
        """Those that change what is learned, without the seed; of a person's own images also which they are."""
        known = {name: value for name, value in settings_that_matter(self.settings).items() if name != "seed"}
        if digest := self.resolved.get("images"):
            known["images"] = f"of {Path(str(self.settings.get('data_dir'))).name} ({digest!s:.8})"
        return known


def read_run(path: Path) -> Run:
    """Raises UserError where there is no run."""
    folder = RunDirectory(path)
    check(path.is_dir(), f"{path}: no such folder")
    check(folder.config.exists() or folder.metrics.exists(), f"{path} is not the folder of a run")
    rows = [{"epoch": 0, "kNN_accuracy": read_mapping(folder.summary, json.loads).get("kNN_untrained")}]
    rows += [row for row in folder.rows() if isinstance(row, dict) and (finite_number(row.get("epoch")) or 0) > 0]
    config = read_mapping(folder.config, yaml.safe_load)
    results = {file: read_mapping(file, json.loads) for file in sorted(folder.results.glob("*/summary.json"))}
    damaged = [file.relative_to(path) for file, content in {folder.config: config, **results}.items() if not content]
    settings, resolved, versions = (get_mapping(config, name) for name in ("settings", "resolved", "versions"))
    named = {file.parent.name: content for file, content in results.items()}
    notes = [f"{file} is damaged or missing" for file in damaged]
    return Run(folder, rows, settings, resolved, versions, named, notes)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Each run once, without earlier reports (of `runs/*`); UserError where one is no run, or none has an epoch."""
    folders = {path.resolve(): path for path in (Path(path).expanduser() for path in paths)}
    kept = [path for path in folders.values() if (path / "config.yaml").exists() or not is_report(path / "index.html")]
    try:
        runs = [read_run(path) for path in kept]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    check(any(len(run.rows) > 1 for run in runs), f"{', '.join(paths)}: no epoch is recorded yet")
    return runs


def is_report(index: Path) -> bool:
    """Whether an HTML file is a report of this program."""
    return index.is_file() and f'content="{GENERATOR}"' in index.read_text(errors="replace")[:2000]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed: often a single one."""

    runs: list[Run]
    index: int
    mark: str  # a letter; "" where there is one group
    label: str

    @property
    def status(self) -> str:
        return "; ".join(dict.fromkeys(run.status for run in self.runs))

    def curve(self, column: str) -> tuple[list[int], list[float], list[float] | None]:
        """Epochs that all runs have, the mean of their values, and the standard deviation of several."""
        curves = [curve for run in self.runs if (curve := run.curve(column))]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        return epochs, [mean(v) for v in values], [stdev(v) for v in values] if len(curves) > 1 else None

    def accuracy(self, name: str) -> str:
        """One of `accuracies`: over the runs, or of a single one over its command's seeds."""
        found = [values for run in self.runs if (values := accuracies(run).get(name))]
        return summarize(found[0] if len(found) == 1 else [mean(values) for values in found])


def summarize(values: Sequence[float], form: str = ".2f") -> str:
    """A figure, or the mean and standard deviation of several."""
    spread = f" \u00b1 {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}" if values else "-"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings and different seeds together; groups are named by the settings that differ."""
    found: dict[tuple[str, int], list[Run]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for run in runs:
        alike = str(sorted(run.comparable_settings().items())) if run.settings else str(run.folder.path)
        times[again := (alike, str(run.settings.get("seed")))] += 1  # the same seed again begins another group
        found.setdefault((alike, times[again]), []).append(run)
    known = [group[0].comparable_settings() for group in found.values()]
    names = [name for name in dict.fromkeys(chain(*known)) if len({str(k.get(name)) for k in known if k}) > 1]
    labels = [describe_settings(k, names) for k in known]
    groups = []
    for i, (runs, label) in enumerate(zip(found.values(), labels, strict=True)):
        told = [label] * bool(label) + [run.name for run in runs] * (not label or labels.count(label) > 1)
        seeds = f" (mean of {len(runs)} seeds)" * (len(runs) > 1)
        mark = f"{ascii_uppercase[i % 26]}{i // 26 or ''}" * (len(found) > 1)
        groups.append(Group(runs, i, mark, printable(", ".join(told) + seeds)))
    return groups


def describe_settings(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """These settings in words: figures, and what is not at its default."""
    known = {name: settings[name] for name in names if name in settings}
    told = {k: v for k, v in known.items() if type(v) in (int, float) or v != DEFAULTS.get(k)}
    flags = (" ".join(to_flags({name: value})) for name, value in told.items())
    words = ", ".join(flag[2:].replace("=", " ", 1) for flag in flags if flag)
    return f"{words or 'baseline' * bool(known):.90}"


def accuracies(run: Run) -> dict[str, list[float]]:
    """Top-1 in percent that the commands knn, linear and finetune measured, of finetune one for each seed."""
    found: dict[str, list[Any]] = {}
    for name, content in run.results.items():
        labels, table = finite_number(content.get("labels") or content.get("train_images")), content.get("table")
        measured = list(get_mapping(content, "seeds").values()) or [content.get("test_accuracy")]
        epochs = finite_number(get_mapping(content, "settings").get("epochs")) if "finetune" in name else None
        counts = [plural(round(count), what) for count, what in ((labels, "label"), (epochs, "epoch")) if count]
        found[", ".join([name.replace("_", " "), *counts])] = measured
        for row in (row for row in table if isinstance(row, dict)) if isinstance(table, list) else ():
            weight = "" if row.get("k") == 1 else f", T {row.get('temperature')}"
            found[f"kNN, {row.get('features')} features, k {row.get('k')}{weight}"] = [row.get("accuracy")]
    known = {name: [y for value in values if (y := finite_number(value)) is not None] for name, values in found.items()}
    return {name: values for name, values in known.items() if values}


def read_views(run: Run) -> Image.Image | None:
    """views.png as the run left it, at most 2000 pixels wide or high."""
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(run.folder.views) as file:
        picture = file.convert("RGB")
        picture.thumbnail((2000, 2000))
        return picture
    return None
