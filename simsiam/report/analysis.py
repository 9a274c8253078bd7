"""What a checkpoint shows: nearest neighbours, accuracy and confusion of classes, a map of its features."""

from contextlib import suppress
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
from simsiam.data.dataset import knn_unavailable_reason
from simsiam.evaluation.context import open_context
from simsiam.evaluation.gallery import draw_gallery, find_nearest, select_evenly
from simsiam.evaluation.metrics import confusion
from simsiam.report.figures import draw_classes, draw_map, render_chart
from simsiam.report.records import Run, printable
from utils.console import MANY_CLASSES
from utils.device import choose_device
from utils.filesystem import write_atomically
from utils.knn import knn_predict

QUERIES, NEAREST = 8, 8  # rows and neighbours of the gallery
MAP_IMAGES = 2000  # points of the map


def analyse_run(run: Run, config: Report, stem: str) -> dict[str, Any]:
    """`gallery`, `charts`, `epoch` and `source` of a run's checkpoint; figures are saved as STEMmap.png and so on."""
    checkpoint = CheckpointOptions(checkpoint=str(run.folder.path))
    evaluation = Evaluation(
        checkpoint=checkpoint, data=EvaluationDataOptions(data_dir=config.report.data_dir)
    )
    context = open_context(evaluation, choose_device(config.device.accelerator), download=False)
    train, test, names = context.train, context.test, [printable(name) for name in context.classes]
    shown, source = (test, test.kind) if len(test) else (train, "train images")
    bank = context.extract_features(train.images, f"train images of {run.name}")
    queries = (
        bank
        if shown is train
        else context.extract_features(shown.images, f"{test.kind} of {run.name}")
    )
    places = torch.tensor(select_evenly(len(shown), QUERIES), device=queries.device)
    gallery = find_nearest(
        train, shown.subset(places), queries[places], bank, NEAREST, in_bank=shown is train
    )
    picture = draw_gallery(
        gallery, f"{source.capitalize()} and their nearest train images, by cosine"
    )
    write_atomically(Path(f"{stem}neighbours.png"), partial(picture.save, format="PNG"))

    charts = []
    if knn_unavailable_reason(train, test) is None:
        options = MonitorOptions()
        with suppress(ValidationError, KeyError):
            options = MonitorOptions(knn_k=run.settings["knn_k"], knn_t=run.settings["knn_t"])
        k = min(options.knn_k, len(bank))
        predicted = knn_predict(queries, bank, train.labels, len(names), k, options.knn_t)
        counts = confusion(predicted, test.labels, len(names)).numpy()
        charts = draw_classes(counts, names, f"kNN, k {k}, T {options.knn_t:g}", stem)
    points, labels = project_features(queries[:MAP_IMAGES]), shown.labels[:MAP_IMAGES].cpu().numpy()
    told = names if shown.labelled and len(names) <= MANY_CLASSES else ()
    caption = f"Map of the features of {len(points):,} {source} by PCA, {len(names)} classes."
    charts.append(render_chart(partial(draw_map, points, labels, told), f"{stem}map.png", caption))
    return {
        "gallery": gallery,
        "charts": charts,
        "epoch": context.checkpoint.facts.row.get("epoch"),
        "source": source,
    }


def project_features(features: Tensor) -> np.ndarray:
    """(n, F) -> (n, 2), the directions of the greatest variance (PCA)."""
    centred = (features - features.mean(dim=0)).nan_to_num()
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, [-1, -2]]
    return (centred @ directions).cpu().numpy()
