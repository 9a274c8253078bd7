"""One frozen dataclass for each command: the options that it takes. The command line is made from it."""

import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from simsiam.config import evaluation_options, options
from utils import cli
from utils.cli import Command
from utils.errors import check


def check_groups(self: Any) -> None:
    """Let each group of options look at its own.

    Raises:
        UserError: a value that cannot be.
    """
    for field in fields(self):
        check(getattr(self, field.name) != "", f"--{field.name.replace('_', '-')}: an empty name; leave the flag out")
    for group in cli.groups(type(self)):
        if hasattr(group, "__post_init__"):
            group.__post_init__(self)


@dataclass(frozen=True)
class Pretrain(
    options.MonitorOptions,
    options.AugmentOptions,
    options.MethodOptions,
    options.NetworkOptions,
    options.SpeedOptions,
    options.DeviceOptions,
    options.RunOptions,
    options.OptimizerOptions,
    options.DataOptions,
):
    """Pre-train a network with SimSiam (arXiv 2011.10566); watch it by kNN; keep its weights.

    `python main.py` alone takes CIFAR-10, 800 epochs and the paper's settings, and wants a GPU.

    `python main.py --dataset patterns --backbone resnet10 --width 16 --epochs 10` is a demonstration for any machine.

    `--dry-run` beside any flags prints what would be trained and where, and exits.

    The same command again resumes a run that was cut off. Runs are folders below --save-dir.

    Further commands, each with a --help of its own: knn, linear, finetune, embed, neighbours, export, report, ablate.
    """

    __post_init__ = check_groups

    @property
    def run_dir(self) -> Path:
        run = Path(self.save_dir).expanduser() / (self.exp_name or f"simsiam_{self.dataset}")
        return run / self.version if self.version else run


@dataclass(frozen=True)
class Knn(options.AcceleratorOptions, evaluation_options.ImageOptions, evaluation_options.CheckpointOptions):
    """Classify all test images by their nearest train images: k = 1, 20, 200 and T = .07, .1, .2.

    With features of the backbone and, where the checkpoint has one, of the projector; and how each class fares.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Linear(
    options.DeviceOptions,
    evaluation_options.ImageOptions,
    evaluation_options.LinearOptions,
    evaluation_options.CheckpointOptions,
):
    """Train a linear classifier on the frozen backbone's features, and measure it on all test images.

    Without --augment the features are computed once and the classifier is fitted by L-BFGS: seconds, also on a CPU.
    Its weight decay is chosen on a held-out part of the train images. With --augment it is trained by SGD, on crops and
    flips.

    The test images are looked at once, after the last epoch. The classifier is kept as head.safetensors.
    """

    def __post_init__(self) -> None:
        check_groups(self)
        check(self.augment or self.precision == "auto", f"--precision {self.precision}: goes with --augment")


@dataclass(frozen=True)
class Finetune(
    options.DeviceOptions,
    evaluation_options.ImageOptions,
    evaluation_options.FinetuneOptions,
    evaluation_options.CheckpointOptions,
):
    """Train the whole network, backbone and a new head, on a share of the labels; measure it on all test images.

    `--label-fraction 0.1 --seeds 0 1 2` is the usual measurement: 10 % of the labels, three times; `--from-scratch`
    beside it is what the labels alone give. The same command again goes on after the last seed that was finished.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Embed(
    options.AcceleratorOptions,
    evaluation_options.ImageOptions,
    evaluation_options.EmbedOptions,
    evaluation_options.CheckpointOptions,
):
    """Write the backbone's features of the data set, or of any folder of images, into a file that numpy reads.

    Arrays: features (N, F) float32, labels (N,), indices (N,), split (N,), classes; of a folder also paths (N,), with
    its sub-folders as classes.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Neighbours(
    options.AcceleratorOptions,
    evaluation_options.ImageOptions,
    evaluation_options.NeighboursOptions,
    evaluation_options.CheckpointOptions,
):
    """Draw a gallery of nearest neighbours: for some images, the train images that the backbone finds most similar."""

    __post_init__ = check_groups


@dataclass(frozen=True)
class Export(evaluation_options.ImageOptions, evaluation_options.ExportOptions, evaluation_options.CheckpointOptions):
    """Write the backbone alone, for use elsewhere: safetensors, torch.export or ONNX, for batches of any size.

    The file says what it takes to use it (normalisation, image size, class names) and where it is from. It is loaded
    back and compared on real images before it is put in place.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Report(options.AcceleratorOptions, evaluation_options.ReportOptions):
    """Write one HTML page of a run, or of several side by side, and its figures as PNG.

    `python main.py report runs/simsiam_cifar10` or `python main.py report runs/*`

    Curves (kNN, loss, z_std, learning rate, images/s), a table of all that was measured, nearest neighbours, accuracy
    and confusion of classes, a map of the features, views, and the command, versions and hardware of each run. Runs are
    named by what differs in their settings; those that differ in nothing but the seed are drawn as their mean, with a
    band of one deviation.

    The page needs no network and nothing beside itself. Call it again, also while a run trains, to see it as it is now.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Ablate(
    options.MonitorOptions,
    options.AugmentOptions,
    options.MethodOptions,
    options.NetworkOptions,
    options.SpeedOptions,
    options.DeviceOptions,
    options.RunOptions,
    options.OptimizerOptions,
    options.DataOptions,
    options.AblateOptions,
):
    """See what each part of SimSiam is for: the same run without one or the other, and the report of them all.

    `python main.py ablate --epochs 50` trains the baseline and it without stop-gradient, without predictor and without
    BN in the heads, with the same seed and data, one after another, or one on each GPU. Each is a run of its own in
    SAVE_DIR/EXP_NAME/VARIANT; the same command again goes on where it was cut off.
    """

    __post_init__ = check_groups

    @property
    def run_dir(self) -> Path:
        return Path(self.save_dir).expanduser() / (self.exp_name or f"ablation_{self.dataset}") / (self.version or "")


COMMANDS: dict[str, type] = {
    "pretrain": Pretrain,
    "knn": Knn,
    "linear": Linear,
    "finetune": Finetune,
    "embed": Embed,
    "neighbours": Neighbours,
    "export": Export,
    "report": Report,
    "ablate": Ablate,
}

OWN = ("folder", "arrays")  # a person's images, which nobody else has
NAMING = {"exp_name", "version", "ckpt_dir"}  # an earlier run's own: a run that starts from its file is another
ONCE = {"config", "overwrite", "dry_run", "seeds"}  # what a command line says for itself alone

# What may differ between a run and its continuation: where things are, what is measured, who computes.
IMMATERIAL = {
    *("save_dir", "exp_name", "version", "ckpt_dir", "checkpoint_every", *ONCE),
    *("data_dir", "data_url", "cache_dir", "data_memory", "skip_bad_images"),
    *("in_dim", "knn_every", "pictures_every", "stop_on_collapse"),
    *("accelerator", "compile", "devices", "num_nodes", "strategy"),
}


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """As `utils.cli.parse`; a run that starts from another's `--config` does not take its name."""
    return cli.parse(command, args, prog, not_from_file=NAMING)


def settings(config: Pretrain) -> dict[str, Any]:
    """What `config.yaml` and a checkpoint remember of a configuration: plain scalars."""
    known = {name: value for name, value in asdict(config).items() if name not in ONCE}
    if config.dataset in OWN:
        known["data_dir"] = os.path.abspath(os.path.expanduser(config.data_dir))  # wherever it is used from
    return known


def command_line(settings: dict[str, Any], between: str = " ") -> str:
    """The command that starts a run of these settings, for a shell: of the flags, those that are not the default.

    Args:
        between: what stands before each flag.
    """
    usual = asdict(Pretrain())
    given = {name: value for name, value in settings.items() if name in usual and value != usual[name]}
    flags = cli.flags({name: value for name, value in given.items() if name not in ONCE})
    return between.join(["python main.py", *map(shlex.quote, flags)])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings that matter and differ, as "--flag OLD, now NEW"; an older run lacks what is at its default."""
    before = {field.name: field.default for field in fields(Pretrain)} | old
    return [
        f"--{name.replace('_', '-')} {before.get(name)}, now {new.get(name)}"
        for name in sorted(before.keys() | new.keys())
        if name not in IMMATERIAL and before.get(name) != new.get(name)
    ]
