"""The command `knn`: kNN accuracy for the usual k, temperatures and kinds of features."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from simsiam.config.evaluation_commands import Knn
from simsiam.data.knn_labels import Comparison
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import FEATURE_CHUNK, choose_chunk_size
from simsiam.evaluation.metrics import accuracy, print_classes
from simsiam.evaluation.results import Results
from simsiam.evaluation.zoom import announce_zoom, choose_zoom, describe_zoom, zoomed_side
from utils.console import format_count, print_line, print_table, show_progress
from utils.device import choose_device
from utils.knn import choose_k, nearest, vote

KS = (1, 20, 200)
TEMPERATURES = (0.07, 0.1, 0.2)
# The headline and the accuracies of the classes are those of the backbone's features with this
# temperature and, if the classes have enough images for it, this k. The monitor of a run has the
# same defaults.
HEADLINE_TEMPERATURE = 0.1
HEADLINE_K = 200
PROJECTOR_CHUNK = 10_000  # features that the projector takes at once

Protocol = tuple[str, int, float]  # kind of features, k, temperature


def knn(config: Knn) -> None:
    """Print and save the accuracy for each protocol, and the accuracy of each class."""
    device = choose_device(config.device.accelerator)
    context = open_context(config, device, labels=True, leave_one_out=True)
    side = context.image_size
    zoom = choose_zoom(config.zoom.test_zoom, side)
    results = Results(config, context.checkpoint, "knn")
    with results.lock():
        context.announce()
        comparison = context.comparison
        assert comparison is not None  # `open_context` has checked it

        truth = comparison.labels
        predicted = predict_by_protocol(context, comparison)
        accuracies = {protocol: accuracy(classes, truth) for protocol, classes in predicted.items()}
        headline_k = choose_headline_k(context, comparison)
        headline_classes = predicted["backbone", headline_k, HEADLINE_TEMPERATURE]
        summary = context.describe_accuracy("kNN_accuracy", headline_classes, truth)
        summary["knn_k"] = headline_k
        summary["knn_t"] = HEADLINE_TEMPERATURE
        summary["leave_one_out"] = comparison.leave_one_out
        summary["queries"] = len(comparison)
        summary["query_source"] = comparison.name
        summary["table"] = list_protocols(accuracies)

        rows = dict(accuracies)
        if zoom != 1:
            announce_zoom(side, zoom, "images")
            predicted = predict_by_protocol(context.with_zoom(zoom), comparison)
            zoomed = {protocol: accuracy(classes, truth) for protocol, classes in predicted.items()}
            summary["zoomed"] = {
                "test_zoom": zoom,
                "resized_side": zoomed_side(side, zoom),
                "kNN_accuracy": zoomed["backbone", headline_k, HEADLINE_TEMPERATURE],
                "table": list_protocols(zoomed),
            }
            for (kind, k, temperature), value in zoomed.items():
                rows[f"{kind}, {describe_zoom(side, zoom)}", k, temperature] = value
        print_protocols(context, comparison, rows)
        if headline_k < HEADLINE_K:
            print_line(
                f"k {headline_k} instead of {HEADLINE_K} for the classes and for kNN_accuracy in "
                f"summary.json: a typical class has {format_count(headline_k, 'image')}"
            )
        classifier = f"kNN, k {headline_k}, T {HEADLINE_TEMPERATURE:g}, backbone features"
        print_classes(summary["per_class"], classifier)
        results.write(summary)


def list_protocols(accuracies: dict[Protocol, float]) -> list[dict[str, Any]]:
    """Return the accuracies as a table for summary.json."""
    return [
        {"features": kind, "k": k, "temperature": temperature, "accuracy": value}
        for (kind, k, temperature), value in accuracies.items()
    ]


def choose_headline_k(context: EvaluationContext, comparison: Comparison) -> int:
    """Return k of the headline: HEADLINE_K, or less for classes with few images."""
    if not comparison.leave_one_out:
        return choose_k(context.train.labels, HEADLINE_K)
    labels = comparison.labels
    return min(choose_k(labels, HEADLINE_K), len(labels) - 1)  # without the query itself


def print_protocols(
    context: EvaluationContext, comparison: Comparison, accuracies: dict[Protocol, float]
) -> None:
    """Print a line for each kind of features and each k, with a column for each temperature."""
    kinds_and_ks = dict.fromkeys((kind, k) for kind, k, _ in accuracies)  # each pair once
    rows: list[list[str]] = []
    for kind, k in kinds_and_ks:
        values = [f"{accuracies[kind, k, temperature]:.2f}" for temperature in TEMPERATURES]
        rows.append([kind, str(k), *values])

    queries = f"{len(comparison):,} {comparison.name} of {context.dataset}"
    if comparison.leave_one_out:
        bank = f"bank of the {len(comparison) - 1:,} others"
    else:
        bank = f"bank of {len(context.train):,} train images"
    head = ["features", "k", *(f"T {temperature:g}" for temperature in TEMPERATURES)]
    print_table(f"kNN accuracy in % on {queries}, {bank}", head, rows)


def predict_by_protocol(
    context: EvaluationContext, comparison: Comparison
) -> dict[Protocol, Tensor]:
    """Return the predicted class of each query, (Q,) int64, by each protocol.

    The bank is the train images or, for leave-one-out, the other queries. The ks are that of the
    headline, and those of KS up to the number of images in the bank.
    """
    num_queries = len(comparison)
    query_chunks = comparison.read_chunks(choose_chunk_size(comparison.split.images))
    queries = extract_all(context, query_chunks, num_queries, comparison.name)
    if comparison.leave_one_out:
        bank_labels = comparison.labels
        bank = queries
        bank_size = num_queries - 1
        own = torch.arange(num_queries, device=comparison.labels.device)
    else:
        bank_labels = context.train.labels
        bank_size = len(bank_labels)
        train_images = context.train.images
        bank_chunks = train_images.split(choose_chunk_size(train_images))
        bank = extract_all(context, bank_chunks, bank_size, "train images")
        # -1 is no index in the bank: the queries are not part of it.
        own = torch.full((num_queries,), -1, device=comparison.labels.device)
    candidates = {*KS, choose_headline_k(context, comparison)}
    ks = sorted(k for k in candidates if k <= bank_size)

    predicted: dict[Protocol, Tensor] = {}
    for kind in bank:
        # Find the neighbours for the largest k once; they include those for every smaller k.
        similarities: list[Tensor] = []
        indices: list[Tensor] = []
        chunks = torch.arange(num_queries, device=own.device).split(FEATURE_CHUNK)
        for chunk in show_progress(chunks, num_queries, f"neighbours by {kind}"):
            chunk_similarity, chunk_indices = nearest(
                queries[kind][chunk], bank[kind], ks[-1], own[chunk]
            )
            similarities.append(chunk_similarity)
            indices.append(chunk_indices)
        similarity = torch.cat(similarities)  # (Q, k)
        labels = bank_labels[torch.cat(indices)]  # (Q, k)

        for k in ks:
            for temperature in TEMPERATURES:
                predicted[kind, k, temperature] = vote(
                    similarity[:, :k], labels[:, :k], len(context.classes), temperature
                )
    return predicted


@torch.no_grad()
def extract_all(
    context: EvaluationContext, chunks: Iterable[Tensor], n: int, label: str
) -> dict[str, Tensor]:
    """Return L2-normalised features (N, F) by kind.

    The kinds are those of the backbone and, if the checkpoint has one, of the projector.

    Args:
        chunks: n images (B, 3, side, side) uint8 in all.
        label: names the images in the progress.
    """
    raw = context.extract_chunks(chunks, n, label, unit=False)
    features = {"backbone": raw}
    projector = context.checkpoint.projector
    if projector is not None:
        projected = [projector(chunk) for chunk in raw.split(PROJECTOR_CHUNK)]
        features["projector"] = torch.cat(projected)
    for x in features.values():
        normalize(x, dim=1, out=x)
    return features
