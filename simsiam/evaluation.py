"""What the commands that use a checkpoint share: opening it with its images, and leaving figures behind."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from models.resnet import BACKBONES, ResNet
from simsiam.config import Embed, Export, Finetune, Knn, Linear, Neighbours
from simsiam.datasets import Images, fetch, load
from simsiam.features import CHUNK, extract_chunks
from simsiam.load import Trained, load_trained
from utils.errors import UserError, check
from utils.files import check_writable, write_json
from utils.origin import git_commit, versions
from utils.runfolder import RunFolder
from utils.terminal import print_table, say, tracked

Config = Knn | Linear | Finetune | Embed | Neighbours | Export
OURS = (
    "summary.json",
    "*.safetensors",
    "events.out.tfevents.*",
    "hparams.yaml",
    "projector_config.pbtxt",
    "[0-9]*[0-9]",
)
MANY_CLASSES = 20  # of more, a table shows the extremes


class Subject(NamedTuple):
    """A checkpoint and the images it is measured on, all on `device`."""

    trained: Trained
    dataset: str
    train: Images
    test: Images
    mean: Tensor  # (3,), of the images that the checkpoint was trained on
    std: Tensor
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    def announce(self) -> None:
        """Say what is about to be measured, once nothing stands against it."""
        about = self.trained.about
        epoch = f", epoch {about['row']['epoch']}" if "row" in about else ""
        say(
            f"{self.trained.file}: {about['backbone']}, width {about['width']}{epoch}\n{self.dataset}: "
            f"{len(self.train):,} train and {len(self.test):,} test images, {len(self.classes)} classes; {self.device}"
        )

    def features(self, images: Tensor, what: str, unit: bool = True, order: Tensor | None = None) -> Tensor:
        """Backbone features of clean images: (N, 3, S, S) uint8 -> (N, F).

        Args:
            what: shown as progress.
            unit: L2-normalise each row.
            order: (N,) indices, to have them in this order.
        """
        chunks = images.split(CHUNK) if order is None else (images[i] for i in order.split(CHUNK))
        chunks = tracked(chunks, len(images), f"features of {what}")
        return extract_chunks(self.trained.backbone, chunks, len(images), self.mean, self.std, unit)

    def projections(self, features: Tensor) -> Tensor | None:
        """(N, F) backbone features, not normalised -> (N, d) unit vectors, if the checkpoint has a projector."""
        projector = self.trained.projector
        if projector is None:
            return None
        with torch.no_grad():
            return nn.functional.normalize(torch.cat([projector(chunk) for chunk in features.split(10_000)]), dim=1)


def open_subject(config: Config, device: torch.device, from_scratch: int | None = None) -> Subject:
    """Load the checkpoint that `--checkpoint` names, and the images: those of its run, unless others are asked for.

    Args:
        from_scratch: a seed, to put random weights into the backbone.

    Raises:
        UserError: either cannot be had.
    """
    trained = load_trained(config.checkpoint)
    settings = trained.about.get("settings", {})
    dataset = config.dataset or settings.get("dataset")
    if dataset is None:
        raise UserError(f"{trained.file} does not say what it was trained on: give --dataset")
    same = dataset == settings.get("dataset")
    known = settings if same else {}
    data_dir = config.data_dir or next((d for d in [known.get("data_dir")] if d and Path(d).is_dir()), "./data")
    sizes = (config.train_images or known.get("train_images"), config.test_images or known.get("test_images"))
    fetch(dataset, data_dir, config.data_url)
    train, test = load(dataset, data_dir, *sizes)
    if from_scratch is not None:
        trained = trained._replace(backbone=random_backbone(trained, from_scratch), projector=None)
    for network in (trained.backbone, trained.projector):
        if network is not None:
            network.to(device)
    finite = all(bool(tensor.isfinite().all()) for tensor in trained.backbone.state_dict().values())
    check(finite, f"{trained.file}: a weight is not finite, so nothing can be measured")
    mean, std = (torch.tensor(x, device=device) for x in (trained.backbone.mean, trained.backbone.std))
    return Subject(trained, dataset, train.to(device), test.to(device), mean, std, device)


def random_backbone(trained: Trained, seed: int) -> ResNet:
    """The backbone's architecture with fresh weights."""
    old = trained.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = BACKBONES[trained.about["backbone"]](trained.about["width"])
    new.mean, new.std, new.image_size = old.mean, old.std, old.image_size
    return new.eval()


class Results:
    """The folder that one command leaves in the run's `results/`: `summary.json`, TensorBoard's events, what it makes.

    Raises:
        UserError: it cannot be written, or an earlier call's figures are there and `--overwrite` is not given.
    """

    def __init__(self, config: Config, trained: Trained, name: str, replace: bool = False) -> None:
        self.config, self.trained = config, trained
        self.path = results_root(config, trained.file) / name
        self.summary = self.path / "summary.json"
        check_writable(self.path, "--results-dir")
        check(
            replace or config.overwrite or not self.summary.exists(),
            f"{self.summary} is there already: --overwrite measures anew; or give another --results-dir",
        )
        self.epoch, self.step = (trained.about.get("row", {}).get(name) for name in ("epoch", "step"))  # its own
        self.started = time.perf_counter()

    def output(self, given: str | None, name: str) -> Path:
        """The file to make: `--output`, else one of this name in the folder.

        Raises:
            UserError: it is there already and `--overwrite` is not given, or it cannot be written.
        """
        file = Path(given).expanduser() if given else self.path / name
        check(not file.is_dir(), f"{file} is a folder: give the name of a file with --output")
        check(self.config.overwrite or not file.exists(), f"{file} is there already: --overwrite would replace it")
        check_writable(file.parent, "--output")
        return file

    def clear(self) -> None:
        """Remove what an earlier call left, and nothing else."""
        for folder in (self.path, *self.path.glob("seed_*")):
            for file in (file for pattern in OURS for file in folder.glob(pattern)):
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    def write(
        self,
        figures: dict[str, Any],
        scalars: dict[str, float] | None = None,
        pictures: Callable[[SummaryWriter, int], None] | None = None,
    ) -> None:
        """Leave figures as JSON, with all that says where they are from; scalars and pictures go into TensorBoard."""
        origin = {"command": type(self.config).__name__.lower(), "checkpoint": str(self.trained.file)}
        origin["epoch"] = self.epoch
        self.path.mkdir(parents=True, exist_ok=True)
        step = self.step or 0  # so that a figure stands at the end of the run's own curves
        if scalars or pictures:
            with SummaryWriter(str(self.path)) as writer:
                for name, value in (scalars or {}).items():
                    writer.add_scalar(name, value, step)
                if pictures:
                    pictures(writer, step)
        rest = {
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()},
            "seconds": round(time.perf_counter() - self.started, 1),
            "versions": versions(),
            "commit": git_commit(),
        }
        write_json(self.summary, origin | figures | rest)
        say(f"figures   {self.summary}")


def results_root(config: Config, file: Path) -> Path:
    """`--results-dir`, else `results/` of the run that a file belongs to, else a folder beside the file."""
    if config.results_dir:
        return Path(config.results_dir).expanduser()
    for folder in (file.parent, file.parent.parent):
        if RunFolder(folder).config.exists():
            return RunFolder(folder).results
    return file.with_name(f"{file.stem}_results")


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(C, C) counts: row the true class, column the predicted one."""
    return (truth * classes + predicted).bincount(minlength=classes**2).reshape(classes, classes).cpu()


def accuracy(counts: Tensor) -> float:
    """Top-1 in percent, of a confusion matrix."""
    return 100 * counts.diagonal().sum().item() / counts.sum().item()


def per_class(counts: Tensor, classes: tuple[str, ...]) -> dict[str, float | None]:
    """Top-1 of each class in percent; None for a class without a test image."""
    right, total = counts.diagonal().tolist(), counts.sum(dim=1).tolist()
    return {name: 100 * r / n if n else None for name, r, n in zip(classes, right, total, strict=True)}


def print_classes(accuracies: dict[str, float | None]) -> None:
    """The accuracy of each class, the best first; of many classes the extremes."""
    known = sorted(((a, name) for name, a in accuracies.items() if a is not None), reverse=True)
    shown = known if len(known) <= MANY_CLASSES else [*known[:5], *known[-5:]]
    title = "each class" if shown == known else "the five best and the five worst classes"
    print_table(title, ("class", "accuracy %"), [(name, f"{a:.2f}") for a, name in shown])


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of ours.

    Raises:
        UserError: damaged.
    """
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{file} is damaged: give --overwrite to measure anew") from None
