"""Read a run from the files in its folder.

Files may be damaged or hold anything. Whatever cannot be read is left out, and a note on the page
names the file.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from simsiam.config.commands import PRETRAIN_DEFAULTS, settings_that_matter
from utils.console import format_count
from utils.errors import require
from utils.run_dir import RunDirectory

# The errors that reading a damaged file can raise.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    SyntaxError,  # by Pillow, for a broken PNG
    yaml.YAMLError,
    Image.DecompressionBombError,
)
MAX_NUMBER = 1e12  # absolute value; a larger number in a file counts as damage
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def replace_unprintable(value: Any) -> str:
    """Return a value as text, with U+FFFD in place of characters that HTML or SVG cannot hold.

    These are control characters, lone surrogates and noncharacters.
    """
    return UNPRINTABLE.sub("\ufffd", str(value))


def read_text_tolerantly(file: Path) -> str:
    """Return the text of a file, with U+FFFD in place of bytes that are not UTF-8."""
    return file.read_text(encoding="utf-8", errors="replace")


def select_numbers(row: Any) -> dict[str, float]:
    """Return the entries of a mapping whose values are numbers.

    Entries with another value, such as text, a bool, NaN or a number beyond MAX_NUMBER, are left
    out. If `row` is not a mapping, the result is empty.
    """
    if not isinstance(row, dict):
        return {}
    return {str(name): value for name, value in row.items() if is_number(value)}


def is_number(value: Any) -> bool:
    # isinstance would accept True as an int. NaN fails every comparison.
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


@dataclass
class Run:
    """The contents of the files of one run.

    Attributes:
        rows: a row for epoch 0, the network before training, and then the rows of metrics.jsonl.
            The first row has an accuracy only if the run has finished.
        settings: the run's options by name; empty if config.yaml is damaged.
        machine: hardware, precision, devices and versions.
        accuracies: top-1 accuracies in percent, by the name of the measurement. A list has one
            accuracy; that of finetune has one for each of its seeds.
        notes: sentences about damaged files.
        title: the run's name on the page. If it is empty, the page shows the name of the folder.
        pretrained: whether a finished run started from trained weights.
        leave_one_out: name of the images whose kNN accuracy is measured among themselves; empty if
            they are compared with the train images.
        num_features: of the backbone; 0 if config.yaml does not say.
        num_images: on which it was trained; 0 if config.yaml does not say.
    """

    folder: RunDirectory
    rows: list[dict[str, float]]
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    title: str = ""
    pretrained: bool = False
    leave_one_out: str = ""
    num_features: int = 0
    num_images: int = 0

    @property
    def name(self) -> str:
        return self.title or self.folder.path.name

    def values(self, column: str) -> list[float]:
        """Return a metric of the trained epochs. Epochs without a value are skipped."""
        return [row[column] for row in self.rows[1:] if column in row]

    def comparable_settings(self) -> dict[str, Any]:
        """Return the settings, except for the seed, that change what the network learns.

        Settings that an older run does not have get their defaults. If the settings could not be
        read, the result is empty.
        """
        if not self.settings:
            return {}
        return settings_that_matter({**PRETRAIN_DEFAULTS, **self.settings, "seed": None})

    @contextmanager
    def note_damage(self, file: Path) -> Iterator[None]:
        """Add a note to the run, instead of raising, if reading `file` inside this block fails."""
        try:
            yield
        except DAMAGE:
            self.notes.append(f"{file.relative_to(self.folder.path)} is damaged or missing")


def is_run(path: Path) -> bool:
    """Return whether a folder contains the files of a run."""
    folder = RunDirectory(path)
    return folder.config.exists() or folder.metrics.exists()


def read_run(path: Path, title: str = "") -> Run:
    """Read the files of a run.

    Args:
        path: the run's folder.
        title: the run's name on the page. If it is empty, the page shows the name of the folder.

    Raises:
        UserError: if `path` is not the folder of a run.
    """
    require(path.exists(), f"{path}: no such folder")
    require(path.is_dir(), f"{path} is a file, not the folder of a run")
    # `find_runs` has replaced a folder of runs by the runs in it.
    require(is_run(path), f"{path} is not the folder of a run, and contains no runs")
    run = Run(RunDirectory(path), rows=[{"epoch": 0}], title=title)
    _read_config(run)
    _read_metrics(run)
    _read_results(run)
    return run


def _read_config(run: Run) -> None:
    """Read the settings and the machine from config.yaml."""
    with run.note_damage(run.folder.config):
        content = yaml.safe_load(read_text_tolerantly(run.folder.config))

        # "resolved" has the values that the program chose for itself.
        resolved = content.get("resolved") or {}
        hardware = resolved.get("hardware") or {}
        choices = {name: resolved[name] for name in ("precision", "devices") if name in resolved}
        versions = content.get("versions") or {}
        run.machine = {**hardware, **choices, **versions}
        run.leave_one_out = str(resolved.get("leave_one_out") or "")
        counts = select_numbers(resolved)
        run.num_features = int(counts.get("in_dim", 0))
        run.num_images = int(counts.get("train_images", 0))

        run.settings = {str(name): value for name, value in content["settings"].items()}
        digest = resolved.get("images")
        if digest:
            # The user's own images: the digest tells runs on different images apart. The label of a
            # group shows this as "images of photos (1a2b3c4d)".
            data_dir = Path(run.settings["data_dir"])
            run.settings["images"] = f"of {data_dir.name} ({digest:.8})"


def _read_metrics(run: Run) -> None:
    """Read the metrics of each epoch, and the accuracy before training."""
    with run.note_damage(run.folder.metrics):
        for row in map(select_numbers, run.folder.rows()):
            if row.get("epoch", 0) > 0:
                run.rows.append(row)
    if run.folder.summary.exists():
        with run.note_damage(run.folder.summary):
            summary = json.loads(read_text_tolerantly(run.folder.summary))
            untrained = summary.get("kNN_untrained")
            initial = summary.get("kNN_start", untrained)
            run.rows[0].update(select_numbers({"kNN_accuracy": initial}))
            # Earlier versions called the accuracy of any network before training kNN_untrained.
            has_weights = run.settings.get("model_path") is not None
            run.pretrained = "kNN_start" in summary or has_weights


def _read_results(run: Run) -> None:
    """Read the accuracies that the commands knn, linear and finetune measured."""
    for file in run.folder.result_summaries():
        with run.note_damage(file):
            content = json.loads(read_text_tolerantly(file))
            accuracies = read_accuracies(file.parent.name, content)
            departures = describe_departures(content, run)
            for measurement, values in accuracies.items():
                run.accuracies[", ".join([measurement, *departures])] = values


def describe_departures(content: Mapping[str, Any], run: Run) -> list[str]:
    """Return in what a measurement differs from one of the finished run on its test images.

    Args:
        content: the parsed summary.json of the measurement.
    """
    flags = content.get("settings") or {}  # those of the command; None if a flag was not given
    departures: list[str] = []
    dataset = content.get("dataset")
    data_dir = flags.get("data_dir")
    if dataset is not None and dataset != run.settings.get("dataset", dataset):
        departures.append(str(dataset))
    elif data_dir is not None and data_dir != run.settings.get("data_dir", data_dir):
        departures.append(f"images of {Path(data_dir).name}")
    if content.get("held_out_images"):
        departures.append("held-out images")
    if content.get("leave_one_out"):  # an earlier version did so among test images only
        departures.append(f"leave-one-out among {content.get('query_source', 'test images')}")
    numbers = {"test_images": "test images", "image_size": "pixels"}
    if content.get("command") == "knn":  # other measurements say how many labels they had
        numbers["train_images"] = "train images"
    for name, images in numbers.items():
        number = flags.get(name)
        if number is not None and number != run.settings.get(name):
            departures.append(f"{number:,} {images}")
    epoch = content.get("epoch")
    if epoch is not None and epoch != run.rows[-1]["epoch"]:
        departures.append(f"epoch {epoch:,}")
    return departures


def read_accuracies(name: str, content: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the accuracies in percent in a summary.json of the command knn, linear or finetune.

    They are top-1, unless the name of the measurement says otherwise.

    Args:
        name: the summary's folder, such as "finetune_0.1".
        content: the parsed summary.json.

    Returns:
        A list of accuracies by the name of the measurement, such as "linear, 50,000 labels".
        Finetune measures an accuracy for each of its seeds; the other commands measure one.
    """
    accuracies = read_knn_table(content.get("table", ()))

    # linear and finetune have one accuracy, or one for each seed.
    details = [name.replace("_", " ")]
    # finetune has the number of labels that it used. linear uses those of all train images.
    num_labels = content.get("labels") or content.get("train_images")
    if num_labels:
        details.append(format_count(num_labels, "label"))
    if "finetune" in name:
        epochs = content["settings"].get("epochs")
        if epochs:
            details.append(format_count(epochs, "epoch"))
    accuracy_by_seed = content.get("seeds") or {"": content.get("test_accuracy")}
    measured = list(select_numbers(accuracy_by_seed).values())
    if measured:
        accuracies[", ".join(details)] = measured
    top5 = select_numbers({"": content.get("test_top5_accuracy")})
    if top5 and "finetune" not in name:
        accuracies[", ".join([f"{details[0]} (top-5)", *details[1:]])] = list(top5.values())

    # knn and linear may have measured zoomed images too.
    zoomed = content.get("zoomed", {})
    zoom = f"zoom {zoomed.get('resized_side')}"
    for setting, values in read_knn_table(zoomed.get("table", ())).items():
        accuracies[f"{setting}, {zoom}"] = values
    zoomed_accuracy = select_numbers({"": zoomed.get("test_accuracy")})
    if zoomed_accuracy:
        accuracies[", ".join([*details, zoom])] = list(zoomed_accuracy.values())
    return accuracies


def read_knn_table(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the accuracies in a table of the command knn, by the name of the measurement.

    Args:
        rows: a row for each kind of features, k and temperature.
    """
    accuracies: dict[str, list[float]] = {}
    for row in rows:
        if "accuracy" not in select_numbers(row):
            continue
        setting = f"kNN, {row.get('features')} features, k {row.get('k')}"
        if row.get("k") != 1:  # a single neighbour needs no weight, so no temperature
            setting += f", T {row.get('temperature')}"
        accuracies[setting] = [row["accuracy"]]
    return accuracies
