"""Groups of options: a group is a heading in `--help`, a field a flag, what stands at it its help.

The range of an option stands on its field. Nothing here imports torch, so that `--help` answers at once.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import arg

from simsiam.config.value_types import PairText, PathText, parse_pixel_range
from utils.cli import CHANGEABLE_ON_RESUME, NOT_INHERITED, NOT_SAVED, default_hint
from utils.errors import require
from utils.option_group import option_group

Dataset = Literal["cifar10", "cifar100", "patterns", "folder", "arrays"]
Precision = Literal["auto", "32", "bf16", "16"]
AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2)]  # BN needs a batch
ImageSize = Annotated[int, Field(ge=8, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@option_group()
class DataOptions:
    """Data."""

    #: cifar10 and cifar100 are downloaded if need be; patterns is generated (no file, no network), a demonstration.
    #: Your own: folder (DIR/train/CLASS/* and DIR/val/CLASS/*, DIR/CLASS/*, or DIR/* without labels), and
    #: arrays, an .npz file of x_train, y_train, x_test, y_test, or MedMNIST's.
    dataset: Dataset = "cifar10"
    data_dir: Annotated[PathText, CHANGEABLE_ON_RESUME] = "./data"
    """Folder of the data sets in torchvision's layout; or your folder of images; or your .npz file."""
    data_url: Annotated[
        str | None, default_hint("URL", "the publisher's"), CHANGEABLE_ON_RESUME
    ] = None
    """Download the archive from this mirror; its checksum must be the published one."""
    train_images: Annotated[AtLeast1 | None, default_hint("N", "all")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast1 | None, default_hint("N", "all")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[
        ImageSize | None, default_hint("PIXELS", "the data set's own; 96 of a folder")
    ] = None
    """Side of a view. Above 64, a folder's images are stored with a margin for the crops (256 pixels for 224)."""
    cache_dir: Annotated[
        PathText | None, default_hint("DIR", "~/.cache/simsiam"), CHANGEABLE_ON_RESUME
    ] = None
    """Folder for the decoded images of a folder."""
    skip_bad_images: Annotated[bool, CHANGEABLE_ON_RESUME] = (
        False  # Leave out a folder's unreadable images, instead of an error.
    )
    data_memory: Annotated[
        NotNegative | None, default_hint("GIB", "half of what is free"), CHANGEABLE_ON_RESUME
    ] = None
    """GiB of device memory for the data set; a larger one is streamed from disk."""
    held_out_images: AtLeast0 = 0
    """Evaluate on N training images, which are not trained on, instead of the test images."""
    pixel_range: Annotated[PairText | None, default_hint("LOW:HIGH", "all of 8 or 16 bits")] = None
    """Values that become black and white: for your own images of, say, 12 bits in 16 (0:4095)."""

    def __post_init__(self) -> None:
        require(
            not self.held_out_images or self.test_images is None,
            f"--test-images {self.test_images}: with --held-out-images {self.held_out_images} the test "
            "images are not used. Drop one of the two flags",
        )
        if self.pixel_range is not None:
            flag = f"--pixel-range {self.pixel_range}"
            own = self.dataset in (None, "folder", "arrays")  # None: the checkpoint's
            require(own, f"{flag}: not for {self.dataset}, whose pixels have 8 bits")
            parse_pixel_range(self.pixel_range)

    @property
    def pixel_limits(self) -> tuple[float, float] | None:
        """The two values of `pixel_range`."""
        return None if self.pixel_range is None else parse_pixel_range(self.pixel_range)

    @property
    def path(self) -> Path:
        return Path(self.data_dir).expanduser()


@option_group()
class EvaluationDataOptions(DataOptions):
    """Data: the images that the checkpoint was trained on, unless others are given."""

    dataset: Annotated[Dataset | None, default_hint("NAME", "the checkpoint's")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """cifar10, cifar100, patterns, folder or arrays."""
    data_dir: Annotated[
        PathText | None,
        default_hint("DIR", "where the run had it, or ./data"),
        CHANGEABLE_ON_RESUME,
    ] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Folder of the data sets in torchvision's layout; a folder of images; an .npz file."""
    train_images: Annotated[AtLeast1 | None, default_hint("N", "as many as the run had")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[AtLeast1 | None, default_hint("N", "as many as the run had")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[ImageSize | None, default_hint("PIXELS", "the checkpoint's")] = None
    """Of a folder: the side of the images."""
    held_out_images: Annotated[AtLeast0 | None, default_hint("N", "as many as the run had")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Evaluate on N training images that the run held out; 0 for the test images."""


@option_group()
class AugmentOptions:
    """Augmentation: the paper's pipeline for CIFAR. A strength s draws its factor from 1 - s to 1 + s."""

    crop_scale: Share = 0.2  # Smallest area of a crop, as a share of the image.
    flip: Probability = 0.5  # Probability of a left-right flip.
    jitter: Probability = 0.8
    """Probability of the colour jitter; its four operations come in a random order per sample."""
    brightness: NotNegative = 0.4  # Strength of the brightness jitter.
    contrast: NotNegative = 0.4  # Strength of the contrast jitter.
    saturation: NotNegative = 0.4  # Strength of the saturation jitter.
    hue: Annotated[float, Field(ge=0, le=0.5)] = (
        0.1  # Largest hue shift, in turns of the colour wheel.
    )
    grayscale: Probability = 0.2  # Probability of a grayscale view.


@option_group()
class NetworkOptions:
    """Network: the encoder f (backbone and projector) and the predictor h."""

    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50"] = "resnet18"
    """resnet10 is the small one, for a CPU."""
    stem: Annotated[
        Literal["cifar", "imagenet"] | None,
        default_hint("{cifar,imagenet}", "cifar up to 64 pixels"),
    ] = None
    """First layers: cifar (3x3 convolution) or imagenet (7x7 of stride 2, max-pooling)."""
    width: AtLeast1 = (
        64  # Channels of the first stage; a resnet18 has 8 x width features, a resnet50 32 x width.
    )
    in_dim: Annotated[
        AtLeast1 | None, default_hint("N", "follows from backbone and width"), CHANGEABLE_ON_RESUME
    ] = None
    """Input dimension of the projector; if given, it must be the number of the backbone's features."""
    out_dim: AtLeast1 = 1024  # Dimension d of the projections z and the predictions p.
    h_dim: AtLeast1 = 512  # Hidden dimension (bottleneck) of the predictor.
    proj_layers: Literal[2, 3] = (
        2  # Layers of the projector: the paper has 2 for CIFAR and 3 for ImageNet.
    )
    proj_hidden: Annotated[AtLeast1 | None, default_hint("N", "--out-dim")] = (
        None  # Hidden dimension of the projector.
    )
    heads_bn: Literal["paper", "none", "hidden", "all"] = "paper"
    """Layers of the heads with BN (table 3 of the paper): paper's own, none, hidden ones, or h's output too."""
    zero_init_residual: bool = (
        True  # Start each residual block as the identity (its last BN at zero).
    )
    conv_init: Literal["kaiming", "torch"] = "kaiming"
    """Initial weights of convolutions: kaiming (torchvision's) or torch (PyTorch's default)."""

    @property
    def num_features(self) -> int:
        return self.width * (32 if self.backbone == "resnet50" else 8)

    def __post_init__(self) -> None:
        known = f"{self.backbone} of width {self.width} has {self.num_features} features; change it, or leave this out"
        require(self.in_dim in (None, self.num_features), f"--in-dim {self.in_dim}: {known}")


@option_group()
class MethodOptions:
    """Method: SimSiam (arXiv 2011.10566) and its ablations."""

    views: Annotated[int, Field(ge=2)] = 2
    """Views of each image. More than two is FastSiam: each prediction against the mean of the other projections."""
    image_schedule: Annotated[tuple[str, ...], default_hint("PIXELS:EPOCHS", "none")] = ()
    """Smaller views first, which are cheaper: 16:12 24:6 is 12 epochs of 16 pixels, 6 of 24, the rest of full size."""
    stop_grad: bool = True  # Stop the gradient at z. Without it the representation collapses.
    predictor: bool = True  # Use the predictor h. Without it the representation collapses.
    fixed_predictor: bool = (
        False  # Keep h at its random initial weights (section 4.2): nothing is learned then.
    )
    symmetric: bool = (
        True  # Predict each view from the other; --no-symmetric is D(p1, z2) alone (section 4.6).
    )

    def __post_init__(self) -> None:
        for phase in self.image_schedule:
            well = re.fullmatch(r"[1-9]\d{0,3}:[1-9]\d{0,5}", phase) is not None
            require(
                well,
                f"--image-schedule {phase}: PIXELS:EPOCHS, as 16:12 for 16 pixels in the first 12 epochs",
            )
        require(
            self.predictor or not self.fixed_predictor,
            "--fixed-predictor needs a predictor: drop --no-predictor",
        )


@option_group()
class OptimizerOptions:
    """Optimizer: SGD with linear warm-up and cosine decay."""

    epochs: AtLeast1 = 800  # Length of the run; the cosine reaches 0 at its end.
    batch_size: BatchSize = (
        512  # Images in a step, each with its views; the last partial batch of an epoch is dropped.
    )
    accumulate: AtLeast1 = 1
    """Take each batch in N parts one after another, in 1/N of the memory; BN statistics are those of a part."""
    learning_rate: Annotated[Positive | Literal["auto"], arg(metavar="RATE|auto")] = 0.06
    """Peak rate for this batch size; auto is the paper's 0.03 x batch size / 256. Small runs like more: 0.15."""
    momentum: Momentum = 0.9  # Momentum of SGD.
    weight_decay: NotNegative = (
        5e-4  # On all parameters, BN included, as in the paper. Ten times more collapses.
    )
    warmup_epochs: Annotated[
        NotNegative | None, default_hint("EPOCHS", "10, or a tenth of a run below 100 epochs")
    ] = None
    """Epochs of linear warm-up."""
    constant_predictor_lr: bool = (
        False  # Keep the predictor at the peak rate throughout (section 4.2).
    )
    predictor_lr_scale: Positive = 1.0  # Multiply the predictor's peak rate by this factor.

    @property
    def peak_rate(self) -> float:
        """The learning rate, with "auto" resolved."""
        return (
            0.03 * self.batch_size / 256
            if self.learning_rate == "auto"
            else float(self.learning_rate)
        )

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default resolved."""
        return min(10, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def __post_init__(self) -> None:
        why = f"must be less than --epochs {self.epochs}, or the rate never comes down"
        require(self.warmup < self.epochs, f"--warmup-epochs {self.warmup_epochs}: {why}")


def is_collapsed(z_std: float, rankme: float | None) -> bool:
    """Whether the projections hardly differ and the effective rank of the features is low.

    Healthy runs stay above a z_std of .9. Without BN in the heads they come down to .3, but features of dozens of
    dimensions are no collapse. Where the rank is not measured (yet), z_std alone must be lower than that.
    """
    return z_std < 0.1 if rankme is None else z_std < 0.5 and rankme < 12


@option_group()
class MonitorOptions:
    """Monitoring."""

    knn_k: AtLeast1 = 200  # Neighbours that vote in the kNN monitor.
    knn_t: Positive = 0.1  # Temperature of their votes.
    knn_every: Annotated[AtLeast0, CHANGEABLE_ON_RESUME] = (
        1  # Epochs between kNN measurements (always after the last); 0: never.
    )
    pictures_every: Annotated[
        AtLeast0 | None, default_hint("EPOCHS", "a tenth of the run"), CHANGEABLE_ON_RESUME
    ] = None
    """Epochs between views and neighbours in TensorBoard; 0 for the first and the last epoch only."""
    logger: Annotated[
        tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...], CHANGEABLE_ON_RESUME
    ] = ("tensorboard",)
    """Where the curves go: into the run's folder; wandb and mlflow to where these packages' own settings say."""
    stop_on_collapse: Annotated[bool, CHANGEABLE_ON_RESUME] = False
    """End the run with status 3 when the projections collapse, instead of a warning."""


@option_group()
class AcceleratorOptions:
    """Device."""

    accelerator: Annotated[Literal["auto", "cpu", "gpu"], CHANGEABLE_ON_RESUME] = (
        "auto"  # auto is the GPU if there is one.
    )


@option_group()
class PrecisionOptions(AcceleratorOptions):
    """Device and precision."""

    precision: Precision = "auto"
    """auto is bf16 (mixed) on a GPU, and on a CPU that has it (avx512_bf16, amx_bf16); else 32."""


@option_group()
class DeviceOptions(AcceleratorOptions):
    """Devices and precision. The defaults choose themselves."""

    devices: Annotated[
        AtLeast1 | None,
        default_hint("N", "1, or as many as torchrun or srun started"),
        CHANGEABLE_ON_RESUME,
    ] = None
    """GPUs of this machine (on a CPU: processes) that share each batch."""
    num_nodes: Annotated[
        AtLeast1 | None,
        default_hint("M", "as many as torchrun or srun started it on"),
        CHANGEABLE_ON_RESUME,
    ] = None
    """Machines that share each batch; torchrun or srun starts the same command on each."""
    strategy: Annotated[Literal["auto", "ddp"], CHANGEABLE_ON_RESUME] = "auto"
    """Lightning's strategy; auto is ddp for several devices."""
    precision: Precision = "auto"
    """auto is bf16 (mixed) on a GPU, and on a CPU that has it (avx512_bf16, amx_bf16); else 32. Kept on resuming."""
    compile: Annotated[bool, CHANGEABLE_ON_RESUME] = (
        True  # Compile the step and the augmentation (on a GPU).
    )


@option_group()
class RunOptions:
    """Run: its folder, seed and checkpoints. The same command again resumes a run that was cut off."""

    save_dir: Annotated[str, CHANGEABLE_ON_RESUME] = "./runs"  # Folder of all runs.
    exp_name: Annotated[str | None, default_hint("NAME", "simsiam_DATASET"), NOT_INHERITED] = None
    """Name of the run; its folder is SAVE_DIR/EXP_NAME."""
    version: Annotated[str | None, default_hint("NAME", "none"), NOT_INHERITED] = None
    """A further folder below it: SAVE_DIR/EXP_NAME/VERSION."""
    seed: Seed = 0  # Seed of weights, order and augmentation; the same seed gives the same run.
    seeds: Annotated[
        tuple[Seed, ...], arg(help_behavior_hint="(default: --seed alone)"), NOT_SAVED
    ] = ()
    """Train once for each of these seeds, in folders seed_N of the run's, and write the report of all."""
    ckpt_dir: Annotated[str | None, default_hint("PATH", "none"), NOT_INHERITED] = None
    """Resume from this checkpoint: a .ckpt, or a folder that holds one. The settings must be the same."""
    model_path: Annotated[str | None, default_hint("PATH", "none")] = None
    """Start from these weights alone: a .ckpt, a run folder, or a backbone's .safetensors."""
    checkpoint_every: Annotated[
        AtLeast1 | None, default_hint("EPOCHS", "every 30 seconds"), CHANGEABLE_ON_RESUME
    ] = None
    """Epochs between checkpoints."""
    config: Annotated[str | None, default_hint("FILE", "none"), NOT_SAVED] = None
    """Start from the settings in the config.yaml of an earlier run (all but its name); flags beside it win."""
    overwrite: Annotated[bool, NOT_SAVED] = (
        False  # Delete an earlier run of this name and start anew.
    )
    dry_run: Annotated[bool, NOT_SAVED] = (
        False  # Print what would be trained and where it would write, and exit.
    )

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds), "--seeds: give each seed once")
        require(not self.seeds or self.ckpt_dir is None, "--ckpt-dir resumes one run: drop --seeds")
        require(
            not (self.ckpt_dir and self.model_path),
            "--ckpt-dir resumes, --model-path starts anew: give one of them",
        )
        for flag, value in (
            ("--exp-name", self.exp_name or "x"),
            ("--version", self.version or "x"),
        ):
            require(
                len(value) <= 100, f"{flag}: {len(value)} letters are too long for a folder's name"
            )
            plain = value not in (".", "..") and "/" not in value and "\\" not in value
            require(plain, f"{flag} {value!r}: a plain name, without a slash")
