"""What a checkpoint shows: nearest neighbours, accuracy and confusion of classes, a map of its features."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simsiam.config.commands import Knn
from simsiam.config.evaluation_options import CheckpointOptions, EvaluationDataOptions
from simsiam.config.options import AcceleratorOptions
from simsiam.data.dataset import why_no_knn
from simsiam.evaluation.checkpoint import hash_weights
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import CHUNK
from simsiam.evaluation.gallery import Tile, find_nearest, gallery_rows, select_evenly
from simsiam.evaluation.metrics import confusion
from simsiam.report.records import Confusion, Run, finite_number, printable, read_confusion
from utils.console import print_line, track_progress
from utils.device import choose_device
from utils.errors import UserError
from utils.knn import knn_predict

QUERIES, NEAREST = 8, 8  # rows and neighbours of the gallery
MAP_IMAGES = 2000  # points of the map


class Analysis(NamedTuple):
    """Of one checkpoint; queries and points are test images, or train images where there are none."""

    epoch: int | None
    source: str  # "test images" or "train images"
    gallery: list[list[Tile]]
    confusion: Confusion | None  # None without labels
    names: tuple[str, ...]  # of the classes
    points: np.ndarray  # (n, 2), the map
    labels: np.ndarray  # (n,), -1 where there is none
    method: str  # that made the map


def analyse_run(run: Run, accelerator: Any, data_dir: str | None) -> Analysis:
    """Analyses the newest checkpoint; raises UserError if there is none, or its images are not at hand."""
    subject = open_newest_checkpoint(run, accelerator, data_dir)
    train, source = subject.train, subject.test if len(subject.test) else subject.train
    words = "train images" if source is train else "test images"
    bank = subject.extract_features(train.images, f"train images of {run.name}")
    queries = bank if source is train else subject.extract_features(source.images, f"{words} of {run.name}")
    indices = torch.tensor(select_evenly(len(source), QUERIES), device=queries.device)
    similarity, nearest = find_nearest(queries[indices], bank, NEAREST, in_bank=source is train)
    gallery = gallery_rows(train, source.at(indices), source.labels[indices].tolist(), nearest, similarity)
    counts = None
    if why_no_knn(train, subject.test) is None:
        counts = read_confusion(run, hash_weights(subject.checkpoint.backbone))
        counts = counts or count_confusion(subject, bank, queries, run.name)
    points, method = project_features(queries[:MAP_IMAGES], run.name)
    epoch, names = subject.checkpoint.facts.row.epoch, tuple(map(printable, source.classes))
    return Analysis(epoch, words, gallery, counts, names, points, source.labels[:MAP_IMAGES].cpu().numpy(), method)


def open_newest_checkpoint(run: Run, accelerator: Any, data_dir: str | None) -> EvaluationContext:
    """The newest checkpoint that can be read, and its images."""
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


def count_confusion(subject: EvaluationContext, bank: Tensor, queries: Tensor, name: str) -> Confusion:
    """Classifies all test images by kNN with the run's own k and temperature."""
    settings = subject.checkpoint.facts.settings.model_dump()
    k, temperature = (finite_number(settings.get(x)) or default for x, default in (("knn_k", 200), ("knn_t", 0.1)))
    k, classes, labels = max(1, min(int(k), len(bank))), len(subject.classes), subject.train.labels
    chunks = track_progress(queries.split(CHUNK), len(queries), f"neighbours of {name}")
    predicted = torch.cat([knn_predict(q, bank, labels, classes, k, abs(temperature)) for q in chunks])
    counts = confusion(predicted, subject.test.labels, classes).numpy()
    return Confusion(counts, tuple(map(printable, subject.classes)), f"kNN, k {k}, T {temperature:g}")


def project_features(features: Tensor, name: str) -> tuple[np.ndarray, str]:
    """(n, F) -> (n, 2), and the method: t-SNE where scikit-learn is installed and there are enough points, else PCA."""
    n = len(features)
    torch.manual_seed(0)  # pca_lowrank draws random numbers
    centred = features - features.mean(dim=0)
    basis = torch.pca_lowrank(centred, min(50, *features.shape), center=False)[2]
    narrow = (centred @ basis).cpu().numpy()
    if n >= 10 and narrow[:, 0].std() > 1e-6:  # not of a collapsed network
        try:
            from sklearn.manifold import TSNE  # not a requirement of this program

            print_line(f"map of the features of {name}: {n:,} images by t-SNE")
            perplexity = min(30.0, (n - 1) / 3)
            return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(narrow), "t-SNE"
        except ImportError:
            pass
    return np.pad(narrow[:, :2], ((0, 0), (0, max(0, 2 - narrow.shape[1])))), "PCA"
