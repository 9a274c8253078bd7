"""What a run's checkpoint shows of itself: nearest neighbours, confusion of classes, a map of its features, views."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simsiam.commands.neighbours import evenly, gallery_rows
from simsiam.commands.pretrain import build_data
from simsiam.config.commands import DEFAULTS, Knn, Pretrain
from simsiam.config.evaluation_options import CheckpointOptions, EvaluationDataOptions
from simsiam.config.options import AcceleratorOptions
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import no_knn
from simsiam.evaluation.checkpoint import hash_weights
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import CHUNK
from simsiam.evaluation.gallery import Tile, nearest_others, views_grid
from simsiam.evaluation.metrics import confusion
from simsiam.report.records import Run, number
from utils.cli import from_settings
from utils.console import print_line, track_progress
from utils.device import choose_device
from utils.errors import UserError
from utils.knn import knn_predict

QUERIES, NEAREST = 8, 8  # rows and neighbours of the gallery
LARGEST = 2**22  # pixels of views that are taken as ours
MAP_IMAGES = 2000  # points of the map


class Classes(NamedTuple):
    """Counts (C, C), row the true class, column the predicted one, and what predicted."""

    counts: np.ndarray
    names: tuple[str, ...]
    how: str


class Portrait(NamedTuple):
    """Of one checkpoint."""

    epoch: int | None
    gallery: list[list[Tile]]
    classes: Classes | None  # None where they cannot be counted
    names: tuple[str, ...]  # of the classes
    of: str  # what the queries and the points are
    points: np.ndarray  # (n, 2)
    labels: np.ndarray  # (n,), -1 where there is none
    method: str  # that made the points
    views: Image.Image | None


def draw_portrait(run: Run, accelerator: Any, data_dir: str | None) -> Portrait:
    """Compute what is shown of a run's newest whole checkpoint.

    Raises:
        UserError: it has none, or its images are not at hand.
    """
    subject = open_newest(run, accelerator, data_dir)
    train, name, tested = subject.train, run.name, len(subject.test) > 0
    bank = subject.extract_features(train.images, f"train images of {name}")
    asked, queries = train, bank
    if tested:
        asked, queries = subject.test, subject.extract_features(subject.test.images, f"test images of {name}")
    places = torch.tensor(evenly(len(asked), QUERIES), device=queries.device)
    similarity, nearest = nearest_others(queries[places], bank, NEAREST, itself=not tested)
    labels = asked.labels[places].tolist()
    tiles = [Tile(*pair) for pair in zip(asked.at(places), asked.names(labels), strict=True)]
    counted = no_knn(train, subject.test) is None
    known = known_classes(run, hash_weights(subject.checkpoint.backbone)) if counted else None
    points, method = flat(queries[:MAP_IMAGES], name)
    return Portrait(
        epoch=subject.checkpoint.facts.row.epoch,
        gallery=gallery_rows(train, tiles, labels, similarity, nearest),
        classes=known or (count_classes(subject, bank, queries, name) if counted else None),
        names=asked.classes,
        of="test images" if tested else "train images",
        points=points,
        labels=asked.labels[:MAP_IMAGES].cpu().numpy(),
        method=method,
        views=stored_views(run) or views_of(run, subject),
    )


def open_newest(run: Run, accelerator: Any, data_dir: str | None) -> EvaluationContext:
    """The checkpoint and its images; of a run that is not finished, the last one that can be read."""
    folder, problem = run.folder, "no checkpoint yet"
    for file in (folder.backbone, *folder.resumable(), folder.best):
        if file.exists():
            try:
                config = Knn(
                    checkpoint=CheckpointOptions(checkpoint=str(file)),
                    data=EvaluationDataOptions(data_dir=data_dir),
                    device=AcceleratorOptions(accelerator=accelerator),
                )
                return open_context(config, choose_device(accelerator), download=False)
            except UserError as error:
                problem = str(error)
    raise UserError(problem)


def known_classes(run: Run, weights: str | None = None) -> Classes | None:
    """What the command `knn` counted: of these weights, or of whichever it had."""
    found = run.results.get("knn", {})
    names, counts = found.get("per_class"), found.get("confusion")
    if not isinstance(names, dict) or (weights is not None and found.get("weights") != weights):
        return None
    try:
        array = np.array(counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
    if array.shape != (len(names), len(names)):
        return None
    return Classes(array, tuple(names), f"kNN, k {found.get('knn_k')}, T {found.get('knn_t')}, by the command knn")


def count_classes(subject: EvaluationContext, bank: Tensor, queries: Tensor, name: str) -> Classes:
    """The run's own kNN on all test images, class by class."""
    classes, usual = subject.classes, subject.checkpoint.facts.settings.model_dump()
    k, temperature = (number(usual.get(name)) or default for name, default in (("knn_k", 200), ("knn_t", 0.1)))
    k = max(1, min(int(k), len(bank)))
    chunks = track_progress(queries.split(CHUNK), len(queries), f"neighbours of {name}")
    labels = subject.train.labels
    predicted = torch.cat([knn_predict(q, bank, labels, len(classes), k, abs(temperature)) for q in chunks])
    counts = confusion(predicted, subject.test.labels, len(classes))
    return Classes(counts.numpy(), classes, f"kNN, k {k}, T {temperature:g}")


def flat(features: Tensor, name: str) -> tuple[np.ndarray, str]:
    """(n, F) -> (n, 2), and the name of what did it: t-SNE where scikit-learn is installed, else PCA."""
    n = len(features)
    torch.manual_seed(0)  # pca_lowrank draws
    centred = features - features.mean(dim=0)
    basis = torch.pca_lowrank(centred, min(50, *features.shape), center=False)[2]
    narrow = (centred @ basis).cpu().numpy()
    if n >= 10 and narrow[:, 0].std() > 1e-6:  # t-SNE makes nothing of few points, or of the same one again and again
        try:
            from sklearn.manifold import TSNE  # no requirement of this program

            print_line(f"map of the features of {name}: {n:,} images by t-SNE")
            perplexity = min(30.0, (n - 1) / 3)
            return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(narrow), "t-SNE"
        except ImportError:
            pass
    return np.pad(narrow[:, :2], ((0, 0), (0, max(0, 2 - narrow.shape[1])))), "PCA"


def stored_views(run: Run) -> Image.Image | None:
    """`views.png`, a pixel of it a pixel of the views."""
    try:
        picture = Image.open(run.folder.views)
        if picture.width * picture.height > LARGEST:
            return None
        picture = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.NEAREST)


def views_of(run: Run, subject: EvaluationContext) -> Image.Image | None:
    """The same, drawn anew for a run that did not begin with the first epoch, and so did not leave it."""
    try:
        settings = {name: value for name, value in run.settings.items() if name in DEFAULTS}
        data: ViewsDataModule = build_data(from_settings(Pretrain, settings), compile=False)
        data.use((subject.train, subject.test))
    except (UserError, TypeError):
        return None
    return Image.fromarray(views_grid(data).permute(1, 2, 0).numpy())
