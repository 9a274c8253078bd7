"""The command `knn`: how well neighbours in feature space share a class, for the usual k, T and features."""

import itertools

import torch
from torch import Tensor
from torch.nn.functional import normalize

from simsiam.config.commands import Knn
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import CHUNK
from simsiam.evaluation.metrics import accuracy, confusion, print_classes
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device
from utils.knn import nearest, vote

KS, TEMPERATURES = (1, 20, 200), (0.07, 0.1, 0.2)
HEADLINE_T = 0.1  # with the largest k, which is 200 as in the paper and in our monitor unless there are fewer images


def knn(config: Knn) -> None:
    """Print and keep the table: top-1 in percent for each k, T and kind of features, and each class's."""
    context = open_context(config, choose_device(config.device.accelerator), labels=True)
    results = Results(config, context.checkpoint, "knn")
    context.announce()
    counts = count_by_protocol(context)
    k = max(k for _, k, _ in counts)
    found = {protocol: accuracy(matrix) for protocol, matrix in counts.items()}
    figures = context.describe_accuracy("kNN_accuracy", counts["backbone", k, HEADLINE_T])
    figures |= {"knn_k": k, "knn_t": HEADLINE_T}
    names = ("features", "k", "temperature", "accuracy")
    figures["table"] = [
        dict(zip(names, (*protocol, right), strict=True)) for protocol, right in found.items()
    ]

    title = f"kNN accuracy in % on {len(context.test):,} {context.test.kind} of {context.dataset}"
    lines = dict.fromkeys((kind, k) for kind, k, _ in counts)
    rows = [
        (kind, str(k), *(f"{found[kind, k, t]:.2f}" for t in TEMPERATURES)) for kind, k in lines
    ]
    head = ("features", "k", *(f"T {t:g}" for t in TEMPERATURES))
    print_table(f"{title}, bank of {len(context.train):,} train images", head, rows)
    print_classes(figures["per_class"])
    results.write(figures)


def count_by_protocol(context: EvaluationContext) -> dict[tuple[str, int, float], Tensor]:
    """(features, k, T) -> confusion matrix (C, C), of each k up to the number of train images."""
    train, test = context.train, context.test
    protocols = [(k, t) for k, t in itertools.product(KS, TEMPERATURES) if k <= len(train)]
    bank = extract_all(context, train.images, "train images")
    queries = extract_all(context, test.images, test.kind)
    counts = {}
    for kind in bank:
        parts = track_progress(queries[kind].split(CHUNK), len(test), f"neighbours by {kind}")
        similarity, found = map(
            torch.cat, zip(*(nearest(q, bank[kind], protocols[-1][0]) for q in parts), strict=True)
        )
        for k, t in protocols:
            predicted = vote(similarity[:, :k], train.labels[found[:, :k]], len(context.classes), t)
            counts[kind, k, t] = confusion(predicted, test.labels, len(context.classes))
    return counts


@torch.no_grad()
def extract_all(context: EvaluationContext, images: Tensor, what: str) -> dict[str, Tensor]:
    """L2-normalised features (N, F) of the backbone and, if there is one, of the projector."""
    features = {"backbone": context.extract_features(images, what, unit=False)}
    if projector := context.checkpoint.projector:
        features["projector"] = torch.cat(
            [projector(chunk) for chunk in features["backbone"].split(10_000)]
        )
    return {kind: normalize(x, dim=1, out=x) for kind, x in features.items()}
