"""What a finished run reached, by the rule of an open race: 90.0 % on CIFAR-10's test images, in the least time.

`python tests/benchmarks/race.py RUN`. The rule is that of github.com/dkobak/simclr-cifar10: ResNet-18, the last epoch,
features before the projector, the 10 nearest train images by cosine, each with one vote.
"""

import argparse
import json
from pathlib import Path

import torch
from timing import DEVICE, table
from torch.nn.functional import one_hot

import main as program
from simsiam.config.commands import Knn
from simsiam.config.evaluation_options import CheckpointOptions
from simsiam.evaluation.context import open_context
from utils.knn import nearest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument(
        "--legs", type=Path, help="file with the seconds of each leg of the run, a number a line"
    )
    args = parser.parse_args()
    program.silence_lightning()
    checkpoint = CheckpointOptions(checkpoint=str(args.run))
    context = open_context(Knn(checkpoint=checkpoint), torch.device(DEVICE), labels=True)
    bank = context.extract_features(context.train.images, "train images")
    queries = context.extract_features(context.test.images, "test images")
    votes = one_hot(context.train.labels[nearest(queries, bank, args.k)[1]]).sum(dim=1)
    right = (votes.argmax(dim=1) == context.test.labels).double().mean().item()
    summary = json.loads((args.run / "summary.json").read_text())
    legs = list(map(int, args.legs.read_text().split())) if args.legs else []
    rows = [
        (f"kNN, k {args.k}, one vote each", f"{100 * right:.2f} %"),
        ("epochs", f"{summary['epochs']}"),
        ("time of the epochs", f"{summary['seconds'] / 60:.1f} min"),
        *[(f"with starts and stops (legs: {len(legs)})", f"{sum(legs) / 60:.1f} min")] * bool(legs),
    ]
    table(
        f"Race to 90.0 % on the {len(context.test):,} test images of {context.dataset}",
        ("", ""),
        rows,
    )


if __name__ == "__main__":
    main()
