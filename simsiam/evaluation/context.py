"""A checkpoint and the images that it is evaluated on."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.resnet import ResNet
from simsiam.config.commands import OWN, Embed, Export, Finetune, Knn, Linear, Neighbours
from simsiam.data import load_dataset, prepare_dataset
from simsiam.data.dataset import DatasetSpec, ImageDataset, place_on_device, why_no_knn
from simsiam.evaluation.checkpoint import Trained, build_backbone, load_trained
from simsiam.evaluation.features import chunk_size, extract_chunks
from utils.console import print_line, track_progress
from utils.errors import UserError, check

Config = Knn | Linear | Finetune | Embed | Neighbours | Export


class Model(NamedTuple):
    """A checkpoint on `device`."""

    trained: Trained
    mean: Tensor  # (3,), of the images that it was trained on
    std: Tensor
    device: torch.device

    def features(self, chunks: Iterable[Tensor], n: int, what: str, unit: bool = True) -> Tensor:
        """Backbone features of clean images: chunks (B, 3, S, S) uint8, at most n images in all -> (n, F).

        Args:
            what: shown as progress.
            unit: L2-normalise each row.
        """
        chunks = track_progress(chunks, n, f"features of {what}")
        return extract_chunks(self.trained.backbone, chunks, n, self.mean, self.std, unit)


class EvaluationContext(NamedTuple):
    """A checkpoint and the images it is measured on, all on one device."""

    model: Model
    dataset: str
    train: ImageDataset
    test: ImageDataset

    @property
    def trained(self) -> Trained:
        return self.model.trained

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    def announce(self) -> None:
        """Say what is about to be measured, once nothing stands against it."""
        about = self.trained.about
        epoch = f", epoch {about['row']['epoch']}" if about.get("row") else ""
        print_line(
            f"{self.trained.file}: {about['backbone']}, width {about['width']}{epoch}\n{self.dataset}: "
            f"{len(self.train):,} train and {len(self.test):,} test images, {len(self.classes)} classes; {self.device}"
        )

    def features(self, images: Tensor, what: str, unit: bool = True) -> Tensor:
        """(N, 3, C, C) uint8 -> (N, F), as `Model.features`."""
        return self.model.features(images.split(chunk_size(images)), len(images), what, unit)

    def need_labels(self) -> None:
        """Raise UserError unless there are labels, and test images to measure them on."""
        why = why_no_knn(self.train, self.test)
        check(why is None, f"{self.dataset}: {why}: this command compares the classes of train and test images")

    def projections(self, features: Tensor) -> Tensor | None:
        """(N, F) backbone features, not normalised -> (N, d) unit vectors, if the checkpoint has a projector."""
        projector = self.trained.projector
        if projector is None:
            return None
        with torch.no_grad():
            return nn.functional.normalize(torch.cat([projector(chunk) for chunk in features.split(10_000)]), dim=1)


def open_checkpoint(config: Config, device: torch.device) -> Model:
    """Load the checkpoint that `--checkpoint` names.

    Raises:
        UserError: it cannot be had, or has a weight that is not finite.
    """
    trained = load_trained(config.checkpoint.checkpoint)
    finite = all(bool(tensor.isfinite().all()) for tensor in trained.backbone.state_dict().values())
    check(finite, f"{trained.file}: a weight is not finite, so nothing can be measured")
    for network in (trained.backbone, trained.projector):
        if network is not None:
            network.to(device)
    mean, std = (torch.tensor(x, device=device) for x in (trained.backbone.mean, trained.backbone.std))
    return Model(trained, mean, std, device)


def open_context(
    config: Config, device: torch.device, from_scratch: int | None = None, download: bool = True
) -> EvaluationContext:
    """The checkpoint, and images: those of its run, unless others are asked for.

    Args:
        from_scratch: a seed, to put random weights into the backbone.
        download: a data set that is not there.

    Raises:
        UserError: either cannot be had.
    """
    model = open_checkpoint(config, device)
    trained, settings = model.trained, model.trained.about.get("settings", {})
    dataset = config.data.dataset or settings.get("dataset")
    if dataset is None:
        raise UserError(f"{trained.file} does not say what it was trained on: give --dataset")
    known = settings if dataset == settings.get("dataset") else {}
    data_dir = config.data.data_dir
    if data_dir is None:
        there = Path(known.get("data_dir") or "").expanduser()
        own = bool(known.get("data_dir")) and dataset in OWN  # in ./data there would be others
        gone = own and download and not there.exists()
        check(not gone, f"{there}, where the run had its images, is not there: give --data-dir")
        data_dir = str(there) if own or (known.get("data_dir") and there.exists()) else "./data"
    cache_dir = config.data.cache_dir
    if cache_dir is None:
        there = Path(known.get("cache_dir") or "").expanduser()
        cache_dir = str(there) if known.get("cache_dir") and there.is_dir() else None
    sizes = (config.data.train_images or known.get("train_images"), config.data.test_images or known.get("test_images"))
    size = config.data.image_size or trained.backbone.image_size
    skip = config.data.skip_bad_images or known.get("skip_bad_images") is True
    spec = DatasetSpec(dataset, data_dir, config.data.data_url, *sizes, size, cache_dir, skip)
    if download:
        prepare_dataset(spec)
    splits = load_dataset(spec)
    if from_scratch is not None:
        trained = trained._replace(backbone=random_backbone(trained, from_scratch).to(device), projector=None)
    train, test = place_on_device(splits, device, config.data.data_memory)
    return EvaluationContext(model._replace(trained=trained), dataset, train, test)


def random_backbone(trained: Trained, seed: int) -> ResNet:
    """The backbone's architecture with fresh weights, as a run of that seed begins with them."""
    old, about = trained.backbone, trained.about
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        zero_init = about.get("settings", {}).get("zero_init_residual", True)
        new = build_backbone(about, zero_init)
    new.mean, new.std, new.image_size = old.mean, old.std, old.image_size
    return new.eval()
