"""Compare kNN among train images (leave-one-out) with kNN of held-out images, over many runs.

    python tests/benchmarks/leave_one_out.py runs/ranks_cifar/epochs_020_*

takes finished runs with `--held-out-images`, such as those of search_ranks.py. It prints how well
the two accuracies agree on the order of the runs (Spearman's rho), and by how much they differ.
Both have the same bank, the images that the run was trained on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from simsiam.config.evaluation_commands import Knn
from simsiam.config.run_options import DEFAULT_KNN_K, MonitorOptions
from simsiam.evaluation.context import open_context
from tests.benchmarks.search_ranks import describe
from utils.cli import parse
from utils.knn import choose_k, knn_predict


def measure(run: Path) -> tuple[float, float]:
    """Return the accuracies in percent of the train images and of the held-out images of a run."""
    config = parse(Knn, [str(run)], "leave_one_out.py")
    context = open_context(config, torch.device("cpu"), labels=True, download=False)
    bank = context.extract_features(context.train.images, "train images")
    queries = context.extract_features(context.test.images, "held-out images")
    labels = context.train.labels
    classes = len(context.classes)
    k = choose_k(labels, DEFAULT_KNN_K)
    temperature = MonitorOptions.knn_t
    own = torch.arange(len(bank))
    among = knn_predict(bank, bank, labels, classes, k, temperature, own)
    held_out = knn_predict(queries, bank, labels, classes, k, temperature)
    return percentage(among == labels), percentage(held_out == context.test.labels)


def percentage(correct: torch.Tensor) -> float:
    return 100 * correct.float().mean().item()


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    runs = [run for run in parser.parse_args(args).runs if run.is_dir()]  # logs lie beside them
    measured = np.array([measure(run) for run in runs])
    among, held_out = measured.T
    print("| compared over runs | rho | 95 % | n |\n|---|---|---|---|")
    print(describe("leave-one-out, held-out images", among.tolist(), held_out.tolist()))
    differences = among - held_out
    print(f"difference: {differences.mean():.1f} +- {differences.std(ddof=1):.1f} points")


if __name__ == "__main__":
    main(sys.argv[1:])
