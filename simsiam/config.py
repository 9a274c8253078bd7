"""What can be set, for each command: frozen dataclasses, from which the command line is made.

A command inherits its groups of options; a group is a heading in `--help`, a field is a flag, and the string below a
field is its help. Nothing here imports torch, so that `--help` answers at once.
"""

import contextlib
import io
import itertools
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from utils.errors import UserError, check


def left_out(metavar: str, default: str) -> Any:
    """How `--help` shows a flag whose default is None: what it takes, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    dataset: Literal["cifar10", "cifar100", "patterns"] = "cifar10"
    """cifar10 and cifar100 are downloaded if need be; patterns is generated: no file, no network, a demonstration."""
    data_dir: str = "./data"
    """Folder of the data sets, as torchvision lays them out."""
    data_url: Annotated[str | None, left_out("URL", "the publisher's")] = None
    """Another address of the data set's archive (a mirror); its checksum must be the published one."""
    train_images: Annotated[int | None, left_out("N", "all")] = None
    """Use the first N images of the train split."""
    test_images: Annotated[int | None, left_out("N", "all")] = None
    """Use the first N images of the test split."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: at least 1, or leave it out")


@dataclass(frozen=True)
class AugmentOptions:
    """How an image becomes a view: the paper's pipeline for CIFAR. Probabilities are 0 to 1."""

    crop_scale: float = 0.2
    """Least area of a crop, as a share of the image."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: float = 0.8
    """Probability of the colour jitter, whose four operations come in a random order for each sample."""
    brightness: float = 0.4
    """Strength s: the factor is drawn from 1 - s to 1 + s."""
    contrast: float = 0.4
    """Strength, likewise."""
    saturation: float = 0.4
    """Strength, likewise."""
    hue: float = 0.1
    """Largest shift of the hue, in turns of the colour wheel (0 to 0.5)."""
    grayscale: float = 0.2
    """Probability of a view without colour."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"--{name} {value}: a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"--{name} {value}: a strength is 0 or more")
        check(0 < self.crop_scale <= 1, f"--crop-scale {self.crop_scale}: above 0 and at most 1")
        check(0 <= self.hue <= 0.5, f"--hue {self.hue}: 0 to 0.5 turns")


@dataclass(frozen=True)
class NetworkOptions:
    """The encoder f (backbone and projector) and the predictor h."""

    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50"] = "resnet18"
    """CIFAR-variant ResNet: 3x3 stem, no max-pooling. resnet10 is the small one, for a CPU."""
    width: int = 64
    """Channels of the first stage; a resnet18 has 8 x width features, a resnet50 32 x width."""
    in_dim: Annotated[int | None, left_out("N", "follows from backbone and width")] = None
    """Features that the projector gets. They follow from backbone and width; if given, it must be that number."""
    out_dim: int = 1024
    """Dimension d of the projections z and the predictions p."""
    h_dim: int = 512
    """Hidden dimension of the predictor, its bottleneck."""
    proj_layers: Literal[2, 3] = 2
    """Layers of the projector: the paper has 2 for CIFAR and 3 for ImageNet."""
    proj_hidden: Annotated[int | None, left_out("N", "--out-dim")] = None
    """Hidden dimension of the projector."""
    zero_init_residual: bool = True
    """Start each residual block as the identity (its last BN at zero)."""

    @property
    def num_features(self) -> int:
        return self.width * (32 if self.backbone == "resnet50" else 8)

    def __post_init__(self) -> None:
        for name in ("width", "out_dim", "h_dim", "proj_hidden"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: at least 1")
        check(
            self.in_dim in (None, self.num_features),
            f"--in-dim {self.in_dim}: {self.backbone} of width {self.width} has {self.num_features} features; "
            "change --width, or leave --in-dim out",
        )


@dataclass(frozen=True)
class MethodOptions:
    """SimSiam itself (arXiv 2011.10566) and the switches of its ablations."""

    views: int = 2
    """Views of each image. More than two is FastSiam: each prediction against the mean of the other projections."""
    stop_grad: bool = True
    """Stop the gradient at z. Without it the representation collapses."""
    predictor: bool = True
    """Use the predictor h. Without it the representation collapses."""

    def __post_init__(self) -> None:
        check(self.views >= 2, f"--views {self.views}: at least 2")


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with warm-up and cosine."""

    epochs: int = 800
    """Length of the run, in passes over the train images; the cosine reaches 0 at its end."""
    batch_size: int = 512
    """Images in a step, each with its views; the last partial batch of an epoch is left out."""
    learning_rate: float = 0.06
    """Peak rate, for this batch size (the paper: 0.03 x batch size / 256). Small runs like more: 0.15."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """On all parameters, BN included, as in the paper. It is sharp: ten times more collapses."""
    warmup_epochs: Annotated[float | None, left_out("EPOCHS", "10, but a tenth of a run below 100 epochs")] = None
    """Epochs of linear warm-up."""
    constant_predictor_lr: bool = False
    """Keep the predictor at the peak rate throughout (the paper's section 4.2)."""

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, after the default is filled in."""
        return min(10, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def __post_init__(self) -> None:
        check(self.epochs >= 1, f"--epochs {self.epochs}: at least 1")
        check(self.batch_size >= 2, f"--batch-size {self.batch_size}: at least 2, since BN needs a batch")
        check(0 < self.learning_rate < math.inf, f"--learning-rate {self.learning_rate}: above 0")
        check(0 <= self.momentum < 1, f"--momentum {self.momentum}: 0 or more, and below 1")
        check(0 <= self.weight_decay < math.inf, f"--weight-decay {self.weight_decay}: 0 or more")
        check(
            0 <= self.warmup < self.epochs,
            f"--warmup-epochs {self.warmup_epochs}: from 0 to less than --epochs {self.epochs}, or the rate never "
            f"comes down; left out it is {min(10, self.epochs / 10):g}",
        )


@dataclass(frozen=True)
class MonitorOptions:
    """What is measured while it trains."""

    knn_k: int = 200
    """Neighbours that vote in the kNN monitor."""
    knn_t: float = 0.1
    """Temperature of their votes."""
    knn_every: int = 1
    """Measure kNN each N epochs (and always after the last); 0 for never."""
    stop_on_collapse: bool = False
    """End the run with status 3 when the projections collapse, instead of a warning."""

    def __post_init__(self) -> None:
        check(self.knn_k >= 1, f"--knn-k {self.knn_k}: at least 1")
        check(0 < self.knn_t < math.inf, f"--knn-t {self.knn_t}: above 0")
        check(self.knn_every >= 0, f"--knn-every {self.knn_every}: 0 (never) or more")


@dataclass(frozen=True)
class DeviceOptions:
    """Where and how it computes. The defaults choose themselves."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto is the GPU if there is one."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """auto is bf16 (mixed) on a GPU that can, else 32."""
    compile: bool = True
    """Compile networks and augmentation where that pays: on a GPU."""


@dataclass(frozen=True)
class RunOptions:
    """Where the run lives and where it starts. The same command again resumes a run that was cut off."""

    save_dir: str = "./runs"
    """Folder of all runs."""
    exp_name: Annotated[str | None, left_out("NAME", "simsiam_DATASET")] = None
    """Name of the run: its folder is SAVE_DIR/EXP_NAME."""
    version: Annotated[str | None, left_out("NAME", "none")] = None
    """A further folder below it: SAVE_DIR/EXP_NAME/VERSION."""
    seed: int = 0
    """Same seed, same run: of the weights, the order and each augmentation."""
    ckpt_dir: Annotated[str | None, left_out("PATH", "none")] = None
    """Resume from this checkpoint: a .ckpt, or a folder that holds one. Its settings must be these."""
    model_path: Annotated[str | None, left_out("PATH", "none")] = None
    """Start from these weights alone: a .ckpt, a run folder, or a .safetensors of a backbone."""
    checkpoint_every: Annotated[int | None, left_out("EPOCHS", "once 30 seconds have gone by")] = None
    """Epochs between checkpoints."""
    config: Annotated[str | None, left_out("FILE", "none")] = None
    """Start from the settings in the config.yaml of an earlier run, all but its name; flags given beside it win."""
    overwrite: bool = False
    """Delete an earlier run of this name and start anew."""
    dry_run: bool = False
    """Print what would be trained and where it would write, and exit."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**63, f"--seed {self.seed}: 0 or more, and below 2**63")
        check(self.checkpoint_every is None or self.checkpoint_every >= 1, "--checkpoint-every: at least 1")
        check(not (self.ckpt_dir and self.model_path), "--ckpt-dir resumes, --model-path starts anew: give one of them")
        for flag, value in (("--exp-name", self.exp_name), ("--version", self.version)):
            named = value is None or (value not in ("", ".", "..") and "/" not in value and "\\" not in value)
            check(named, f"{flag} {value!r}: a plain name, without a slash")
            check(len(value or "") <= 100, f"{flag}: {len(value or '')} letters are too long for a folder's name")


HELP = """Pre-train a network with SimSiam (arXiv 2011.10566); watch it by kNN; keep its weights.

`python main.py` alone takes CIFAR-10, 800 epochs and the paper's settings, and wants a GPU.

`python main.py --dataset patterns --backbone resnet10 --width 16 --epochs 10` is a demonstration for any machine.

`--dry-run` beside any flags prints what would be trained and where, and exits.

The same command again resumes a run that was cut off. Runs are folders below --save-dir."""


@dataclass(frozen=True)
class Pretrain(
    MonitorOptions,
    AugmentOptions,
    MethodOptions,
    NetworkOptions,
    DeviceOptions,
    RunOptions,
    OptimizerOptions,
    DataOptions,
):
    """Pre-train a network with SimSiam; watch it by kNN; keep its weights."""

    def __post_init__(self) -> None:
        for group in groups(type(self)):
            if "__post_init__" in vars(group):
                group.__post_init__(self)

    @property
    def run_dir(self) -> Path:
        run = Path(self.save_dir).expanduser() / (self.exp_name or f"simsiam_{self.dataset}")
        return run / self.version if self.version else run


COMMANDS: dict[str, type[Pretrain]] = {"pretrain": Pretrain}

NAMING = {"exp_name", "version", "ckpt_dir"}  # an earlier run's own: a run that starts from its file is another
ONCE = {"config", "overwrite", "dry_run"}  # what a command line says for itself alone

# What may differ between a run and its continuation: where things are, what is measured, who computes.
IMMATERIAL = {
    *("save_dir", "exp_name", "version", "ckpt_dir", "checkpoint_every", *ONCE),
    *("data_dir", "data_url", "in_dim", "knn_every", "stop_on_collapse", "accelerator", "compile"),
}


def groups(command: type) -> list[type]:
    """The option groups of a command, in the order of `--help`."""
    return [c for c in reversed(command.__mro__) if is_dataclass(c) and c is not command]


def parse(command: type[Pretrain], args: list[str], prog: str) -> Pretrain:
    """The command's dataclass from its flags; `--config FILE` puts that file's settings before them.

    Each group is a nested dataclass to tyro, which makes the headings of `--help`; the result is flat.

    Raises:
        UserError: a flag or a setting that cannot be.
        SystemExit: after `--help`.
    """
    named = {g.__name__.removesuffix("Options").lower(): g for g in groups(command)}
    nested = make_dataclass("Flags", [(name, g, field(default=g())) for name, g in named.items()], frozen=True)
    nested.__doc__ = command.__doc__
    if {"-h", "--help"} & set(args):
        tyro.cli(tyro.conf.OmitArgPrefixes[nested], args=["--help"], prog=prog, description=HELP)
    args = _flags_of_file(command, args) + args
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"  # tyro draws a box around its message: let it not fold
    try:
        with contextlib.redirect_stderr(printed):
            flags = tyro.cli(tyro.conf.OmitArgPrefixes[nested], args=args, prog=prog)
    except SystemExit as stop:
        if not stop.code:  # it printed what was asked for
            raise
        raise UserError(_message(printed.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return command(**{f.name: getattr(getattr(flags, name), f.name) for name, g in named.items() for f in fields(g)})


def _message(box: str) -> str:
    """What tyro says in its box: the first lines below the title, up to a rule."""
    rows = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    rules = (bool(row) and set(row) <= {"\u2500", "-"} for row in rows)  # of hyphens where the locale has no boxes
    sections = itertools.groupby(zip(rows, rules, strict=True), key=lambda pair: pair[1])
    texts = (" ".join(row for row, _ in section).strip() for is_rule, section in sections if not is_rule)
    message = next((text for text in texts if text), "this command line cannot be read")
    return re.sub(r"^Error parsing \w+: ", "", message)  # a group is nothing that a person typed


def _flags_of_file(command: type, args: list[str]) -> list[str]:
    """The settings of the file that `--config` names, written as flags."""
    values = [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    values += [after for flag, after in itertools.pairwise(args) if flag == "--config"]
    if not values:
        return []
    file = Path(values[-1]).expanduser()
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {file}: {' '.join(str(error).split())}") from None
    settings = content.get("settings") if isinstance(content, dict) else None
    check(isinstance(settings, dict), f"--config {file}: not a config.yaml of a run (it has no `settings`)")
    assert isinstance(settings, dict)
    unknown = settings.keys() - {f.name for f in fields(command)}
    check(not unknown, f"--config {file}: unknown setting {', '.join(sorted(map(str, unknown)))}")
    flags = []
    for name, value in settings.items():
        if name in NAMING:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags.append(f"--{flag}={value}")
    return flags


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
