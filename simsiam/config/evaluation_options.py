"""As `simsiam.options`: the groups of the commands that use what was learned."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simsiam.config.options import DataOptions, Dataset, check_seed
from utils.cli import left_out
from utils.errors import check


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What was trained, and where the figures go."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="PATH")]
    """A run folder, a .ckpt or a .safetensors of this program."""
    results_dir: Annotated[str | None, left_out("DIR", "results in the run's folder")] = None
    """Folder for figures (JSON), TensorBoard's files and whatever else the command makes."""
    overwrite: bool = False
    """Replace what an earlier call has left there."""


@dataclass(frozen=True)
class ImageOptions(DataOptions):
    """Which images: those that the checkpoint was trained on, if nothing else is said."""

    dataset: Annotated[Dataset | None, left_out("NAME", "the checkpoint's")] = None
    """cifar10, cifar100, patterns, folder or arrays."""
    data_dir: Annotated[str | None, left_out("DIR", "where the run had it, or ./data")] = None
    """Folder of the data sets, as torchvision lays them out; a folder of images; an .npz file."""
    train_images: Annotated[int | None, left_out("N", "as many as the run had")] = None
    """Use the first N images of the train split (of a folder: N spread evenly)."""
    test_images: Annotated[int | None, left_out("N", "as many as the run had")] = None
    """Use the first N images of the test split (of a folder: N spread evenly)."""
    image_size: Annotated[int | None, left_out("PIXELS", "the checkpoint's")] = None
    """Of a folder: the side of the images for which they were stored."""


@dataclass(frozen=True)
class LinearOptions:
    """The linear probe."""

    augment: bool = False
    """Train with crops and flips by SGD, as papers do. Without it: on features computed once, by L-BFGS."""
    held_out: float = 0.1
    """Without --augment: share of the train images on which the weight decay is chosen; then all of them are used."""
    epochs: Annotated[int | None, left_out("EPOCHS", "100")] = None
    """With --augment: length of the training; the rate falls to 0 along a cosine."""
    batch_size: Annotated[int | None, left_out("N", "256")] = None
    """With --augment: images in a step."""
    learning_rate: Annotated[float | None, left_out("RATE", "0.1")] = None
    """With --augment: the head's first rate, for standardised features."""
    crop_scale: Annotated[float | None, left_out("SHARE", "0.8")] = None
    """With --augment: least area of a crop, as a share of the image."""
    seed: int = 0
    """Of the held-out choice, the order and the crops."""
    from_scratch: bool = False
    """Probe the same network with random weights instead, to see what pre-training is worth."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "crop_scale"):
            flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
            check(value is None or self.augment, f"{flag} {value}: goes with --augment")
            check(value is None or 0 < value < math.inf, f"{flag} {value}: above 0")
        check(0 < self.held_out < 1, f"--held-out {self.held_out}: a share, above 0 and below 1")
        check(self.crop_scale is None or self.crop_scale <= 1, f"--crop-scale {self.crop_scale}: at most 1")
        check_seed(self.seed)


@dataclass(frozen=True)
class FinetuneOptions:
    """Training the whole network on labels."""

    label_fraction: Annotated[float | None, left_out("SHARE", "0.1")] = None
    """Share of the train labels to use: exactly that of every class, chosen by the seed."""
    label_count: Annotated[int | None, left_out("N", "--label-fraction")] = None
    """So many labels instead, the same number of every class."""
    seeds: tuple[int, ...] = (0,)
    """One training for each: another choice of labels, order and crops. The table has their mean and deviation."""
    from_scratch: bool = False
    """Train the same network from random weights instead, to see what pre-training is worth."""
    epochs: int = 100
    """Length of a training, in passes over the labelled images; the rates fall to 0 along a cosine."""
    batch_size: int = 256
    """Images in a step."""
    learning_rate: Annotated[float | None, left_out("RATE", "0.03; 0.3 from scratch")] = None
    """The backbone's first rate."""
    head_learning_rate: Annotated[float | None, left_out("RATE", "0.03; 0.1 from scratch")] = None
    """The head's first rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """On all parameters."""
    crop_scale: float = 0.5
    """Least area of a crop, as a share of the image."""

    def __post_init__(self) -> None:
        share = self.label_fraction
        check(share is None or 0 < share <= 1, f"--label-fraction {share}: above 0 and at most 1")
        check(self.label_count is None or self.label_count >= 1, f"--label-count {self.label_count}: at least 1")
        check(
            self.label_count is None or self.label_fraction is None,
            "--label-fraction is a share, --label-count a number: give one of them",
        )
        check(len(self.seeds) > 0, "--seeds: at least one")
        check(len(set(self.seeds)) == len(self.seeds), f"--seeds {' '.join(map(str, self.seeds))}: one of them twice")
        for seed in self.seeds:
            check_seed(seed)
        check(self.epochs >= 1, f"--epochs {self.epochs}: at least 1")
        check(self.batch_size >= 2, f"--batch-size {self.batch_size}: at least 2, since BN needs a batch")
        for name in ("learning_rate", "head_learning_rate"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"--{name.replace('_', '-')} {value}: above 0")
        check(0 <= self.momentum < 1, f"--momentum {self.momentum}: 0 or more, and below 1")
        check(0 <= self.weight_decay < math.inf, f"--weight-decay {self.weight_decay}: 0 or more")
        check(0 < self.crop_scale <= 1, f"--crop-scale {self.crop_scale}: above 0 and at most 1")


@dataclass(frozen=True)
class EmbedOptions:
    """What is embedded."""

    output: Annotated[str | None, left_out("FILE", "features.npz in the results folder")] = None
    """The file to write: .npz (named arrays) or .npy (one table with named columns, to be memory-mapped)."""
    images: Annotated[str | None, left_out("DIR", "the data set")] = None
    """Embed all images in this folder and below it, instead of the data set: their central square, resized."""
    split: Literal["both", "train", "test"] = "both"
    """Which part of the data set."""

    def __post_init__(self) -> None:
        check(
            self.output is None or self.output.endswith((".npz", ".npy")),
            f"--output {self.output}: a name that ends in .npz or .npy",
        )


@dataclass(frozen=True)
class NeighboursOptions:
    """What the gallery shows: a row for each query, and in it the most similar train images."""

    output: Annotated[str | None, left_out("FILE", "neighbours.png in the results folder")] = None
    """The picture to write."""
    images: Annotated[str | None, left_out("DIR", "test images")] = None
    """Take the queries from this folder of images, instead of the test images."""
    queries: int = 10
    """How many queries, chosen evenly from all."""
    k: int = 10
    """How many neighbours of each."""

    def __post_init__(self) -> None:
        check(self.output is None or self.output.endswith(".png"), f"--output {self.output}: a name that ends in .png")
        for name in ("queries", "k"):
            check(1 <= getattr(self, name) <= 50, f"--{name} {getattr(self, name)}: 1 to 50")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Which runs, and where the page goes."""

    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(one at least)"),
    ]
    """Run folders, of finished runs or of such that still train or were killed."""
    output: Annotated[str | None, left_out("DIR", "report in the run's folder, or in that which holds the runs")] = None
    """Folder for index.html and figures/*.png. An earlier report there is replaced, and nothing else."""
    pictures: bool = True
    """Draw what needs a checkpoint and its images: neighbours, classes, the map of features. Of four runs at most."""
    data_dir: Annotated[str | None, left_out("DIR", "where the run had it, or ./data")] = None
    """Folder of the data sets. Nothing is downloaded: without its images a run has no such pictures."""

    def __post_init__(self) -> None:
        check(len(self.runs) > 0, "give the folder of a run, or of several: main.py report RUN [RUN ...]")


@dataclass(frozen=True)
class ExportOptions:
    """The file to make."""

    format: Literal["safetensors", "torch-export", "onnx"] = "safetensors"
    """safetensors (weights under torchvision's names), torch-export (a .pt2 program for torch), or onnx."""
    output: Annotated[str | None, left_out("FILE", "backbone.SUFFIX in the results folder")] = None
    """Where to write it: a name that ends in .safetensors, .pt2 or .onnx, as the format has it."""
