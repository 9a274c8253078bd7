"""One frozen dataclass for each command: its groups of options. The command line is made from it."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simsiam.config import evaluation_options as evaluation
from simsiam.config import options
from utils.cli import (
    CHANGEABLE_ON_RESUME,
    NOT_SAVED,
    PLAIN,
    flatten,
    iterate_options,
    to_flag,
    to_flags,
)
from utils.errors import require
from utils.option_group import option_group


@option_group()
class Pretrain:
    """Pre-train a network with SimSiam (arXiv 2011.10566).

    `python main.py` alone takes CIFAR-10, 800 epochs and the paper's settings; it needs a GPU.

    `python main.py --dataset patterns --backbone resnet10 --width 16 --epochs 10` is a demonstration for any machine.

    `--dry-run` beside any flags prints what would be trained and where, and exits.

    The same command again resumes a run that was cut off. Runs are folders below --save-dir.

    Further commands, each with its own --help: knn, linear, finetune, embed, neighbours, export, report, ablate.
    """

    data: options.DataOptions = options.DataOptions()
    optimizer: options.OptimizerOptions = options.OptimizerOptions()
    run: options.RunOptions = options.RunOptions()
    device: options.DeviceOptions = options.DeviceOptions()
    network: options.NetworkOptions = options.NetworkOptions()
    method: options.MethodOptions = options.MethodOptions()
    augmentation: options.AugmentOptions = options.AugmentOptions()
    monitor: options.MonitorOptions = options.MonitorOptions()
    PREFIX = "simsiam"  # of the run's name

    @property
    def run_dir(self) -> Path:
        name = self.run.exp_name or f"{self.PREFIX}_{self.data.dataset}"
        return Path(self.run.save_dir).expanduser() / name / (self.run.version or "")


@option_group(kw_only=True)
class Evaluation:
    """What the commands that use a checkpoint share."""

    checkpoint: evaluation.CheckpointOptions
    data: options.EvaluationDataOptions = options.EvaluationDataOptions()


@option_group(kw_only=True)
class Knn(Evaluation):
    """Classify all test images by their nearest train images: k = 1, 20, 200 and T = .07, .1, .2.

    With features of the backbone and, if the checkpoint has one, of the projector; and the accuracy of each class.
    """

    device: options.AcceleratorOptions = options.AcceleratorOptions()


@option_group(kw_only=True)
class Linear(Evaluation):
    """Train a linear classifier on the frozen backbone's features, and measure it on all test images.

    Without --augment the features are computed once and the classifier is fitted by L-BFGS: seconds, also on a CPU.
    Its weight decay is chosen on a held-out part of the train images. With --augment it is trained by SGD on crops and
    flips.

    Test images are used once, after the last epoch. The classifier is kept as head.safetensors.
    """

    linear: evaluation.LinearOptions = evaluation.LinearOptions()
    device: options.PrecisionOptions = options.PrecisionOptions()

    def __post_init__(self) -> None:
        linear, precision = self.linear, self.device.precision
        given = (
            linear.epochs
            or linear.batch_size
            or linear.learning_rate
            or linear.crop_scale
            or precision != "auto"
        )
        flags = "--epochs, --batch-size, --learning-rate, --crop-scale, --precision"
        require(linear.augment or not given, f"{flags}: each goes with --augment")


@option_group(kw_only=True)
class Finetune(Evaluation):
    """Train the whole network, backbone and a new head, on a share of the labels; measure it on all test images.

    `--label-fraction 0.1 --seeds 0 1 2` is the usual measurement: 10 % of the labels, three times; `--from-scratch`
    beside it is what the labels alone give. The same command again continues after the last finished seed.
    """

    finetune: evaluation.FinetuneOptions = evaluation.FinetuneOptions()
    device: options.PrecisionOptions = options.PrecisionOptions()


@option_group(kw_only=True)
class Embed(Evaluation):
    """Write the backbone's features of the data set, or of any folder of images, into a file that numpy reads.

    Arrays: features (N, F) float32, labels (N,), indices (N,), split (N,), classes; of a folder also paths (N,), with
    its sub-folders as classes.
    """

    embed: evaluation.EmbedOptions = evaluation.EmbedOptions()
    device: options.AcceleratorOptions = options.AcceleratorOptions()


@option_group(kw_only=True)
class Neighbours(Evaluation):
    """Draw a gallery of nearest neighbours: for some images, the train images that the backbone finds most similar."""

    neighbours: evaluation.NeighboursOptions = evaluation.NeighboursOptions()
    device: options.AcceleratorOptions = options.AcceleratorOptions()


@option_group(kw_only=True)
class Export(Evaluation):
    """Write the backbone alone, for use elsewhere: safetensors, torch.export or ONNX, for batches of any size.

    The file holds its normalisation, image size, class names and provenance. It is loaded back and compared on
    images of the run, or else on generated ones, before it is put in place.
    """

    export: evaluation.ExportOptions = evaluation.ExportOptions()


@option_group(kw_only=True)
class Report:
    """Write one HTML page of a run, or of several side by side, and its figures as PNG.

    `python main.py report runs/simsiam_cifar10` or `python main.py report runs/*`

    Curves (kNN, loss, z_std, effective rank, images/s), a table of all results, nearest neighbours, accuracy and
    confusion of classes, a map of the features, views, and the command, versions and hardware of each run. Runs are
    named by the settings in which they differ; runs that differ only in the seed are drawn as their mean, with a band
    of one standard deviation.

    The page is one file and needs no network. Call it again, also while a run trains, to see the current state.
    """

    report: evaluation.ReportOptions
    device: options.AcceleratorOptions = options.AcceleratorOptions()


@option_group()
class Ablate(Pretrain):
    """See what each part of SimSiam is for: the same run without one or the other, and the report of them all.

    `python main.py ablate --epochs 50` trains the baseline and it without stop-gradient, without predictor and without
    BN in the heads, with the same seed and data, one after another, or one on each GPU. Each is a run of its own in
    SAVE_DIR/EXP_NAME/VARIANT; the same command again continues where it was cut off.
    """

    ablation: evaluation.AblateOptions = evaluation.AblateOptions()
    PREFIX = "ablation"


COMMANDS: dict[str, type] = {
    command.__name__.lower(): command
    for command in (Pretrain, Knn, Linear, Finetune, Embed, Neighbours, Export, Report, Ablate)
}

MAIN = Path(__file__).parents[2] / "main.py"
CUSTOM_DATASETS = ("folder", "arrays")  # a person's own images
RULES = {field.name: rule for _, field, rule, _ in iterate_options(Pretrain)}
DEFAULTS = flatten(Pretrain())
UNSET = {
    field.name: words for _, field, _, words in iterate_options(Pretrain) if words
}  # what is done without a flag


def settings_to_keep(config: Pretrain) -> dict[str, Any]:
    """What `config.yaml` and a checkpoint hold of a configuration: plain scalars by the options' names."""
    kept = {
        name: value for name, value in flatten(config).items() if RULES.get(name, PLAIN) < NOT_SAVED
    }
    if config.data.dataset in CUSTOM_DATASETS:
        kept["data_dir"] = os.path.abspath(config.data.path)  # wherever it is used from
    return kept


def settings_that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings those that change what is computed: a resumed run must have the same."""
    return {
        name: value
        for name, value in settings.items()
        if RULES.get(name, PLAIN) < CHANGEABLE_ON_RESUME
    }


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that matter and differ, as "--flag OLD, now NEW"; an older run lacks those at their default."""
    before, after = settings_that_matter({**DEFAULTS, **old}), settings_that_matter(new)

    def words(name: str, value: Any) -> str:
        value = " ".join(map(str, value)) or None if isinstance(value, list) else value
        return UNSET.get(name, "the default") if value is None else str(value)

    return [
        f"{to_flag(name)} {words(name, before.get(name))}, now {words(name, after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def shell_command(*args: object) -> str:
    """A command of this program, or with -m of a package's, as a shell in this folder takes it."""
    python, script = (
        min(str(file), os.path.relpath(file), key=len) for file in (sys.executable, MAIN)
    )
    python = "python" if shutil.which("python") == sys.executable else python
    return shlex.join(map(str, [python, *([] if args[0] == "-m" else [script]), *args]))


def command_line(settings: Mapping[str, Any], between: str = " ") -> str:
    """The shell command that starts a run of these settings, with `between` before each flag."""
    given = {
        name: value
        for name, value in settings.items()
        if name in DEFAULTS and value != DEFAULTS[name]
    }
    return between.join(["python main.py", *map(shlex.quote, to_flags(given))])


def subprocess_args(config: Pretrain) -> list[str]:
    """The arguments of a process that runs `config`; the settings of `--config` are among its flags."""
    given = {
        name: value
        for name, value in flatten(config).items()
        if value != DEFAULTS[name] and name != "config"
    }
    return [sys.executable, str(MAIN), *to_flags(given)]
