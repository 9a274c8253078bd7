"""Print the accuracy and time of a finished run by the rule of an open race on CIFAR-10.

Run `python tests/benchmarks/race.py RUN`. The aim of the race is 90.0 % on the test images in the
shortest time. The rule is that of github.com/dkobak/simclr-cifar10: ResNet-18, the last epoch,
features before the projector, and one vote for each of the 10 nearest training images by cosine.
"""

import argparse
import json
from pathlib import Path

import torch
from timing import DEVICE, table
from torch.nn.functional import one_hot

import main as program
from simsiam.config.evaluation_commands import Knn
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.evaluation.context import open_context
from utils.knn import nearest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--k", type=int, default=10)
    args = parser.parse_args()
    program.silence_libraries()
    checkpoint = CheckpointOptions(checkpoint=str(args.run))
    context = open_context(Knn(checkpoint=checkpoint), torch.device(DEVICE), labels=True)
    bank = context.extract_features(context.train.images, "train images")
    queries = context.extract_features(context.test.images, "test images")
    _, neighbours = nearest(queries, bank, args.k)
    votes = one_hot(context.train.labels[neighbours]).sum(dim=1)
    accuracy = (votes.argmax(dim=1) == context.test.labels).double().mean().item()

    summary = json.loads((args.run / "summary.json").read_text())
    rows = [
        (f"kNN, k {args.k}, one vote each", f"{100 * accuracy:.2f} %"),
        ("epochs", f"{summary['epochs']}"),
        ("time of the epochs", f"{summary['seconds'] / 60:.1f} min"),
    ]
    title = f"Race to 90.0 % on the {len(context.test):,} test images of {context.dataset}"
    table(title, ("", ""), rows)


if __name__ == "__main__":
    main()
