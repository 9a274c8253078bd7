"""What do heavy views do that hardly show the image any more?

`python tests/benchmarks/heavy_collapse.py --data-dir DIR --results FILE.jsonl` trains a small
network without heavy views, with the one-way loss of DSSL, with the symmetric loss, and with heavy
views alone. It prints kNN of held-out train images, the effective rank and z_std. The test images
are not used. The same command again continues: FILE has the results of finished runs.

Two of the 14 operations of DSSL's RandAugment shift an image by 30 of its 32 pixels. The program
leaves them out, because what remains is black but for two columns or rows. Here they are added
again. The paper reports a collapse if both views of SimSiam are heavy, which is the last of the
four.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytorch_lightning as pl
import torch
from torch import Tensor

from simsiam import CollapseMonitor, KNNMonitor, SimSiam, ViewsDataModule
from tests.benchmarks.evaluation_questions import describe
from tests.benchmarks.timing import table

STANDARD_VIEWS = 2
SHIFTED_PART = 30 / 32  # of the side of a view
AXIS_PROBABILITY = 1 - (13 / 14) ** 2  # of two operations among 14, at least one shifts this axis


class Kind(NamedTuple):
    """Which views a network is trained on."""

    heavy_views: int = 0  # beside the standard views
    heavy_loss: str = "one-way"
    heavy_only: bool = False  # the heavy views take the place of the standard views


KINDS = {
    "no heavy views": Kind(),
    "one-way": Kind(2),
    "symmetric": Kind(2, "symmetric"),
    "both views heavy": Kind(heavy_only=True),
}


class ShiftedHeavyViews(ViewsDataModule):
    """Shifts some of the heavy views by 30 of 32 pixels. What comes into the view is black."""

    def __init__(self, *args: Any, heavy_only: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heavy_only = heavy_only

    def make_views(self, indices: Tensor, epoch: int, images: Tensor | None = None) -> list[Tensor]:
        views = super().make_views(indices, epoch, images)
        generator = torch.Generator().manual_seed(1_000_003 * epoch + int(indices[0]))
        heavy = [self.shift_some(view, generator) for view in views[STANDARD_VIEWS:]]
        return heavy if self.heavy_only else views[:STANDARD_VIEWS] + heavy

    def shift_some(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Return a view (B, 3, S, S) with some samples shifted along one or both axes."""
        black = (-self.mean / self.std)[None, :, None, None]
        for axis in (2, 3):
            shift = round(SHIFTED_PART * view.shape[axis])
            shifted = black.expand_as(view).clone()
            remaining = view.shape[axis] - shift
            shifted.narrow(axis, shift, remaining).copy_(view.narrow(axis, 0, remaining))
            is_shifted = torch.rand(len(view), generator=generator) < AXIS_PROBABILITY
            view = torch.where(is_shifted[:, None, None, None], shifted, view)
        return view


def train(kind: Kind, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and return what is known about it after the last epoch."""
    pl.seed_everything(seed, verbose=False)
    data = ShiftedHeavyViews(
        "cifar10",
        args.data_dir,
        train_images=args.train_images + args.held_out_images,
        held_out_images=args.held_out_images,
        image_size=16,
        batch_size=32,
        seed=seed,
        heavy_views=2 if kind.heavy_only else kind.heavy_views,
        heavy_only=kind.heavy_only,
    )
    model = SimSiam(
        "resnet10",
        width=16,
        out_dim=256,
        h_dim=64,
        learning_rate=rate,
        weight_decay=args.weight_decay,
        warmup_epochs=0,
        heavy_views=kind.heavy_views,
        heavy_loss=kind.heavy_loss,
    )
    warnings: list[str] = []
    monitor = KNNMonitor(k=50, every=2, print_fn=lambda _: None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        callbacks=[monitor, CollapseMonitor(print_fn=warnings.append)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return {
        "untrained": monitor.initial,
        "knn": trainer.callback_metrics["kNN_accuracy"].item(),
        "rankme": trainer.callback_metrics["rankme"].item(),
        "z_std": trainer.callback_metrics["z_std"].item(),
        "warnings": warnings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="./data", help="folder of CIFAR-10")
    parser.add_argument("--results", type=Path, required=True, help="file of the results")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.11, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weight-decay", type=float, default=0.0005)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train-images", type=int, default=3000)
    parser.add_argument("--held-out-images", type=int, default=1000)
    args = parser.parse_args()

    finished: dict[str, dict[str, Any]] = {}  # results by the name of a run
    if args.results.exists():
        for line in args.results.read_text().splitlines():
            result = json.loads(line)
            finished[result["run"]] = result

    for rate in args.rates:
        rows: list[list[str]] = []
        for name, kind in KINDS.items():
            results: list[dict[str, Any]] = []
            for seed in args.seeds:
                run = f"{name}, rate {rate:g}, seed {seed}, {args.epochs} epochs"
                if args.weight_decay != parser.get_default("weight_decay"):
                    run += f", weight decay {args.weight_decay:g}"
                if run not in finished:
                    finished[run] = {"run": run, **train(kind, rate, seed, args)}
                    with args.results.open("a") as file:
                        file.write(json.dumps(finished[run]) + "\n")
                results.append(finished[run])
            gains = [result["knn"] - result["untrained"] for result in results]
            row = [name, ", ".join(f"{result['knn']:.1f}" for result in results)]
            row.append(describe(gains, "+"))
            for measure in ("rankme", "z_std"):
                row.append(describe([result[measure] for result in results]))
            row.append(str(sum(bool(result["warnings"]) for result in results)))
            rows.append(row)
        head = ["", "kNN", "gain over the untrained network", "rank", "z_std", "runs warned"]
        table(f"rate {rate:g}", head, rows)


if __name__ == "__main__":
    main()
