"""What runs left behind, read for a report: what is damaged or not there yet is left out, and said."""

import json
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simsiam.callbacks.collapse import COLLAPSED
from simsiam.config.commands import DEFAULTS, settings_that_matter
from simsiam.report.page import is_by
from utils.errors import UserError, check
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory

LARGEST = 1e12  # of numbers that can be drawn; not a number is not below it
LONGEST = 90  # letters of a label
GENERATOR = "SimSiam report"  # by which a page of ours is known
NOTHING = "\u2013"  # where there is no figure


def number(value: Any) -> float | None:
    """A finite number, or None: files may hold anything."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if known else None


def part(content: Any, name: str) -> dict[str, Any]:
    """A mapping inside another, or an empty one."""
    found = content.get(name) if isinstance(content, dict) else None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


@dataclass
class Run:
    """A run's records: `rows` are its epochs so far, `results` the figures of the commands that used it, by folder."""

    folder: RunDirectory
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)  # of TensorBoard: tag -> step -> value
    notes: list[str] = field(default_factory=list)
    running: bool = False
    finished: bool = False

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    def curve(self, name: str) -> dict[int, float]:
        """A column of the rows by epoch; of kNN also the untrained network's, as epoch 0."""
        known = {row["epoch"]: number(row.get(name)) for row in self.rows}
        if name == "kNN_accuracy":
            known = {0: self.scalars.get(name, {}).get(0)} | known
        if name in self.scalars and not any(name in row for row in self.rows):  # what TensorBoard alone has
            epochs = {row.get("step"): row["epoch"] for row in self.rows}
            known = {epochs[step + 1]: y for step, y in self.scalars[name].items() if step + 1 in epochs}
        return {epoch: y for epoch, y in known.items() if y is not None}

    def status(self) -> str:
        done, whole = len(self.rows) and self.rows[-1]["epoch"], self.settings.get("epochs", "?")
        of = f"{done} of {whole} epochs"
        words = f"finished, {done} epochs" if self.finished else f"running, {of} so far" if self.running else None
        words = words or f"stopped after {of}"
        last = number(self.rows[-1].get("z_std")) if self.rows else None
        return words + ", collapsed" * (last is not None and last < COLLAPSED)

    def shown(self, name: str) -> str:
        """A setting in words, with what one that was left to the program came to."""
        if name == "images":
            return f"images of {Path(str(self.settings.get('data_dir'))).name}"
        value, words = self.settings.get(name), name.replace("_", " ")
        if isinstance(value, bool):
            return words if value else f"no {words}"
        if value in (None, "auto"):
            value = self.resolved.get(name, "default")
        return f"{words} {value:,}" if isinstance(value, int) and value >= 10_000 else f"{words} {value}"


def read_run(path: Path) -> Run:
    """The records of a run.

    Raises:
        UserError: there is no run.
    """
    folder = RunDirectory(path)
    check(path.is_dir(), f"{path}: no such folder")
    check(folder.config.exists() or folder.metrics.exists(), f"{path} is not the folder of a run")
    rows = [row for row in folder.rows() if isinstance(row, dict) and isinstance(row.get("epoch"), int)]
    rows = [row for row in rows if number(row["epoch"]) is not None]
    run = Run(folder, rows, running=is_locked(path), finished=folder.summary.exists())
    try:
        content = yaml.safe_load(folder.config.read_text(errors="replace"))
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        content = None
    run.settings, run.resolved, run.versions = (part(content, name) for name in ("settings", "resolved", "versions"))
    if not run.settings:
        run.notes.append(f"{folder.config.name} is damaged or missing: settings and command are not known")
    for file in sorted(folder.results.glob("*/summary.json")):
        try:
            run.results[file.parent.name] = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            run.notes.append(f"{file.relative_to(path)} is damaged, and left out")
    run.scalars = read_events(folder.tensorboard)
    return run


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars: tag -> step -> value. What cannot be read is not there."""
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    try:
        events.Reload()
        return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    except (OSError, ValueError, LookupError, RuntimeError):
        return {}


class Group(NamedTuple):
    """Runs that differ in nothing but the seed; most often one."""

    runs: list[Run]
    style: int
    mark: str  # a letter; "" where there is one group
    label: str

    @property
    def name(self) -> str:
        return f"{self.mark}: {self.label}" if self.mark else self.label

    def curve(self, column: str) -> tuple[list[int], list[float], list[float] | None]:
        """Epochs, values, and their deviation where there are several runs: of the epochs that all of them have."""
        known = [curve for curve in (run.curve(column) for run in self.runs if run.rows) if curve]
        epochs = sorted(set.intersection(*(set(curve) for curve in known))) if known else []
        values = [[curve[epoch] for curve in known] for epoch in epochs]
        return epochs, [mean(v) for v in values], [stdev(v) for v in values] if len(known) > 1 else None

    def each(self, figure: Callable[[Run], float | None], digits: int = 2, grouping: str = "") -> str:
        """A figure of the runs: itself, or mean and deviation of several."""
        return spread([figure(run) for run in self.runs], digits, grouping)


def spread(values: Iterable[float | None], digits: int = 2, grouping: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    middle = f"{mean(known):{grouping}.{digits}f}"
    return middle if len(known) == 1 else f"{middle} \u00b1 {stdev(known):.{digits}f}"


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings together, each seed once; all of them named by what differs between the groups."""
    alike: list[list[Run]] = []
    for run in runs:
        fits = (g for g in alike if run.settings and same(g[0], run) and not any(same_seed(r, run) for r in g))
        found = next(fits, None)
        if found is None:
            alike.append([run])
        else:
            found.append(run)
    names = different([members[0] for members in alike])
    labels = [", ".join(words(members[0], names)) for members in alike]
    labels = [label if len(label) <= LONGEST else label[:LONGEST] + "..." for label in labels]
    twice = {label for label in labels if not label or labels.count(label) > 1}
    for i, members in enumerate(alike):
        if labels[i] in twice:
            labels[i] = ", ".join(filter(None, [labels[i], " ".join(run.name for run in members)]))
        if len(members) > 1:
            labels[i] += f" (mean of {len(members)} seeds)"
    marks = [""] if len(alike) == 1 else ["".join(m) for n in (1, 2) for m in product(string.ascii_uppercase, repeat=n)]
    return [Group(members, i, marks[i], labels[i]) for i, members in enumerate(alike)]


def words(run: Run, names: Sequence[str]) -> list[str]:
    """These settings of a run; a switch or a word at its default goes without saying."""
    usual = DEFAULTS
    told = [name for name in names if isinstance(usual.get(name), int | float) and usual[name] is not True]
    told = [n for n in names if n in told or n == "images" or run.settings.get(n) != usual.get(n)]
    return [run.shown(name) for name in told] or ["baseline"] * (len(names) > 0) if run.settings else []


def material(run: Run) -> dict[str, Any]:
    known = {name: value for name, value in settings_that_matter(run.settings).items() if name != "seed"}
    images = run.resolved.get("images")  # a person's own
    return known | {"images": images} if known and images else known


def same(a: Run, b: Run) -> bool:
    return material(a) == material(b)


def same_seed(a: Run, b: Run) -> bool:
    return a.settings.get("seed") == b.settings.get("seed")


def different(runs: Sequence[Run]) -> list[str]:
    """The settings in which some of these runs differ; where files are and who computes does not count."""
    known = [material(run) for run in runs if run.settings]
    return [name for name in (known[0] if known else ()) if any(k.get(name) != known[0].get(name) for k in known)]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs that are asked for, each once.

    Raises:
        UserError: one of them is no run, or none has an epoch.
    """
    folders = {path.resolve(): path for path in (Path(path).expanduser() for path in paths)}

    def earlier_report(path: Path) -> bool:  # `runs/*` has it too
        return is_by(GENERATOR, path / "index.html") and not RunDirectory(path).config.exists()

    try:
        runs = [read_run(path) for path in folders.values() if not earlier_report(path)]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    check(any(run.rows for run in runs), f"{', '.join(map(str, folders.values()))}: no epoch is recorded yet")
    return runs


# ---------------------------------------------------------------- what the other commands measured


class Measure(NamedTuple):
    """Top-1 on test images in percent; of a command that measured several seeds the mean, and their deviation."""

    value: float
    deviation: float | None = None


def measures(run: Run) -> dict[str, Measure]:
    """The accuracies that the commands left in the run's folder, by what measured them."""
    found: dict[str, tuple[Any, Any]] = {}
    for content in run.results.values():
        options, labels = part(content, "settings"), number(content.get("labels") or content.get("train_images"))
        rest = (f", {labels:,.0f} labels" if labels else "") + ", from scratch" * bool(options.get("from_scratch"))
        if content.get("command") == "knn" and isinstance(content.get("table"), list):
            rows = [row for row in content["table"] if isinstance(row, dict)]
            found |= {protocol(row): (row.get("accuracy"), None) for row in rows}
        elif content.get("command") == "linear":
            way = "SGD on crops and flips" if options.get("augment") else "L-BFGS"
            found[f"linear, {way}{rest}"] = (content.get("test_accuracy"), None)
        elif content.get("command") == "finetune":
            found[f"fine-tuned{rest}"] = (content.get("test_accuracy"), content.get("deviation"))
    known = {name: (number(value), number(deviation)) for name, (value, deviation) in found.items()}
    return {name: Measure(value, deviation) for name, (value, deviation) in known.items() if value is not None}


def protocol(row: dict[str, Any]) -> str:
    """A kNN protocol's name; the temperature weighs votes, and one neighbour has one."""
    temperature = "" if row.get("k") == 1 else f", T {row.get('temperature')}"
    return f"kNN, {row.get('features')} features, k {row.get('k')}{temperature}"


def cell(group: Group, name: str) -> str:
    """A measure of a group for its table."""
    known = [found[name] for found in map(measures, group.runs) if name in found]
    if len(known) == 1 and known[0].deviation is not None:
        return f"{known[0].value:.2f} \u00b1 {known[0].deviation:.2f}"
    return spread([measure.value for measure in known])
