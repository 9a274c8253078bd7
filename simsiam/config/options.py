"""Groups of options: a group is a heading in `--help`, a field is a flag, and the string below a field is its help.

Nothing here imports torch, so that `--help` answers at once.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simsiam.config.ablations import USUAL, VARIANTS
from utils.cli import left_out
from utils.errors import check

Dataset = Literal["cifar10", "cifar100", "patterns", "folder", "arrays"]


def check_seed(seed: int) -> None:
    check(0 <= seed < 2**63, f"--seed {seed}: 0 or more, and below 2**63")


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    dataset: Dataset = "cifar10"
    """cifar10 and cifar100 are downloaded if need be; patterns is generated: no file, no network, a demonstration.
    Your own: folder (of images: DIR/train/CLASS/* and DIR/val/CLASS/*, DIR/CLASS/*, or DIR/* without labels), and
    arrays (an .npz of x_train, y_train, x_test, y_test)."""
    data_dir: str = "./data"
    """Folder of the data sets, as torchvision lays them out; your folder of images; your .npz file."""
    data_url: Annotated[str | None, left_out("URL", "the publisher's")] = None
    """Another address of the data set's archive (a mirror); its checksum must be the published one."""
    train_images: Annotated[int | None, left_out("N", "all")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[int | None, left_out("N", "all")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[int | None, left_out("PIXELS", "the data set's own; 96 of a folder")] = None
    """Side of a view. Beyond 64, a folder's images are stored with a margin for the crops: 256 pixels for 224."""
    cache_dir: Annotated[str | None, left_out("DIR", "~/.cache/simsiam")] = None
    """Where a folder's decoded images are kept, until they change."""
    skip_bad_images: bool = False
    """Leave out the images of a folder that cannot be read, instead of an error."""
    data_memory: Annotated[float | None, left_out("GIB", "half of what is free")] = None
    """Memory that images may take where it computes. More of them are read from the disk while it trains."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: at least 1, or leave it out")
        size = self.image_size
        check(size is None or 8 <= size <= 1024, f"--image-size {size}: 8 to 1024 pixels")
        memory = self.data_memory
        check(memory is None or 0 <= memory < math.inf, f"--data-memory {memory}: GiB, 0 or more")


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
    """resnet10 is the small one, for a CPU."""
    stem: Annotated[Literal["cifar", "imagenet"] | None, left_out("{cifar,imagenet}", "cifar up to 64 pixels")] = None
    """What the network begins with: cifar (3x3, no max-pooling) or imagenet (7x7 of stride 2, max-pooling)."""
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
    heads_bn: Literal["paper", "none", "hidden", "all"] = "paper"
    """Layers of the heads with BN (table 3 of the paper): its own, none, the hidden ones, or h's output too."""
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
    fixed_predictor: bool = False
    """Leave h at its random initial weights (the paper's section 4.2): then nothing is learned."""
    symmetric: bool = True
    """Predict each view from the other; --no-symmetric is D(p1, z2) alone (section 4.6)."""

    def __post_init__(self) -> None:
        check(self.views >= 2, f"--views {self.views}: at least 2")
        check(self.predictor or not self.fixed_predictor, "--fixed-predictor: goes without --no-predictor")


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with warm-up and cosine."""

    epochs: int = 800
    """Length of the run, in passes over the train images; the cosine reaches 0 at its end."""
    batch_size: int = 512
    """Images in a step, each with its views; the last partial batch of an epoch is left out."""
    accumulate: int = 1
    """Take each batch in N parts, one after the other, for 1/N of the memory; BN's statistics are those of a part."""
    learning_rate: Annotated[float | Literal["auto"], tyro.conf.arg(metavar="RATE|auto")] = 0.06
    """Peak rate, for this batch size; auto is the paper's 0.03 x batch size / 256. Small runs like more: 0.15."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """On all parameters, BN included, as in the paper. It is sharp: ten times more collapses."""
    warmup_epochs: Annotated[float | None, left_out("EPOCHS", "10, but a tenth of a run below 100 epochs")] = None
    """Epochs of linear warm-up."""
    constant_predictor_lr: bool = False
    """Keep the predictor at the peak rate throughout (the paper's section 4.2)."""

    @property
    def peak_rate(self) -> float:
        """The learning rate, after "auto" is worked out."""
        return 0.03 * self.batch_size / 256 if self.learning_rate == "auto" else float(self.learning_rate)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, after the default is filled in."""
        return min(10, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def __post_init__(self) -> None:
        check(self.epochs >= 1, f"--epochs {self.epochs}: at least 1")
        check(self.batch_size >= 2, f"--batch-size {self.batch_size}: at least 2, since BN needs a batch")
        check(
            self.accumulate >= 1 and self.batch_size % self.accumulate == 0 and self.batch_size >= 2 * self.accumulate,
            f"--accumulate {self.accumulate}: so many equal parts, of at least 2, of --batch-size {self.batch_size}",
        )
        check(0 < self.peak_rate < math.inf, f"--learning-rate {self.learning_rate}: above 0, or auto")
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
    pictures_every: Annotated[int | None, left_out("EPOCHS", "a tenth of the run")] = None
    """Put views and neighbours into TensorBoard each N epochs; 0 for the first and the last alone."""
    stop_on_collapse: bool = False
    """End the run with status 3 when the projections collapse, instead of a warning."""

    def __post_init__(self) -> None:
        check(self.knn_k >= 1, f"--knn-k {self.knn_k}: at least 1")
        check(0 < self.knn_t < math.inf, f"--knn-t {self.knn_t}: above 0")
        check(
            self.pictures_every is None or self.pictures_every >= 0,
            f"--pictures-every {self.pictures_every}: 0 (at the ends alone) or more",
        )
        check(self.knn_every >= 0, f"--knn-every {self.knn_every}: 0 (never) or more")


@dataclass(frozen=True)
class AcceleratorOptions:
    """Where it computes."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto is the GPU if there is one."""


@dataclass(frozen=True)
class DeviceOptions(AcceleratorOptions):
    """Where and how it computes. The defaults choose themselves."""

    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """auto is bf16 (mixed) on a GPU that can, else 32."""


@dataclass(frozen=True)
class SpeedOptions:
    """What makes it fast."""

    compile: bool = True
    """Compile networks and augmentation where that pays: on a GPU."""
    devices: Annotated[int | None, left_out("N", "1, or as many as torchrun or srun started")] = None
    """Devices of this machine (on a CPU: processes) that share each batch."""
    num_nodes: Annotated[int | None, left_out("M", "as many as torchrun or srun started it on")] = None
    """Machines that share it; torchrun or srun starts the same command on each."""
    strategy: Literal["auto", "ddp"] = "auto"
    """Lightning's; auto is ddp for several devices."""

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: at least 1")


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
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="(default: the one run)")] = ()
    """Train once for each of these seeds, in folders seed_N of the run's, and write the report of all."""
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
        for seed in (self.seed, *self.seeds):
            check_seed(seed)
        check(len(set(self.seeds)) == len(self.seeds), "--seeds: each once")
        check(not self.seeds or self.ckpt_dir is None, "--ckpt-dir: goes with one run, without --seeds")
        check(self.checkpoint_every is None or self.checkpoint_every >= 1, "--checkpoint-every: at least 1")
        check(not (self.ckpt_dir and self.model_path), "--ckpt-dir resumes, --model-path starts anew: give one of them")
        for flag, value in (("--exp-name", self.exp_name), ("--version", self.version)):
            named = value is None or (value not in ("", ".", "..") and "/" not in value and "\\" not in value)
            check(named, f"{flag} {value!r}: a plain name, without a slash")
            check(len(value or "") <= 100, f"{flag}: {len(value or '')} letters are too long for a folder's name")


# ---------------------------------------------------------------- of the commands that use what was learned


@dataclass(frozen=True)
class AblateOptions:
    """What is taken away or changed, one thing at a time."""

    variants: tuple[str, ...] = USUAL
    """The paper's: baseline, no-stop-grad, no-predictor, fixed-predictor, constant-predictor-lr, no-bn, hidden-bn and
    all-bn (in the heads), asymmetric, and batch-64 to batch-4096 (the rate follows the batch)."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        check(not unknown, f"--variants {' '.join(unknown)}: there are {', '.join(VARIANTS)}")
        check(len(set(self.variants)) == len(self.variants) > 0, "--variants: at least one, each once")
