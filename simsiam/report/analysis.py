"""Analyse the checkpoint of a run: nearest neighbours, a confusion matrix, a map of features."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from simsiam.config.evaluation_commands import Evaluation, Report
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.config.options import EvaluationDataOptions
from simsiam.config.run_options import MonitorOptions
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.gallery import (
    Tile,
    draw_gallery,
    find_nearest,
    gallery_rows,
    select_evenly,
    shrink_images,
)
from simsiam.evaluation.metrics import MAX_CONFUSION_CLASSES, confusion, per_class
from simsiam.report.charts import FeatureAnalysis, render_feature_charts
from simsiam.report.records import Run, replace_unprintable
from simsiam.report.thumbnails import Thumbnails, choose_thumbnails
from utils.device import choose_device
from utils.filesystem import write_atomically
from utils.knn import choose_k, knn_predict

GALLERY_ROWS = 8
GALLERY_NEIGHBOURS = 8  # in each row
MAP_IMAGES = 2000  # upper limit of the points on the map


def analyse_run(run: Run, config: Report, stem: str) -> dict[str, Any]:
    """Evaluate the checkpoint of a run, and save the pictures.

    Args:
        stem: the beginning of the paths of the pictures, from `file_stem`. For example, the gallery
            is saved as {stem}neighbours.png.

    Returns:
        The values that the page's template uses: `gallery` (rows of tiles), `charts` (a list of
        what `render_chart` returns), `epoch` of the checkpoint, `source`, the name of the query
        images, and `labelled`, whether the train images have classes.

    Raises:
        UserError: if the checkpoint or its images are missing or damaged.
    """
    context = open_run(run, config)
    train = context.train
    bank = context.extract_features(train.images, f"train images of {run.name}")

    # Without test images, the train images are the queries.
    queries_in_bank = len(context.test) == 0
    if queries_in_bank:
        queries = train
        query_kind = "train images"
        query_features = bank
    else:
        queries = context.test
        query_kind = queries.evaluation_name
        query_features = context.extract_features(queries.images, f"{query_kind} of {run.name}")

    gallery = make_gallery(train, bank, queries, query_features, queries_in_bank)
    heading = f"{query_kind.capitalize()} and their nearest train images, by cosine"
    picture = draw_gallery(gallery, heading)
    write_atomically(Path(f"{stem}neighbours.png"), partial(picture.save, format="PNG"))

    accuracies = None
    counts = None
    classifier = ""
    classified = ""
    comparison = context.comparison
    if comparison is not None:
        options = choose_knn_options(run)
        k = min(options.neighbours, len(bank))
        classes = len(context.classes)
        labels = comparison.labels
        features = bank if comparison.split is train else query_features
        features = features[comparison.indices]
        classifier = "kNN"
        if comparison.leave_one_out:
            k = min(options.neighbours, len(features) - 1)
            if not run.values("kNN_accuracy"):
                # A run of an earlier version, which had no labels to choose its k by.
                k = min(k, choose_k(labels))
            own = torch.arange(len(features), device=features.device)
            predicted = knn_predict(features, features, labels, classes, k, options.knn_t, own)
            classifier = f"kNN, leave-one-out among {len(features):,} {comparison.name}"
        else:
            predicted = knn_predict(features, bank, train.labels, classes, k, options.knn_t)
        by_class = per_class(predicted, labels, context.classes)
        accuracies = np.array(list(by_class.values()), dtype=float)  # None becomes nan
        if classes <= MAX_CONFUSION_CLASSES:
            counts = confusion(predicted, labels, classes).numpy()
        classifier += f", k {k}, T {options.knn_t:g}"
        classified = comparison.name

    on_map = torch.tensor(select_evenly(len(queries), MAP_IMAGES))
    points = project_features(query_features[on_map.to(query_features.device)])
    analysis = FeatureAnalysis(
        class_names=[replace_unprintable(name) for name in context.classes],
        image_kind=query_kind,
        points=points,
        labels=queries.labels.cpu()[on_map].numpy(),
        labelled=queries.labelled,
        accuracies=accuracies,
        confusion=counts,
        classified=classified,
        classifier=classifier,
        thumbnails=None if queries.labelled else make_thumbnails(points, queries, on_map),
    )
    return {
        "gallery": gallery,
        "charts": render_feature_charts(analysis, stem),
        "epoch": context.checkpoint.metadata.row.get("epoch"),
        "source": query_kind,
        "labelled": bool(context.classes),
    }


def open_run(run: Run, config: Report) -> EvaluationContext:
    """Load the checkpoint and the images of a run. Missing images are not downloaded."""
    evaluation = Evaluation(
        checkpoint=CheckpointOptions(checkpoint=str(run.folder.path)),
        data=EvaluationDataOptions(data_dir=config.report.data_dir),
    )
    return open_context(evaluation, choose_device(config.device.accelerator), download=False)


def make_gallery(
    train: ImageDataset,
    bank: Tensor,
    queries: ImageDataset,
    query_features: Tensor,
    queries_in_bank: bool,
) -> list[list[Tile]]:
    """Select some queries, and return a row of tiles for each: the query and its neighbours.

    Args:
        bank: features (N, F) of the train images.
        query_features: (Q, F).
        queries_in_bank: whether the queries are the train images. Then a query is left out of its
            own neighbours.
    """
    indices = torch.tensor(select_evenly(len(queries), GALLERY_ROWS), device=bank.device)
    bank_index = indices if queries_in_bank else None
    nearest = find_nearest(query_features[indices], bank, GALLERY_NEIGHBOURS, bank_index)
    return gallery_rows(train, queries.subset(indices), nearest.index, nearest.similarity)


def choose_knn_options(run: Run) -> MonitorOptions:
    """Return k and T of the run, or the defaults if its settings are missing or invalid."""
    try:
        return MonitorOptions(knn_k=run.settings["knn_k"], knn_t=run.settings["knn_t"])
    except (ValidationError, KeyError):
        return MonitorOptions()


def project_features(features: Tensor) -> np.ndarray:
    """Project features (N, F) onto their two directions of greatest variance (PCA): (N, 2)."""
    centred = (features - features.mean(dim=0)).nan_to_num()
    # The eigenvalues are in ascending order.
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, [-1, -2]]
    return (centred @ directions).cpu().numpy()


def make_thumbnails(points: np.ndarray, queries: ImageDataset, on_map: Tensor) -> Thumbnails:
    """Return the thumbnails of the map.

    Args:
        points: (N, 2).
        queries: the images of the points, among others.
        on_map: (N,) the index of each point's image in `queries`.
    """
    chosen = choose_thumbnails(points)
    images = shrink_images(queries.subset(on_map[chosen.index]).images)
    return chosen._replace(images=images.permute(0, 2, 3, 1).numpy())
