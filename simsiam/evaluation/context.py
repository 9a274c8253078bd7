"""A checkpoint together with the data set that it is evaluated on, on one device."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.resnet import HOW_TO_SET_STATISTICS
from simsiam.config.evaluation_commands import Evaluation
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import ImageDataset, place_on_device
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.knn_labels import (
    Comparison,
    choose_comparison,
    classifier_unavailable_reason,
    knn_unavailable_reason,
)
from simsiam.evaluation.checkpoint import LoadedCheckpoint, load_checkpoint
from simsiam.evaluation.features import choose_chunk_size
from simsiam.evaluation.metrics import (
    MAX_CONFUSION_CLASSES,
    accuracy,
    confusion,
    per_class,
    top_accuracy,
)
from simsiam.evaluation.run_images import (
    choose_dataset,
    describe_changed_images,
    use_image_size,
)
from utils.console import print_line, print_table
from utils.errors import UserError, describe_os_error, require

TOP = 5  # with more classes, the top-5 accuracy is measured too


@dataclass(frozen=True)
class EvaluationContext:
    """The checkpoint and the images of a command.

    Images that do not fit into the device's memory stay on the CPU or on the disk. Before they are
    encoded, all images are magnified by `zoom`, see `simsiam.evaluation.zoom`.
    """

    checkpoint: LoadedCheckpoint
    device: torch.device
    dataset: str
    train: ImageDataset
    test: ImageDataset
    zoom: float = 1.0

    @property
    def image_size(self) -> int:
        """The side of the images that the backbone takes, in pixels."""
        return self.checkpoint.preparation.size

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def comparison(self) -> Comparison | None:
        """The images that kNN compares; None if there are too few labels."""
        return choose_comparison(self.train, self.test)

    def announce(self) -> None:
        """Print the network and the data set that are about to be evaluated."""
        metadata = self.checkpoint.metadata
        network = metadata.backbone
        if metadata.width is not None:
            network += f", width {metadata.width}"
        if "epoch" in metadata.row:
            network += f", epoch {metadata.row['epoch']}"
        print_line(f"{self.checkpoint.file}: {network}")

        images = f"{len(self.train):,} train and {len(self.test):,} {self.test.evaluation_name}"
        print_line(f"{self.dataset}: {images}, {self.train.describe_classes()}; {self.device}")

    def extract_features(
        self, images: Tensor | LazyImages, label: str, unit: bool = True
    ) -> Tensor:
        """Return the features (N, F) of images, and show the progress.

        Args:
            images: (N, 3, side, side) uint8.
            label: names the images in the progress.
            unit: L2-normalise each row, for cosines.
        """
        chunks = images.split(choose_chunk_size(images))
        return self.extract_chunks(chunks, len(images), label, unit)

    def extract_chunks(
        self, chunks: Iterable[Tensor], n: int, label: str, unit: bool = True
    ) -> Tensor:
        """Return the features (N, F) of the n images in all chunks, as `extract_features` does."""
        if self.zoom != 1:
            label = f"zoomed {label}"
        return self.checkpoint.extract_features(chunks, n, label, unit, self.zoom)

    def describe_accuracy(self, name: str, predicted: Tensor, truth: Tensor) -> dict[str, Any]:
        """Return accuracies, and the numbers of images, for summary.json.

        Args:
            name: key of the accuracy.
            predicted, truth: (N,) int64, classes of the images that are classified.
        """
        metrics: dict[str, Any] = {
            "dataset": self.dataset,
            "train_images": len(self.train),
            "test_images": len(self.test),
        }
        if self.test.held_out:
            metrics["held_out_images"] = len(self.test)
        metrics[name] = accuracy(predicted, truth)
        metrics["per_class"] = per_class(predicted, truth, self.classes)
        if len(self.classes) <= MAX_CONFUSION_CLASSES:
            metrics["confusion"] = confusion(predicted, truth, len(self.classes)).tolist()
        return metrics

    @torch.no_grad()
    def measure_accuracy(self, head: nn.Linear) -> dict[str, Any]:
        """Return `describe_accuracy` of a classifier on all clean test images, and top-5 accuracy.

        Args:
            head: features (N, F) -> logits (N, C).
        """
        features = self.extract_features(self.test.images, self.test.evaluation_name, unit=False)
        logits = head(features)
        predicted = logits.argmax(dim=1)
        metrics = self.describe_accuracy("test_accuracy", predicted, self.test.labels)
        if len(self.classes) > TOP:
            metrics["test_top5_accuracy"] = top_accuracy(logits, self.test.labels, TOP)
        return metrics

    def print_accuracies(self, column_names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of classifiers, the number of their labels, and their accuracies."""
        images = f"{len(self.test):,} {self.test.evaluation_name} of {self.dataset}"
        print_table(f"accuracy in % on {images}", column_names, rows)

    def with_backbone(self, backbone: nn.Module) -> "EvaluationContext":
        """Return a context with the same data and another backbone of the same architecture.

        It has no projector, because that belongs to the earlier backbone.
        """
        checkpoint = replace(self.checkpoint, backbone=backbone, projector=None, predictor=None)
        return replace(self, checkpoint=checkpoint)

    def with_zoom(self, zoom: float) -> "EvaluationContext":
        """Return a context whose images are magnified.

        It has no projector, because zoomed measurements are made on the backbone's features.
        """
        checkpoint = replace(self.checkpoint, projector=None)
        return replace(self, checkpoint=checkpoint, zoom=zoom)


def open_checkpoint(config: Evaluation, device: torch.device) -> LoadedCheckpoint:
    """Load the checkpoint of `--checkpoint` onto a device.

    Raises:
        UserError: it cannot be loaded, does not say how to prepare images, or has weights that are
            not finite.
    """
    checkpoint = load_checkpoint(config.checkpoint.checkpoint)
    backbone = checkpoint.backbone
    metadata = checkpoint.metadata
    require(
        metadata.mean is not None and metadata.std is not None and metadata.image_size is not None,
        f"{checkpoint.file}: mean, std and size of its images are unknown: {HOW_TO_SET_STATISTICS}",
    )
    require(
        all(bool(tensor.isfinite().all()) for tensor in backbone.state_dict().values()),
        f"{checkpoint.file}: a weight is not finite, so nothing can be measured. Use an earlier "
        "checkpoint",
    )
    backbone.to(device)
    if checkpoint.projector is not None:
        checkpoint.projector.to(device)
    return checkpoint


def open_context(
    config: Evaluation,
    device: torch.device,
    download: bool = True,
    labels: bool = False,
    leave_one_out: bool = False,
) -> EvaluationContext:
    """Load the checkpoint of `--checkpoint` and its images.

    Args:
        config: its flags may choose other images than those of the checkpoint's run.
        device: to compute on.
        download: download or decode images that are missing.
        labels: whether the command needs the labels of train and test images. Test images without
            a label are left out then.
        leave_one_out: whether the labels of the train or of the test images alone are enough.

    Raises:
        UserError: as in `open_checkpoint` and `add_images`.
    """
    checkpoint = open_checkpoint(config, device)
    return add_images(config, checkpoint, device, download, labels, leave_one_out)


def add_images(
    config: Evaluation,
    checkpoint: LoadedCheckpoint,
    device: torch.device,
    download: bool = True,
    labels: bool = False,
    leave_one_out: bool = False,
) -> EvaluationContext:
    """Load the images for a checkpoint; for the arguments see `open_context`.

    Raises:
        UserError: the images are missing, or lack the labels that are needed.
    """
    try:
        options = choose_dataset(config, checkpoint)
        if download:
            prepare_dataset(options)
        checkpoint = use_image_size(checkpoint, config.data.image_size)
        splits = load_dataset(options)
    except PermissionError as error:
        # `export` and `report` continue without images that this user may not read.
        raise UserError(describe_os_error(error)) from None
    side = splits[0].side
    size = config.data.image_size
    require(
        size is None or size <= side,
        f"--image-size {size}: the images of {options.dataset} are {side} pixels wide. Drop the "
        "flag",
    )
    warning = describe_changed_images(checkpoint, options, *splits)
    if warning is not None:
        print(warning, file=sys.stderr)
    train, test = place_on_device(splits, device, options.data_memory)
    if labels:
        if leave_one_out:
            reason = knn_unavailable_reason(train, test)
            needed = "train or test images"
        else:
            reason = classifier_unavailable_reason(train, test)
            needed = "train and test images"
        if reason == "no test images" and options.test_images == 0:
            reason += " because of --test-images 0; give another number"
        require(
            reason is None,
            f"{options.dataset}: {reason}. This command needs {needed} with classes",
        )
        test = test.labelled_part()
    return EvaluationContext(checkpoint, device, options.dataset, train, test)
