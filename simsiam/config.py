"""One frozen dataclass for each command: the options that it takes. The command line is made from it."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from simsiam import options
from utils import commandline
from utils.commandline import Command
from utils.errors import check


def check_groups(self: Any) -> None:
    """Let each group of options look at its own.

    Raises:
        UserError: a value that cannot be.
    """
    for field in fields(self):
        check(getattr(self, field.name) != "", f"--{field.name.replace('_', '-')}: an empty name; leave the flag out")
    for group in commandline.groups(type(self)):
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

    Further commands, each with a --help of its own: knn, linear, finetune, embed, neighbours, export.
    """

    __post_init__ = check_groups

    @property
    def run_dir(self) -> Path:
        run = Path(self.save_dir).expanduser() / (self.exp_name or f"simsiam_{self.dataset}")
        return run / self.version if self.version else run


@dataclass(frozen=True)
class Knn(options.AcceleratorOptions, options.ImageOptions, options.CheckpointOptions):
    """Classify all test images by their nearest train images: k = 1, 20, 200 and T = .07, .1, .2.

    With features of the backbone and, where the checkpoint has one, of the projector; and how each class fares.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Linear(options.DeviceOptions, options.ImageOptions, options.LinearOptions, options.CheckpointOptions):
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
class Finetune(options.DeviceOptions, options.ImageOptions, options.FinetuneOptions, options.CheckpointOptions):
    """Train the whole network, backbone and a new head, on a share of the labels; measure it on all test images.

    `--label-fraction 0.1 --seeds 0 1 2` is the usual measurement: 10 % of the labels, three times; `--from-scratch`
    beside it is what the labels alone give. The same command again goes on after the last seed that was finished.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Embed(options.AcceleratorOptions, options.ImageOptions, options.EmbedOptions, options.CheckpointOptions):
    """Write the backbone's features of the data set, or of any folder of images, into a file that numpy reads.

    Arrays: features (N, F) float32, labels (N,), indices (N,), split (N,), classes; of a folder also paths (N,), with
    its sub-folders as classes.
    """

    __post_init__ = check_groups


@dataclass(frozen=True)
class Neighbours(
    options.AcceleratorOptions, options.ImageOptions, options.NeighboursOptions, options.CheckpointOptions
):
    """Draw a gallery of nearest neighbours: for some images, the train images that the backbone finds most similar."""

    __post_init__ = check_groups


@dataclass(frozen=True)
class Export(options.ImageOptions, options.ExportOptions, options.CheckpointOptions):
    """Write the backbone alone, for use elsewhere: safetensors, torch.export or ONNX, for batches of any size.

    The file says what it takes to use it (normalisation, image size, class names) and where it is from. It is loaded
    back and compared on real images before it is put in place.
    """

    __post_init__ = check_groups


COMMANDS: dict[str, type] = {
    "pretrain": Pretrain,
    "knn": Knn,
    "linear": Linear,
    "finetune": Finetune,
    "embed": Embed,
    "neighbours": Neighbours,
    "export": Export,
}

NAMING = {"exp_name", "version", "ckpt_dir"}  # an earlier run's own: a run that starts from its file is another
ONCE = {"config", "overwrite", "dry_run"}  # what a command line says for itself alone

# What may differ between a run and its continuation: where things are, what is measured, who computes.
IMMATERIAL = {
    *("save_dir", "exp_name", "version", "ckpt_dir", "checkpoint_every", *ONCE),
    *("data_dir", "data_url", "cache_dir", "data_memory", "skip_bad_images"),
    *("in_dim", "knn_every", "stop_on_collapse", "accelerator", "compile", "devices"),
}


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """As `utils.commandline.parse`; a run that starts from another's `--config` does not take its name."""
    return commandline.parse(command, args, prog, not_from_file=NAMING)


def settings(config: Pretrain) -> dict[str, Any]:
    """What `config.yaml` and a checkpoint remember of a configuration: plain scalars."""
    return {name: value for name, value in asdict(config).items() if name not in ONCE}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings that matter and differ, as "--flag OLD, now NEW"."""
    return [
        f"--{name.replace('_', '-')} {old.get(name)}, now {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in IMMATERIAL and old.get(name) != new.get(name)
    ]
