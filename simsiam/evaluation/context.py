"""A checkpoint and the data set that it is evaluated on, on one device."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.resnet import TELL_STATISTICS, ResNet
from simsiam.config.commands import CUSTOM_DATASETS, Evaluation
from simsiam.config.options import DataOptions
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import ImageDataset, knn_unavailable_reason, make_options, place_on_device
from simsiam.evaluation.checkpoint import LoadedCheckpoint, load_checkpoint
from simsiam.evaluation.features import chunk_size
from simsiam.evaluation.metrics import accuracy, confusion, per_class
from utils.console import print_line, print_table
from utils.errors import UserError, require
from utils.text import printable

OF_THE_RUN = (  # unless a flag says it
    "data_dir",
    "cache_dir",
    "train_images",
    "test_images",
    "held_out_images",
    "skip_bad_images",
    "pixel_range",
)


@dataclass(frozen=True)
class EvaluationContext:
    """What the commands that measure a checkpoint work on; images too large for the device stay where they are."""

    checkpoint: LoadedCheckpoint
    device: torch.device
    dataset: str
    train: ImageDataset
    test: ImageDataset

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    def announce(self) -> None:
        """Print what is about to be measured."""
        facts, splits = (
            self.checkpoint.facts,
            f"{len(self.train):,} train and {len(self.test):,} {self.test.kind}",
        )
        epoch = f", epoch {facts.row['epoch']}" if "epoch" in facts.row else ""
        print_line(f"{self.checkpoint.file}: {facts.backbone}, width {facts.width}{epoch}")
        print_line(f"{self.dataset}: {splits}, {len(self.classes)} classes; {self.device}")

    def extract_features(self, images: Tensor, what: str, unit: bool = True) -> Tensor:
        """(N, 3, C, C) uint8 -> (N, F), as `LoadedCheckpoint.extract_features`."""
        return self.checkpoint.extract_features(
            images.split(chunk_size(images)), len(images), what, unit
        )

    def describe_accuracy(self, name: str, counts: Tensor) -> dict[str, Any]:
        """The figures of a confusion matrix (C, C) of the test images; the accuracy under `name`."""
        images = {
            "dataset": self.dataset,
            "train_images": len(self.train),
            "test_images": len(self.test),
        }
        if self.test.held_out:
            images["held_out_images"] = len(self.test)
        by_class = {"per_class": per_class(counts, self.classes), "confusion": counts.tolist()}
        return images | {name: accuracy(counts)} | by_class

    @torch.no_grad()
    def measure_accuracy(self, head: nn.Linear) -> dict[str, Any]:
        """The figures of backbone and head on all test images, clean."""
        features = self.extract_features(self.test.images, self.test.kind, unit=False)
        counts = confusion(head(features).argmax(dim=1), self.test.labels, len(self.classes))
        return self.describe_accuracy("test_accuracy", counts)

    def print_accuracies(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of classifiers, the labels that each has learned from, and accuracies."""
        print_table(
            f"accuracy in % on {len(self.test):,} {self.test.kind} of {self.dataset}", head, rows
        )

    def with_backbone(self, backbone: ResNet) -> "EvaluationContext":
        """The same data with another backbone of the same architecture; the projector does not belong to it."""
        return replace(self, checkpoint=self.checkpoint._replace(backbone=backbone, projector=None))


def open_checkpoint(config: Evaluation, device: torch.device) -> LoadedCheckpoint:
    """Load the checkpoint of `--checkpoint`; UserError for one on which nothing can be measured."""
    checkpoint = load_checkpoint(config.checkpoint.checkpoint)
    known = checkpoint.backbone.statistics is not None and checkpoint.facts.image_size is not None
    require(
        known, f"{checkpoint.file}: mean, std and size of its images are unknown: {TELL_STATISTICS}"
    )
    finite = all(
        bool(tensor.isfinite().all()) for tensor in checkpoint.backbone.state_dict().values()
    )
    require(finite, f"{checkpoint.file}: a weight is not finite, so nothing can be measured")
    torch.nn.ModuleList(filter(None, checkpoint[1:3])).to(device)
    return checkpoint


def open_context(
    config: Evaluation, device: torch.device, download: bool = True, labels: bool = False
) -> EvaluationContext:
    """The checkpoint of `--checkpoint`, and its run's images unless others are asked for; with `labels`, if need be."""
    return add_images(config, open_checkpoint(config, device), device, download, labels)


def add_images(
    config: Evaluation,
    checkpoint: LoadedCheckpoint,
    device: torch.device,
    download: bool = True,
    labels: bool = False,
) -> EvaluationContext:
    """Load the images for a checkpoint as `open_context` does.

    Raises:
        UserError: if they are missing, or lack the labels that are needed.
    """
    spec = choose_dataset(config, checkpoint)
    if download:
        prepare_dataset(spec)
    train, test = place_on_device(load_dataset(spec), device, spec.data_memory)
    why = knn_unavailable_reason(train, test) if labels else None
    require(
        why is None,
        f"{spec.dataset}: {why}: this command compares the classes of train and test images",
    )
    return EvaluationContext(checkpoint, device, spec.dataset, train, test)


def choose_dataset(config: Evaluation, checkpoint: LoadedCheckpoint) -> DataOptions:
    """What no flag says is as in the run, if it had the same data set."""
    given = {
        name: value
        for name, value in asdict(config.data).items()
        if value is not None and value is not False
    }
    said = checkpoint.facts.settings
    dataset = given.get("dataset") or said.get("dataset")
    require(
        dataset is not None,
        f"{checkpoint.file} does not say what it was trained on: give --dataset",
    )
    if dataset != said.get("dataset"):
        said = {}
    known = {name: said[name] for name in OF_THE_RUN if said.get(name) is not None}
    if given.get("held_out_images"):
        known.pop("test_images", None)
    try:
        options = make_options(
            **{"image_size": checkpoint.facts.image_size} | known | given | {"dataset": dataset}
        )
    except UserError as error:
        raise UserError(f"{checkpoint.file}: its settings cannot be: {error}") from None
    if "data_dir" not in given and not options.path.exists():
        where = f"{printable(options.path)}, where the run had its images, is not there"
        require(dataset not in CUSTOM_DATASETS, f"{where}: give --data-dir")
        options = replace(options, data_dir="./data")
    if "cache_dir" not in given and not Path(options.cache_dir or "").expanduser().is_dir():
        options = replace(options, cache_dir=None)  # the run was on another machine
    return options


def find_pixel_range(
    config: Evaluation,
    checkpoint: LoadedCheckpoint,
) -> tuple[float, float] | None:
    """Return the range for a folder of further images: `--pixel-range`, or else the run's."""
    if config.data.pixel_limits is not None:
        return config.data.pixel_limits
    said = checkpoint.facts.settings.get("pixel_range")
    try:
        return make_options(dataset="folder", pixel_range=said).pixel_limits
    except UserError as error:
        raise UserError(f"{checkpoint.file}: its settings cannot be: {error}") from None
