"""A checkpoint and the data set that it is evaluated on, on one device."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.resnet import ResNet
from simsiam.config.commands import OWN, Evaluation
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import ImageDataset, make_spec, place_on_device, why_no_knn
from simsiam.evaluation.checkpoint import LoadedCheckpoint, RunSettings, load_checkpoint
from simsiam.evaluation.features import chunk_size
from utils.console import print_line
from utils.errors import UserError, check


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
        facts, n = self.checkpoint.facts, (len(self.train), len(self.test))
        epoch = "" if facts.row.epoch is None else f", epoch {facts.row.epoch}"
        print_line(f"{self.checkpoint.file}: {facts.backbone}, width {facts.width}{epoch}")
        print_line(
            f"{self.dataset}: {n[0]:,} train and {n[1]:,} test images, {len(self.classes)} classes; {self.device}"
        )

    def extract_features(self, images: Tensor, what: str, unit: bool = True) -> Tensor:
        """(N, 3, C, C) uint8 -> (N, F), as `LoadedCheckpoint.extract_features`."""
        return self.checkpoint.extract_features(images.split(chunk_size(images)), len(images), what, unit)

    def check_labels(self) -> None:
        """Raise UserError unless train and test images have labels."""
        why = why_no_knn(self.train, self.test)
        check(why is None, f"{self.dataset}: {why}: this command compares the classes of train and test images")

    def with_backbone(self, backbone: ResNet) -> "EvaluationContext":
        """The same data with another backbone of the same architecture; the projector does not belong to it."""
        return replace(self, checkpoint=self.checkpoint._replace(backbone=backbone, projector=None))


def open_checkpoint(config: Evaluation, device: torch.device) -> LoadedCheckpoint:
    """Load the checkpoint that `--checkpoint` names, onto a device.

    Raises:
        UserError: it cannot be loaded, or has a weight that is not finite.
    """
    checkpoint = load_checkpoint(config.checkpoint.checkpoint)
    finite = all(bool(tensor.isfinite().all()) for tensor in checkpoint.backbone.state_dict().values())
    check(finite, f"{checkpoint.file}: a weight is not finite, so nothing can be measured")
    for network in (checkpoint.backbone, checkpoint.projector):
        if network is not None:
            network.to(device)
    return checkpoint


def open_context(config: Evaluation, device: torch.device, download: bool = True) -> EvaluationContext:
    """The checkpoint that `--checkpoint` names, and the images of its run unless others are asked for.

    Args:
        download: a data set that is not there.

    Raises:
        UserError: one of them cannot be loaded.
    """
    checkpoint = open_checkpoint(config, device)
    return EvaluationContext(checkpoint, device, *load_images(config, checkpoint, device, download))


def load_images(
    config: Evaluation, checkpoint: LoadedCheckpoint, device: torch.device, download: bool
) -> tuple[str, ImageDataset, ImageDataset]:
    """Name, train and test split of the data set; what no flag says is as in the run, if it had the same data set."""
    asked, known = config.data, checkpoint.facts.settings
    dataset = asked.dataset or known.dataset
    if dataset is None:
        raise UserError(f"{checkpoint.file} does not say what it was trained on: give --dataset")
    if dataset != known.dataset:
        known = RunSettings()
    data_dir, cache_dir = asked.data_dir or known.data_dir or "./data", asked.cache_dir or known.cache_dir
    if asked.data_dir is None and not Path(data_dir).expanduser().exists() and known.data_dir:
        check(dataset not in OWN, f"{data_dir}, where the run had its images, is not there: give --data-dir")
        data_dir = "./data"
    if asked.cache_dir is None and cache_dir and not Path(cache_dir).expanduser().is_dir():
        cache_dir = None
    sizes = (asked.train_images or known.train_images, asked.test_images or known.test_images)
    size = asked.image_size or checkpoint.facts.image_size
    skip_bad = asked.skip_bad_images or known.skip_bad_images
    spec = make_spec(dataset, data_dir, asked.data_url, *sizes, size, cache_dir, skip_bad)
    if download:
        prepare_dataset(spec)
    train, test = place_on_device(load_dataset(spec), device, asked.data_memory)
    return dataset, train, test
