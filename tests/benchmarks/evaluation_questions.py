"""Measure one backbone in several ways that need no training: zoom, mirror images, BN statistics.

`python tests/benchmarks/evaluation_questions.py RUN [RUN ...] --results FOLDER` prints a table for
kNN (k = 200, T = .1), kNN (k = 20, T = .07) and a linear classifier. Each table has a column for
each run, the mean and the deviation over the runs, and the same of the differences from the usual
measurement (whole image). The same command again continues: FOLDER has the results of finished
runs.

The runs must have been trained with --held-out-images. Accuracy is that of these images, which are
train images; the bank and the linear classifier have the other train images. The test images are
not used. "BN of" means that the running statistics of all BN layers of the backbone were estimated
again, as means over batches of 256, before the features were computed. Features of an image and its
mirror image are means of the two unit vectors. The linear classifier is logistic regression on
standardised features with a weight decay of 1e-4.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import update_bn

from simsiam.augment import Policy, augment
from simsiam.augment import normalize as normalize_images
from simsiam.config.evaluation_commands import Knn
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.data.dataset import ImageDataset
from simsiam.evaluation.context import EvaluationContext, open_context
from simsiam.evaluation.features import extract_features
from simsiam.evaluation.logistic_regression import fit_logistic, make_head, standardise_in_place
from simsiam.evaluation.zoom import zoom_in
from tests.benchmarks.timing import DEVICE, table
from utils.errors import UserError, require
from utils.filesystem import write_json
from utils.knn import nearest, vote

ZOOM_36 = 36 / 32
ZOOM_40 = 40 / 32
BN_BATCH = 256
QUERIES = 1000  # whose neighbours are searched at once
VIEW_EPOCH = 2**32 - 3  # no training reaches this epoch, so its views are new
LINEAR_WEIGHT_DECAY = 1e-4
METRICS = {
    "knn_200": "kNN (k = 200, T = .1)",
    "knn_20": "kNN (k = 20, T = .07)",
    "linear": "linear classifier",
}


class Protocol(NamedTuple):
    """How the features of an image are computed."""

    zoom: float = 1.0
    mirror: bool = False  # average the features of the image and of its mirror image
    bn: str = ""  # "clean" or "views" estimates BN statistics again, on such images


USUAL = "whole image"
PROTOCOLS = {
    USUAL: Protocol(),
    "zoom 36": Protocol(ZOOM_36),
    "zoom 40": Protocol(ZOOM_40),
    "whole image + mirror image": Protocol(mirror=True),
    "zoom 36 + mirror image": Protocol(ZOOM_36, mirror=True),
    "whole image, BN of clean images": Protocol(bn="clean"),
    "zoom 36, BN of clean images, zoom 36": Protocol(ZOOM_36, bn="clean"),
    "whole image, BN of augmented views": Protocol(bn="views"),
}


class Backbone:
    """Computes the features of a run's images by each protocol.

    Args:
        context: the run's checkpoint and images.
        bank: train images for kNN and the linear classifier.
        bn_images: number of train images on which BN statistics are estimated.
    """

    def __init__(self, context: EvaluationContext, bank: ImageDataset, bn_images: int) -> None:
        self.context = context
        self.images = {"bank": bank.images, "queries": context.test.images}
        self.mean, self.std, self.size = context.checkpoint.preparation
        self.bn_images = min(bn_images, len(context.train))
        self.known: dict[tuple[str, Protocol, bool], Tensor] = {}

    def features(self, split: str, protocol: Protocol) -> Tensor:
        """Return the unit features (N, F) of a split, "bank" or "queries"."""
        x = self._features(split, protocol, mirrored=False)
        if not protocol.mirror:
            return x
        return normalize(x + self._features(split, protocol, mirrored=True), dim=1)

    def _features(self, split: str, protocol: Protocol, mirrored: bool) -> Tensor:
        key = (split, protocol._replace(mirror=False), mirrored)
        if key not in self.known:
            images = self.images[split]
            assert isinstance(images, Tensor)  # small images, which are in memory
            if mirrored:
                images = images.flip(-1)
            self.known[key] = extract_features(
                self._network(protocol), images, self.mean, self.std, zoom=protocol.zoom
            )
        return self.known[key]

    def _network(self, protocol: Protocol) -> nn.Module:
        backbone = self.context.checkpoint.backbone
        if not protocol.bn:
            return backbone
        network = copy.deepcopy(backbone)
        estimate_statistics(network, self._bn_batches(protocol))
        return network.eval()

    def _bn_batches(self, protocol: Protocol) -> Iterator[Tensor]:
        train = self.context.train
        for indices in torch.arange(self.bn_images, device=DEVICE).split(BN_BATCH):
            if protocol.bn == "views":
                yield self._views(train, indices)
            else:
                x = zoom_in(train.images_at(indices).float() / 255, protocol.zoom)
                yield normalize_images(x, self.mean, self.std)

    def _views(self, train: ImageDataset, indices: Tensor) -> Tensor:
        """Return a new view of each image, with the augmentation of the run."""
        settings = self.context.checkpoint.metadata.settings
        names = [field.name for field in fields(Policy)]
        policy = Policy(**{name: settings[name] for name in names if name in settings})
        return augment(
            train.images_at(indices),
            indices,
            seed=0,
            epoch=VIEW_EPOCH,
            view=0,
            policy=policy,
            mean=self.mean,
            std=self.std,
            size=self.size,
        )


def estimate_statistics(network: nn.Module, batches: Iterator[Tensor]) -> None:
    """Estimate the running statistics of all BN layers again: means over the batches."""
    update_bn(batches, network)


def measure(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, classes: int, linear: bool
) -> dict[str, float]:
    """Return accuracies in percent.

    Args:
        bank: (N, F) unit features of train images.
        bank_labels: (N,) int64.
        queries: (Q, F) unit features.
        labels: (Q,) int64.
        classes: number of classes.
        linear: whether to fit a linear classifier on the bank.
    """

    def accuracy(predicted: Tensor) -> float:
        return 100 * (predicted == labels).float().mean().item()

    chunks = [nearest(chunk, bank, 200) for chunk in queries.split(QUERIES)]
    similarity = torch.cat([chunk[0] for chunk in chunks])  # (Q, 200), the highest first
    neighbours = bank_labels[torch.cat([chunk[1] for chunk in chunks])]
    metrics = {
        "knn_200": accuracy(vote(similarity, neighbours, classes, temperature=0.1)),
        "knn_20": accuracy(vote(similarity[:, :20], neighbours[:, :20], classes, temperature=0.07)),
    }
    if linear:
        x = bank.clone()
        center, spread = standardise_in_place(x)
        head = make_head(x.shape[1], classes).to(x.device)
        fit_logistic(head, x, bank_labels, LINEAR_WEIGHT_DECAY)
        with torch.no_grad():
            metrics["linear"] = accuracy(head((queries - center) / spread).argmax(dim=1))
    return metrics


def measure_run(
    run: Path, file: Path, bank_images: int | None, bn_images: int
) -> dict[str, dict[str, float]]:
    """Return the accuracies of a run by each protocol.

    Args:
        run: folder of the run.
        file: has the results of the protocols that were finished earlier, and gets the others.
        bank_images: number of train images in the bank; None takes all that the run had.
        bn_images: number of train images on which BN statistics are estimated.

    Raises:
        UserError: the run held out no images, or as `open_context`.
    """
    results: dict[str, dict[str, float]] = {}
    if file.exists():
        results = json.loads(file.read_text())
    missing = {name: protocol for name, protocol in PROTOCOLS.items() if name not in results}
    if not missing:
        return results
    config = Knn(checkpoint=CheckpointOptions(checkpoint=str(run)))
    context = open_context(config, DEVICE, download=False, labels=True)
    require(context.test.held_out, f"{run}: was not trained with --held-out-images")
    # BN statistics may be estimated on more images than the bank has.
    bank = context.train.first(bank_images)
    backbone = Backbone(context, bank, bn_images)
    for name, protocol in missing.items():
        results[name] = measure(
            backbone.features("bank", protocol),
            bank.labels,
            backbone.features("queries", protocol),
            context.test.labels,
            len(context.classes),
            linear=True,
        )
        write_json(file, results)
        print(f"{run.name}, {name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def describe(values: Sequence[float], sign: str = "") -> str:
    """Return "mean +- standard deviation", or the number alone if there is only one."""
    mean = format(statistics.mean(values), f"{sign}.2f")
    if len(values) == 1:
        return mean
    return f"{mean} +- {statistics.stdev(values):.2f}"


def print_results(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print a table for each metric.

    Args:
        results: accuracies by run, protocol and metric.
    """
    head = ["", *results, "mean +- deviation", "difference from the first row"]
    for metric, title in METRICS.items():
        rows: list[list[str]] = []
        for protocol in PROTOCOLS:
            values: list[float] = []
            differences: list[float] = []
            for of_run in results.values():
                if metric in of_run[protocol]:
                    values.append(of_run[protocol][metric])
                    differences.append(of_run[protocol][metric] - of_run[USUAL][metric])
            if len(values) == len(results):
                cells = [f"{value:.2f}" for value in values]
                rows.append([protocol, *cells, describe(values), describe(differences, "+")])
        if rows:
            table(f"{title}, accuracy in % on held-out train images", head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--results", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--bank-images", type=int, help="train images for kNN and the linear classifier"
    )
    parser.add_argument(
        "--bn-images", type=int, default=20_000, help="train images for BN statistics"
    )
    args = parser.parse_args()

    args.results.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for run in args.runs:
        bank = args.bank_images or "all"
        file = args.results / f"{run.name}_bank_{bank}_bn_{args.bn_images}.json"
        try:
            results[run.name] = measure_run(run, file, args.bank_images, args.bn_images)
        except UserError as error:
            print(f"evaluation_questions.py: {error}", file=sys.stderr)
            return 2
    print_results(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
