"""Reads what runs left behind. Files may hold anything: what is damaged or not there yet is left out, and noted."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simsiam.config.commands import DEFAULTS, settings_that_matter
from simsiam.loss import COLLAPSED
from utils.errors import UserError, check
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory

GENERATOR = "SimSiam report"  # of the page's <meta name="generator">
MAX_NUMBER, MAX_LABEL, MAX_PIXELS = 1e12, 90, 2**22  # of a figure, a group's label, views.png
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def printable(value: Any) -> str:
    """Text that HTML and SVG can hold: control characters and lone surrogates become U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", str(value))


def finite_number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    return float(value) if known else None


def get_mapping(content: Any, name: str) -> dict[str, Any]:
    """A mapping inside another; empty where there is none."""
    found = content.get(name) if isinstance(content, dict) else None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


@dataclass
class Run:
    """One run's files."""

    folder: RunDirectory
    rows: list[dict[str, Any]]  # of metrics.jsonl
    settings: dict[str, Any]  # of config.yaml, as `resolved` and `versions`
    resolved: dict[str, Any]
    versions: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # results/NAME/summary.json by name
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)  # of TensorBoard: tag -> step -> value
    notes: list[str] = field(default_factory=list)  # what is damaged

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    def curve(self, name: str) -> dict[int, float]:
        """A column of the rows by epoch; kNN_accuracy has the untrained network's as epoch 0."""
        known = {row["epoch"]: row.get(name) for row in self.rows}
        if name == "kNN_accuracy":
            known = {0: self.scalars.get(name, {}).get(0)} | known
        if name in self.scalars and not any(name in row for row in self.rows):  # TensorBoard alone has it
            epochs = {row.get("step"): row["epoch"] for row in self.rows}
            known = {epochs[step + 1]: y for step, y in self.scalars[name].items() if step + 1 in epochs}
        return {epoch: y for epoch, value in known.items() if (y := finite_number(value)) is not None}

    def values(self, name: str) -> list[float]:
        """The curve without the untrained network."""
        return [y for epoch, y in self.curve(name).items() if epoch > 0]

    def status(self) -> str:
        row = self.rows[-1] if self.rows else {"epoch": 0}
        progress = f"{row['epoch']} of {self.settings.get('epochs', '?')} epochs"
        words = f"running, {progress} so far" if is_locked(self.folder.path) else f"stopped after {progress}"
        words = f"finished, {row['epoch']} epochs" if self.folder.summary.exists() else words
        z_std = finite_number(row.get("z_std"))
        return words + ", collapsed" * (z_std is not None and z_std < COLLAPSED)

    def describe_setting(self, name: str) -> str:
        value, words = self.settings.get(name), name.replace("_", " ")
        if name == "images":
            return f"images of {Path(str(self.settings.get('data_dir'))).name}"
        if isinstance(value, bool):
            return words if value else f"no {words}"
        if value in (None, "auto"):
            value = self.resolved.get(name, "default")
        return f"{words} {value:,}" if isinstance(value, int) and value >= 10_000 else f"{words} {value}"

    def comparable_settings(self) -> dict[str, Any]:
        """Without the seed and without those that do not change what is learned."""
        known = {name: value for name, value in settings_that_matter(self.settings).items() if name != "seed"}
        digest = self.resolved.get("images")  # of a person's own images
        return known | {"images": digest} if known and digest else known


def read_run(path: Path) -> Run:
    """Raises UserError where there is no run."""
    folder = RunDirectory(path)
    check(path.is_dir(), f"{path}: no such folder")
    check(folder.config.exists() or folder.metrics.exists(), f"{path} is not the folder of a run")
    rows = [row for row in folder.rows() if isinstance(row, dict) and isinstance(row.get("epoch"), int)]
    rows = [row for row in rows if finite_number(row["epoch"]) is not None]
    try:
        content = yaml.safe_load(folder.config.read_text(errors="replace"))
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        content = None
    parts = [get_mapping(content, name) for name in ("settings", "resolved", "versions")]
    run = Run(folder, rows, parts[0], parts[1], parts[2])
    if not run.settings:
        run.notes.append(f"{folder.config.name} is damaged or missing: settings and command are not known")
    for file in sorted(folder.results.glob("*/summary.json")):
        try:
            run.results[file.parent.name] = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            run.notes.append(f"{file.relative_to(path)} is damaged, and left out")
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    with suppress(OSError, ValueError, LookupError, RuntimeError):  # damaged
        if folder.tensorboard.is_dir():
            events.Reload()
            run.scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return run


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Each run once, without earlier reports (of `runs/*`); UserError where one is no run, or none has an epoch."""
    folders = {path.resolve(): path for path in (Path(path).expanduser() for path in paths)}
    kept = [path for path in folders.values() if (path / "config.yaml").exists() or not is_report(path / "index.html")]
    try:
        runs = [read_run(path) for path in kept]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    check(any(run.rows for run in runs), f"{', '.join(map(str, folders.values()))}: no epoch is recorded yet")
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
        return "; ".join(dict.fromkeys(run.status() for run in self.runs))

    def curve(self, column: str) -> tuple[list[int], list[float], list[float] | None]:
        """Epochs that all runs have, the mean of their values, and the standard deviation of several."""
        curves = [curve for run in self.runs if (curve := run.curve(column))]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        return epochs, [mean(v) for v in values], [stdev(v) for v in values] if len(curves) > 1 else None

    def summarize(self, get: Callable[[Run], Iterable[float]], form: str = ".2f") -> str:
        """A figure of the run, or its mean and standard deviation over several; `get` gives none or one of each."""
        known = list(chain.from_iterable(map(get, self.runs)))
        if len(known) > 1:
            return f"{mean(known):{form}} \u00b1 {stdev(known):{form}}"
        return f"{known[0]:{form}}" if known else "\u2013"

    def accuracy(self, name: str) -> str:
        """One of `accuracies`; a command that measured several seeds has a deviation of its own."""
        known = [found[name] for found in map(accuracies, self.runs) if name in found]
        if len(known) == 1 and known[0][1] is not None:
            return "{:.2f} \u00b1 {:.2f}".format(*known[0])
        return self.summarize(lambda run: [found[name][0]] if name in (found := accuracies(run)) else [])


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings and different seeds together; groups are named by the settings that differ."""
    found: dict[tuple[str, int], list[Run]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for run in runs:
        alike = str(sorted(run.comparable_settings().items())) if run.settings else str(run.folder.path)
        times[alike, str(run.settings.get("seed"))] += 1  # the same seed once more begins a group of its own
        found.setdefault((alike, times[alike, str(run.settings.get("seed"))]), []).append(run)
    known = [settings for group in found.values() if (settings := group[0].comparable_settings())]
    names = [name for name in (known[0] if known else ()) if any(k.get(name) != known[0].get(name) for k in known)]
    labels = [describe_run(group[0], names) for group in found.values()]
    groups = []
    for i, (group, label) in enumerate(zip(found.values(), labels, strict=True)):
        if not label or labels.count(label) > 1:
            label = ", ".join(filter(None, [label, " ".join(run.name for run in group)]))
        label += f" (mean of {len(group)} seeds)" * (len(group) > 1)
        mark = f"{ascii_uppercase[i % 26]}{i // 26 or ''}" if len(found) > 1 else ""
        groups.append(Group(group, i, mark, printable(label)))
    return groups


def describe_run(run: Run, names: Sequence[str]) -> str:
    """These settings of a run in words; a switch or a word at its default goes without saying."""
    figures = [name for name in names if type(DEFAULTS.get(name)) in (int, float) or name == "images"]
    told = [name for name in names if name in figures or run.settings.get(name) != DEFAULTS.get(name)]
    label = ", ".join(map(run.describe_setting, told)) or "baseline" * bool(names) if run.settings else ""
    return label if len(label) <= MAX_LABEL else label[:MAX_LABEL] + "..."


def accuracies(run: Run) -> dict[str, tuple[float, float | None]]:
    """What the commands knn, linear and finetune measured: top-1 in percent, and its deviation over their seeds."""
    found: dict[str, tuple[Any, Any]] = {}
    for content in run.results.values():
        options, accuracy = get_mapping(content, "settings"), content.get("test_accuracy")
        labels = finite_number(content.get("labels") or content.get("train_images"))
        suffix = (f", {labels:,.0f} labels" if labels else "") + ", from scratch" * bool(options.get("from_scratch"))
        if content.get("command") == "knn" and isinstance(content.get("table"), list):
            for row in (row for row in content["table"] if isinstance(row, dict)):
                weight = "" if row.get("k") == 1 else f", T {row.get('temperature')}"
                found[f"kNN, {row.get('features')} features, k {row.get('k')}{weight}"] = (row.get("accuracy"), None)
        elif content.get("command") == "linear":
            solver = "SGD on crops and flips" if options.get("augment") else "L-BFGS"
            found[f"linear, {solver}{suffix}"] = (accuracy, None)
        elif content.get("command") == "finetune":
            found[f"fine-tuned{suffix}"] = (accuracy, content.get("deviation"))
    known = {name: tuple(map(finite_number, pair)) for name, pair in found.items()}
    return {name: (value, deviation) for name, (value, deviation) in known.items() if value is not None}


class Confusion(NamedTuple):
    """Counts (C, C), row the true class, column the predicted one, and what predicted."""

    counts: np.ndarray
    names: tuple[str, ...]
    method: str


def read_confusion(run: Run, weights: str | None = None) -> Confusion | None:
    """What the command knn counted, if it was of these weights (None: of any)."""
    found = run.results.get("knn", {})
    names, same = get_mapping(found, "per_class"), weights is None or found.get("weights") == weights
    try:
        counts = np.array(found.get("confusion"), dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
    method = f"kNN, k {found.get('knn_k')}, T {found.get('knn_t')}, by the command knn"
    fits = names and counts.shape == (len(names), len(names)) and counts.min() >= 0 < counts.sum()
    return Confusion(counts, tuple(map(printable, names)), method) if fits and same else None


def read_views(run: Run) -> Image.Image | None:
    """views.png as the run left it."""
    try:
        with Image.open(run.folder.views) as picture:
            return picture.convert("RGB") if picture.width * picture.height <= MAX_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
