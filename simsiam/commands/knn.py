"""The command `knn`: how well neighbours in feature space share a class, by every usual protocol."""

import itertools

import torch
from torch.nn.functional import normalize

from simsiam.config.commands import Knn
from simsiam.evaluation.context import open_context
from simsiam.evaluation.features import CHUNK
from simsiam.evaluation.metrics import accuracy, confusion, per_class, print_classes
from simsiam.evaluation.results import Results
from utils.console import print_table, track_progress
from utils.device import choose_device
from utils.knn import knn_predict_all

KS, TEMPERATURES = (1, 20, 200), (0.07, 0.1, 0.2)
HEADLINE = (200, 0.1)  # what papers and our monitor report


def knn(config: Knn) -> None:
    """Print and keep the table: top-1 in percent for each k, T and kind of features, and each class's."""
    subject = open_context(config, choose_device(config.device.accelerator))
    subject.need_labels()
    results = Results(config, subject.trained, "knn")
    subject.announce()
    train, test = subject.train, subject.test
    protocols = [(k, t) for k, t in itertools.product(KS, TEMPERATURES) if k <= len(train)]
    headline = (protocols[-1][0], HEADLINE[1])  # of few train images, all vote

    bank = {"backbone": subject.features(train.images, "train images", unit=False)}
    queries = {"backbone": subject.features(test.images, "test images", unit=False)}
    for features in (bank, queries):
        projections = subject.projections(features["backbone"])
        if projections is not None:
            features["projector"] = projections
        normalize(features["backbone"], dim=1, out=features["backbone"])

    counts = {}
    for kind in bank:
        parts = track_progress(queries[kind].split(CHUNK), len(test), f"neighbours by {kind}")
        voted = [knn_predict_all(q, bank[kind], train.labels, len(subject.classes), protocols) for q in parts]
        for protocol, classes in zip(protocols, torch.cat(voted, dim=1), strict=True):
            counts[(kind, *protocol)] = confusion(classes, test.labels, len(subject.classes))
    best = counts[("backbone", *headline)]
    head = ("features", "k", *(f"T {t:g}" for t in TEMPERATURES))
    rows = [
        (kind, str(k), *(f"{accuracy(counts[(kind, k, t)]):.2f}" for t in TEMPERATURES))
        for kind in bank
        for k in sorted({k for k, _ in protocols})
    ]
    print_table(
        f"kNN accuracy in % on {len(test):,} test images of {subject.dataset}, bank of {len(train):,} train images",
        head,
        rows,
    )
    text = "\n".join(["|".join(head), "|".join("-" for _ in head), *("|".join(row) for row in rows)])
    classes = per_class(best, subject.classes)
    print_classes(classes)
    table = [
        {"features": kind, "k": k, "temperature": t, "accuracy": accuracy(c)} for (kind, k, t), c in counts.items()
    ]
    figures = {
        "dataset": subject.dataset,
        "train_images": len(train),
        "test_images": len(test),
        "kNN_accuracy": accuracy(best),
        "knn_k": headline[0],
        "knn_t": headline[1],
        "table": table,
        "per_class": classes,
        "confusion": best.tolist(),
    }
    results.write(figures, {"kNN_accuracy": accuracy(best)}, lambda writer, step: writer.add_text("kNN", text, step))
