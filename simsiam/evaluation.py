"""What the commands that use a checkpoint share: opening it with its images, and leaving figures behind."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from models.resnet import ResNet
from simsiam.config import OWN, Embed, Export, Finetune, Knn, Linear, Neighbours
from simsiam.datasets import at_hand, fetch, load
from simsiam.features import chunk_size, extract_chunks
from simsiam.load import Trained, build_backbone, load_trained
from simsiam.splits import Images, no_knn, settle
from utils.errors import UserError, check
from utils.files import PARTIAL, check_writable, lock_folder, write_json
from utils.origin import git_commit, versions
from utils.runfolder import RunFolder
from utils.stored import Pixels
from utils.terminal import print_table, say, tracked

Config = Knn | Linear | Finetune | Embed | Neighbours | Export
MANY_CLASSES = 20  # of more, a table shows the extremes


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
        chunks = tracked(chunks, n, f"features of {what}")
        return extract_chunks(self.trained.backbone, chunks, n, self.mean, self.std, unit)


class Subject(NamedTuple):
    """A checkpoint and the images it is measured on, all on one device."""

    model: Model
    dataset: str
    train: Images
    test: Images

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
        say(
            f"{self.trained.file}: {about['backbone']}, width {about['width']}{epoch}\n{self.dataset}: "
            f"{len(self.train):,} train and {len(self.test):,} test images, {len(self.classes)} classes; {self.device}"
        )

    def features(self, images: Pixels, what: str, unit: bool = True) -> Tensor:
        """(N, 3, C, C) uint8 -> (N, F), as `Model.features`."""
        return self.model.features(images.split(chunk_size(images)), len(images), what, unit)

    def need_labels(self) -> None:
        """Raise UserError unless there are labels, and test images to measure them on."""
        why = no_knn(self.train, self.test)
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
    trained = load_trained(config.checkpoint)
    finite = all(bool(tensor.isfinite().all()) for tensor in trained.backbone.state_dict().values())
    check(finite, f"{trained.file}: a weight is not finite, so nothing can be measured")
    for network in (trained.backbone, trained.projector):
        if network is not None:
            network.to(device)
    mean, std = (torch.tensor(x, device=device) for x in (trained.backbone.mean, trained.backbone.std))
    return Model(trained, mean, std, device)


def open_subject(
    config: Config, device: torch.device, from_scratch: int | None = None, download: bool = True
) -> Subject:
    """The checkpoint, and images: those of its run, unless others are asked for.

    Args:
        from_scratch: a seed, to put random weights into the backbone.
        download: a data set that is not there.

    Raises:
        UserError: either cannot be had.
    """
    model = open_checkpoint(config, device)
    trained, settings = model.trained, model.trained.about.get("settings", {})
    dataset = config.dataset or settings.get("dataset")
    if dataset is None:
        raise UserError(f"{trained.file} does not say what it was trained on: give --dataset")
    known = settings if dataset == settings.get("dataset") else {}
    data_dir = config.data_dir
    if data_dir is None:
        there = Path(known.get("data_dir") or "").expanduser()
        own = bool(known.get("data_dir")) and dataset in OWN  # in ./data there would be others
        gone = own and download and not there.exists()
        check(not gone, f"{there}, where the run had its images, is not there: give --data-dir")
        data_dir = str(there) if own or (known.get("data_dir") and there.exists()) else "./data"
    cache_dir = config.cache_dir
    if cache_dir is None:
        there = Path(known.get("cache_dir") or "").expanduser()
        cache_dir = str(there) if known.get("cache_dir") and there.is_dir() else None
    sizes = (config.train_images or known.get("train_images"), config.test_images or known.get("test_images"))
    size = config.image_size or trained.backbone.image_size
    skip = config.skip_bad_images or known.get("skip_bad_images") is True
    if download:
        fetch(dataset, data_dir, config.data_url, *sizes, size, cache_dir, skip)
    else:
        check(at_hand(dataset, data_dir), f"{dataset} is not in {data_dir}")
    splits = load(dataset, data_dir, *sizes, size, cache_dir)
    if from_scratch is not None:
        trained = trained._replace(backbone=random_backbone(trained, from_scratch).to(device), projector=None)
    train, test = settle(splits, device, config.data_memory)
    return Subject(model._replace(trained=trained), dataset, train, test)


def random_backbone(trained: Trained, seed: int) -> ResNet:
    """The backbone's architecture with fresh weights, as a run of that seed begins with them."""
    old, about = trained.backbone, trained.about
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        zero_init = about.get("settings", {}).get("zero_init_residual", True)
        new = build_backbone(about, zero_init)
    new.mean, new.std, new.image_size = old.mean, old.std, old.image_size
    return new.eval()


class Results:
    """The folder that one command leaves in the run's `results/`: `summary.json`, TensorBoard's events, what it makes.

    Args:
        name: of the folder.
        resumes: the command itself looks at what is there already.

    Raises:
        UserError: it cannot be written, or an earlier call's figures are there and `--overwrite` is not given.
    """

    def __init__(self, config: Config, trained: Trained, name: str, resumes: bool = False) -> None:
        self.config, self.trained = config, trained
        self.path = results_root(config, trained.file) / name
        self.summary = self.path / "summary.json"
        check_writable(self.path, "--results-dir")
        check(
            resumes or config.overwrite or not self.summary.exists(),
            f"{self.summary} is there already: --overwrite measures anew; or give another --results-dir",
        )
        row = trained.about.get("row", {})
        self.epoch, self.step = row.get("epoch"), row.get("step", 0)  # of the checkpoint
        self.started, self.cleared = time.perf_counter(), False

    def output(self, given: str | None, name: str) -> Path:
        """The file to make: `--output`, else one of this name in the folder.

        Raises:
            UserError: it is there already and `--overwrite` is not given, or it cannot be written.
        """
        file = Path(given).expanduser() if given else self.path / name
        check(len(file.name) <= 200, f"--output: {len(file.name)} letters are too long for a file's name")
        check(not file.is_dir(), f"{file} is a folder: give the name of a file with --output")
        check(self.config.overwrite or not file.exists(), f"{file} is there already: --overwrite would replace it")
        check_writable(file.parent, "--output")
        return file

    def clear(self) -> None:
        """Remove what an earlier call of this command left, and nothing else; a training calls it before it begins."""
        names = ("summary.json", "head.safetensors", "hparams.yaml", "projector_config.pbtxt")
        ours = [self.path / name for name in names]
        ours += [*self.path.glob("events.out.tfevents.*"), *self.path.glob(f".*{PARTIAL}")]
        for file in ours:
            file.unlink(missing_ok=True)
        for folder in self.path.glob("[0-9][0-9][0-9][0-9][0-9]"):  # the projector's
            if (folder / "embedding").is_dir():
                shutil.rmtree(folder)
        self.cleared = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second process out of the folder meanwhile.

        Raises:
            UserError: another process is in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path, f"another process is at work in {self.path}: wait, or give another --results-dir"):
            yield

    def write(
        self,
        figures: dict[str, Any],
        scalars: dict[str, float] | None = None,
        pictures: Callable[[SummaryWriter, int], None] | None = None,
        step: int | None = None,
    ) -> None:
        """Leave figures as JSON, with all that says where they are from; scalars and pictures go into TensorBoard.

        Args:
            step: of the scalars; the checkpoint's own if left out, so that they stand at the end of the run's curves.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.cleared:
            self.clear()
        at = self.step if step is None else step
        if scalars or pictures:
            with SummaryWriter(str(self.path)) as writer:
                for name, value in (scalars or {}).items():
                    writer.add_scalar(name, value, at)
                if pictures:
                    pictures(writer, at)
        origin = {"command": type(self.config).__name__.lower(), "checkpoint": str(self.trained.file)}
        origin |= {"weights": fingerprint(self.trained.backbone), "epoch": self.epoch}
        rest = {
            "settings": plain_settings(self.config),
            "seconds": round(time.perf_counter() - self.started, 1),
            "versions": versions(),
            "commit": git_commit(),
        }
        write_json(self.summary, origin | figures | rest)
        say(f"figures   {self.summary}")


def plain_settings(config: Config) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def fingerprint(network: nn.Module) -> str:
    """What tells one set of weights from another: 16 hexadecimal digits of a hash over all of them."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def results_root(config: Config, file: Path) -> Path:
    """`--results-dir`, else `results/` of the run that a file belongs to, else a folder beside the file."""
    if config.results_dir:
        return Path(config.results_dir).expanduser()
    for run in (RunFolder(file.parent), RunFolder(file.parent.parent)):
        if run.config.exists() and (file == run.backbone or file.parent == run.checkpoints):
            return run.results
    return file.with_name(f"{file.stem}_results")


def results_name(command: str, output: str | None) -> str:
    """The folder of a command of which one may want several: named after what it makes."""
    return f"{command}_{Path(output).name.replace('.', '_')}" if output else command


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


def read_json(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON file of ours that has at least these keys.

    Raises:
        UserError: damaged.
    """
    try:
        content = dict(json.loads(file.read_text()))
        return content | {key: content[key] for key in keys}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged: give --overwrite to measure anew") from None
