"""Groups of options of the commands that use a trained network; as `simsiam.config.options`."""

from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from simsiam.config.ablations import USUAL, VARIANTS
from simsiam.config.options import AtLeast1, BatchSize, Momentum, NotNegative, Positive, Seed, Share
from utils.cli import CHANGEABLE_ON_RESUME, default_hint
from utils.errors import require
from utils.option_group import option_group


@option_group(kw_only=True)
class CheckpointOptions:
    """Checkpoint and results."""

    checkpoint: Annotated[str, arg(metavar="PATH"), CHANGEABLE_ON_RESUME]
    """A run folder, a .ckpt or a .safetensors of this program; it may also come first, without the flag."""
    results_dir: Annotated[
        str | None, default_hint("DIR", "results in the run's folder"), CHANGEABLE_ON_RESUME
    ] = None
    """Folder for the figures (JSON) and whatever else the command makes."""
    overwrite: Annotated[bool, CHANGEABLE_ON_RESUME] = (
        False  # Replace the results of an earlier call.
    )


@option_group()
class LinearOptions:
    """Linear classifier."""

    augment: bool = False  # Train with crops and flips by SGD, as papers do; else on features computed once, by L-BFGS.
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Without --augment: share of the train images on which the weight decay is chosen; then all are used."""
    epochs: Annotated[AtLeast1 | None, default_hint("EPOCHS", "100")] = None
    """With --augment: length of the training; the rate decays to 0 along a cosine."""
    batch_size: Annotated[AtLeast1 | None, default_hint("N", "256")] = (
        None  # With --augment: images in a step.
    )
    learning_rate: Annotated[Positive | None, default_hint("RATE", "0.1")] = None
    """With --augment: the head's initial rate, for standardised features."""
    crop_scale: Annotated[Share | None, default_hint("SHARE", "0.8")] = None
    """With --augment: smallest area of a crop, as a share of the image."""
    seed: Seed = 0  # Seed of the held-out choice, the order and the crops.
    from_scratch: bool = False  # Probe the same network with random weights instead, to see what pre-training is worth.


@option_group()
class FinetuneOptions:
    """Fine-tuning."""

    label_fraction: Annotated[Share | None, default_hint("SHARE", "0.1")] = None
    """Share of the train labels to use: exactly that share of every class, chosen by the seed."""
    label_count: Annotated[AtLeast1 | None, default_hint("N", "--label-fraction")] = None
    """Use N labels instead, equally many of every class."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), CHANGEABLE_ON_RESUME] = (0,)
    """One training for each seed (of label choice, order and crops); the table has their mean and deviation."""
    from_scratch: bool = False  # Train the same network from random weights instead, to see what pre-training is worth.
    epochs: AtLeast1 = 100  # Length of a training, in passes over the labelled images; rates decay to 0 along a cosine.
    batch_size: BatchSize = 256  # Images in a step.
    learning_rate: Annotated[Positive | None, default_hint("RATE", "0.03; 0.3 from scratch")] = None
    """The backbone's initial rate."""
    head_learning_rate: Annotated[
        Positive | None, default_hint("RATE", "0.03; 0.1 from scratch")
    ] = None
    """The head's initial rate."""
    momentum: Momentum = 0.9  # Momentum of SGD.
    weight_decay: NotNegative = 5e-4  # On all parameters.
    crop_scale: Share = 0.5  # Smallest area of a crop, as a share of the image.

    def __post_init__(self) -> None:
        require(
            self.label_count is None or self.label_fraction is None,
            "--label-fraction is a share, --label-count a number: give one of them",
        )


@option_group()
class EmbedOptions:
    """Embedding."""

    output: Annotated[str | None, default_hint("FILE", "features.npz in the results folder")] = (
        None  # The .npz file to write.
    )
    images: Annotated[str | None, default_hint("DIR", "the data set")] = None
    """Embed all images in this folder and below it (their central square, resized) instead of the data set."""
    split: Literal["both", "train", "test"] = "both"  # Part of the data set.

    def __post_init__(self) -> None:
        require(
            self.output is None or self.output.endswith(".npz"),
            f"--output {self.output}: a name that ends in .npz",
        )


@option_group()
class NeighboursOptions:
    """Gallery: a row for each query, with its nearest train images."""

    output: Annotated[str | None, default_hint("FILE", "neighbours.png in the results folder")] = (
        None  # The picture to write.
    )
    images: Annotated[str | None, default_hint("DIR", "test images")] = None
    """Take the queries from this folder of images instead of the test images."""
    queries: Annotated[int, Field(ge=1, le=50)] = 10  # Queries, spread evenly over all images.
    k: Annotated[int, Field(ge=1, le=50)] = 10  # Neighbours of each.

    def __post_init__(self) -> None:
        require(
            self.output is None or self.output.endswith(".png"),
            f"--output {self.output}: a name that ends in .png",
        )


@option_group()
class ExportOptions:
    """File."""

    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    """safetensors (weights under torchvision's names), torch-export (a .pt2 program for torch), or onnx."""
    output: Annotated[str | None, default_hint("FILE", "backbone.SUFFIX in the results folder")] = (
        None
    )
    """Where to write it: a name that ends in .safetensors, .pt2 or .onnx, as the format has it."""


@option_group(kw_only=True)
class ReportOptions:
    """Report."""

    runs: Annotated[
        tuple[str, ...],
        Positional,
        arg(metavar="RUN [RUN ...]", help_behavior_hint="(one at least)"),
    ]
    """Folders of runs (finished, training, or killed), or of several, as --seeds makes them."""
    output: Annotated[
        str | None,
        default_hint("DIR", "report in the run's folder, or in that which holds the runs"),
    ] = None
    """Folder for index.html and figures/*.png. It replaces an earlier report there, and nothing else."""
    pictures: bool = True
    """Draw what needs a checkpoint and its images: neighbours, classes, the map of features. Of four runs at most."""
    data_dir: Annotated[str | None, default_hint("DIR", "where the run had it, or ./data")] = None
    """Folder of the data sets. Nothing is downloaded: without its images a run has no such pictures."""

    def __post_init__(self) -> None:
        require(
            len(self.runs) > 0,
            "give the folder of a run, or of several: main.py report RUN [RUN ...]",
        )


@option_group()
class AblateOptions:
    """Ablation: what is taken away or changed, one thing at a time."""

    #: The paper's: baseline, no-stop-grad, no-predictor, fixed-predictor, constant-predictor-lr, no-bn, hidden-bn and
    #: all-bn (in the heads), asymmetric, and batch-64 to batch-4096 (the rate follows the batch).
    variants: Annotated[tuple[str, ...], Field(min_length=1)] = USUAL

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        require(not unknown, f"--variants {' '.join(unknown)}: there are {', '.join(VARIANTS)}")
        require(len(set(self.variants)) == len(self.variants), "--variants: give each variant once")
