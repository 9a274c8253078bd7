"""The command `knn`: how well neighbours in feature space share a class, for the usual k, T and features."""

import itertools

import torch
from torch import Tensor
from torch.nn.functional import normalize

from simsiam.config.commands import Knn
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import CHUNK
from simsiam.evaluation.metrics import accuracy, confusion, per_class, print_classes
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device
from utils.knn import knn_predict_all

KS, TEMPERATURES = (1, 20, 200), (0.07, 0.1, 0.2)
HEADLINE_T = 0.1  # with the largest k, which is 200 as in the paper and in our monitor unless there are fewer images

Protocol = tuple[str, int, float]  # features, k, T


def knn(config: Knn) -> None:
    """Print and keep the table: top-1 in percent for each k, T and kind of features, and each class's."""
    context = open_context(config, choose_device(config.device.accelerator))
    context.check_labels()
    results = Results(config, context.checkpoint, "knn")
    context.announce()
    counts = count_by_protocol(context)
    k = max(k for _, k, _ in counts)
    best = counts["backbone", k, HEADLINE_T]
    classes = per_class(best, context.classes)

    head = ("features", "k", *(f"T {t:g}" for t in TEMPERATURES))
    kinds_and_ks = dict.fromkeys((kind, k) for kind, k, _ in counts)
    rows = [(kind, str(k), *(f"{accuracy(counts[kind, k, t]):.2f}" for t in TEMPERATURES)) for kind, k in kinds_and_ks]
    n = (len(context.train), len(context.test))
    title = f"kNN accuracy in % on {n[1]:,} test images of {context.dataset}, bank of {n[0]:,} train images"
    print_table(title, head, rows)
    print_classes(classes)
    figures = {
        "dataset": context.dataset,
        "train_images": n[0],
        "test_images": n[1],
        "kNN_accuracy": accuracy(best),
        "knn_k": k,
        "knn_t": HEADLINE_T,
        "table": [
            {"features": kind, "k": k, "temperature": t, "accuracy": accuracy(c)} for (kind, k, t), c in counts.items()
        ],
        "per_class": classes,
        "confusion": best.tolist(),
    }
    text = "\n".join("|".join(row) for row in (head, ["-"] * len(head), *rows))
    results.write(figures, {"kNN_accuracy": accuracy(best)}, lambda writer, step: writer.add_text("kNN", text, step))


def count_by_protocol(context: EvaluationContext) -> dict[Protocol, Tensor]:
    """The confusion matrix (C, C) of each k up to the number of train images, each T and each kind of features."""
    train, test = context.train, context.test
    protocols = [(k, t) for k, t in itertools.product(KS, TEMPERATURES) if k <= len(train)]
    bank = extract_all(context, train.images, "train images")
    queries = extract_all(context, test.images, "test images")
    counts = {}
    for kind in bank:
        parts = track_progress(queries[kind].split(CHUNK), len(test), f"neighbours by {kind}")
        voted = [knn_predict_all(q, bank[kind], train.labels, len(context.classes), protocols) for q in parts]
        for (k, t), predicted in zip(protocols, torch.cat(voted, dim=1), strict=True):
            counts[kind, k, t] = confusion(predicted, test.labels, len(context.classes))
    return counts


def extract_all(context: EvaluationContext, images: Tensor, what: str) -> dict[str, Tensor]:
    """L2-normalised features (N, F) of the backbone and, if there is one, of the projector."""
    features = {"backbone": context.extract_features(images, what, unit=False)}
    projected = context.checkpoint.project_features(features["backbone"])
    normalize(features["backbone"], dim=1, out=features["backbone"])
    return features if projected is None else features | {"projector": projected}
