"""Groups of options of the commands that use a trained network; see `simsiam.config.options`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simsiam.config.ablations import DEFAULT_VARIANTS, VARIANTS
from simsiam.config.options import SMALL_IMAGE
from simsiam.config.value_types import (
    AtLeast1,
    BatchSize,
    Momentum,
    NotNegative,
    PathText,
    Positive,
    Seed,
    Share,
    Zoom,
)
from utils.errors import require
from utils.option_group import Hint, Rule, option_group


@option_group(kw_only=True)
class CheckpointOptions:
    """Checkpoint and results."""

    checkpoint: Annotated[str, Hint("PATH", flag_optional=True), Rule.CHANGEABLE_ON_RESUME]
    """A run folder, a .ckpt or a .safetensors of this program. The path may also be given without
    the flag, in front of the other flags or behind them."""
    results_dir: Annotated[
        str | None, Hint("DIR", default="results in the run's folder"), Rule.CHANGEABLE_ON_RESUME
    ] = None
    """Folder for the results (JSON) and for the other files of the command."""
    overwrite: Annotated[bool, Rule.CHANGEABLE_ON_RESUME] = False
    """Replace the results of an earlier call."""


DEFAULT_ZOOM = 36 / 32  # of papers that test CIFAR with Resize(36) and CenterCrop(32)


@option_group()
class ZoomOptions:
    """Zoomed images."""

    test_zoom: Annotated[
        Zoom | None,
        Hint("FACTOR", default=f"{DEFAULT_ZOOM} for images of up to {SMALL_IMAGE} pixels, else 1"),
    ] = None
    """Measure a second time, on images that are magnified by this factor and cropped to their
    centre: 1.125 resizes 32 pixels to 36 and takes the central 32. 1 leaves this out."""


DEFAULT_LABEL_FRACTION = 0.1


@dataclass(frozen=True)
class FinetuneRates:
    """Initial learning rates of a fine-tuning."""

    backbone: float
    head: float


PRETRAINED_RATES = FinetuneRates(backbone=0.03, head=0.03)
SCRATCH_RATES = FinetuneRates(backbone=0.3, head=0.1)


@option_group()
class FinetuneOptions:
    """Fine-tuning."""

    label_fraction: Annotated[Share | None, Hint("SHARE", default=f"{DEFAULT_LABEL_FRACTION}")] = (
        None
    )
    """Share of the train labels to use: exactly that share of every class, chosen by the seed."""
    label_count: Annotated[AtLeast1 | None, Hint("N", default="--label-fraction")] = None
    """Number of labels to use instead of a share, equally many of every class."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Rule.CHANGEABLE_ON_RESUME] = (0,)
    """Train once for each seed (of label choice, order and crops); the table has the mean and the
    standard deviation of the accuracies."""
    from_scratch: bool = False
    """Train the same network from random weights instead, to see what pre-training is worth."""
    epochs: AtLeast1 = 100
    """Length of a training, in passes over the labelled images; rates decay to 0 along a cosine."""
    batch_size: BatchSize = 256
    """Images in a step."""
    learning_rate: Annotated[
        Positive | None,
        Hint(
            "RATE",
            default=f"{PRETRAINED_RATES.backbone}; {SCRATCH_RATES.backbone} from scratch",
        ),
    ] = None
    """The backbone's initial rate."""
    head_learning_rate: Annotated[
        Positive | None,
        Hint("RATE", default=f"{PRETRAINED_RATES.head}; {SCRATCH_RATES.head} from scratch"),
    ] = None
    """The head's initial rate."""
    momentum: Momentum = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of all parameters."""
    crop_scale: Share = 0.5
    """Smallest area of a crop, as a share of the image."""

    def __post_init__(self) -> None:
        require(
            self.label_count is None or self.label_fraction is None,
            "--label-fraction is a share, --label-count a number. Give one of them.",
        )

    @property
    def fraction(self) -> float:
        """The share of the train labels, with the default resolved."""
        return self.label_fraction or DEFAULT_LABEL_FRACTION

    @property
    def rates(self) -> FinetuneRates:
        """The initial learning rates, with the defaults resolved."""
        defaults = SCRATCH_RATES if self.from_scratch else PRETRAINED_RATES
        return FinetuneRates(
            backbone=self.learning_rate or defaults.backbone,
            head=self.head_learning_rate or defaults.head,
        )


@option_group()
class EmbedOptions:
    """Embedding."""

    output: Annotated[str | None, Hint("FILE", default="features.npz in the results folder")] = None
    """The .npz file to write, or a .parquet file (needs pyarrow)."""
    images: Annotated[str | None, Hint("DIR", default="the data set")] = None
    """Embed all images in this folder and below it, or of a .txt or .csv list, instead of the data
    set (their central square, resized)."""
    split: Annotated[Literal["both", "train", "test"] | None, Hint("SPLIT", default="both")] = None
    """Part of the data set: both, train or test."""
    test_zoom: Annotated[Zoom, Hint("FACTOR")] = 1.0
    """Magnify the images by this factor and crop them to their centre, as knn and linear do for
    their second measurement (1.125)."""

    def __post_init__(self) -> None:
        require(
            self.output is None or self.output.endswith((".npz", ".parquet")),
            f"--output {self.output}: give a name that ends in .npz or .parquet",
        )


@option_group()
class NeighboursOptions:
    """Gallery: a row for each query, with its nearest train images."""

    output: Annotated[str | None, Hint("FILE", default="neighbours.png in the results folder")] = (
        None
    )
    """The picture to write."""
    images: Annotated[str | None, Hint("DIR", default="test images")] = None
    """Take the queries from this folder or list of images instead of the test images."""
    queries: Annotated[int, Field(ge=1, le=50)] = 10
    """Queries, spread evenly over all images."""
    k: Annotated[int, Field(ge=1, le=50)] = 10
    """Neighbours of each query."""

    def __post_init__(self) -> None:
        require(
            self.output is None or self.output.endswith(".png"),
            f"--output {self.output}: give a name that ends in .png",
        )


@option_group()
class ExportOptions:
    """File."""

    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    """safetensors (weights under torchvision's names), torch-export (a .pt2 program for torch), or
    onnx."""
    output: Annotated[str | None, Hint("FILE", default="backbone.SUFFIX in the results folder")] = (
        None
    )
    """The file to write; its name must end as the format does: .safetensors, .pt2 or .onnx."""


@option_group()
class CacheOptions:
    """Caches."""

    cache_dir: Annotated[PathText | None, Hint("DIR", default="~/.cache/simsiam")] = None
    """Folder of the caches."""
    clear: Annotated[str | None, Hint("NAME", default="none")] = None
    """Remove the cache of this name; all removes all of them."""


@option_group(kw_only=True)
class ReportOptions:
    """Report."""

    runs: Annotated[tuple[str, ...], Hint("RUN [RUN ...]", positional=True)]
    """Folders of runs (finished, training or killed), or folders that hold several runs, as
    --seeds makes them."""
    output: Annotated[
        str | None,
        Hint("DIR", default="report in the run's folder, or in the folder that holds the runs"),
    ] = None
    """Folder for index.html and figures/*.png. An earlier report in it is replaced; other files
    stay."""
    pictures: bool = True
    """Draw what needs a checkpoint and its images, for at most four runs: neighbours, classes, the
    map of features."""
    data_dir: Annotated[str | None, Hint("DIR", default="where the run had it, or ./data")] = None
    """Folder of the data sets. Nothing is downloaded; the report of a run whose images are missing
    has none of the --pictures."""

    def __post_init__(self) -> None:
        require(
            len(self.runs) > 0,
            "give the folder of a run, or of several: main.py report RUN [RUN ...]",
        )


@option_group()
class AblateOptions:
    """Ablation: variants of SimSiam that each lack or change one thing."""

    variants: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULT_VARIANTS
    """Variants of the paper to train: baseline, no-stop-grad, no-predictor, fixed-predictor,
    constant-predictor-lr, no-bn, hidden-bn and all-bn (in the heads), asymmetric, and batch-64 to
    batch-4096 (the rate follows the batch)."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        require(
            not unknown,
            f"--variants {' '.join(unknown)}: unknown. There are {', '.join(VARIANTS)}",
        )
        require(
            len(set(self.variants)) == len(self.variants),
            "--variants has a variant twice. Give each variant once.",
        )
