"""Compare the last weights of a run with exponential averages of its weights.

`python tests/benchmarks/weight_average.py --data-dir DIR --results FOLDER` trains a small network
once for each seed, with the public parts of the program and a callback that keeps averages with
several decays. It prints kNN (k = 200, T = .1, and k = 20, T = .07) of 5,000 held-out train images
with the training images as the bank. The test images are not used. The same command again
continues: FOLDER has the results of finished seeds.

An average has a horizon of 1 / (1 - decay) steps. The learning rate falls to 0 along a cosine, so
averages over the last steps are averages over the cosine's tail. The running statistics of BN are
averaged as the weights are. "BN again" estimates them on clean train images with the final weights.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytorch_lightning as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from simsiam import SimSiam, ViewsDataModule
from simsiam.augment import normalize
from simsiam.evaluation.features import extract_features
from tests.benchmarks.evaluation_questions import BN_BATCH, describe, measure
from tests.benchmarks.timing import table
from utils.filesystem import write_json

DECAYS = (0.98, 0.99, 0.995, 0.998)
LAST = "last weights"
HELD_OUT = 5000
TITLES = {"knn_200": "kNN (k = 200, T = .1)", "knn_20": "kNN (k = 20, T = .07)"}


class WeightAverages(pl.Callback):
    """Keeps exponential averages of the backbone's weights and BN statistics.

    Attributes:
        averages: the backbone with averaged weights, by decay.
    """

    def __init__(self, decays: tuple[float, ...]) -> None:
        self.decays = decays
        self.averages: dict[float, AveragedModel] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        backbone = get_backbone(pl_module)
        for decay in self.decays:
            self.averages[decay] = AveragedModel(
                backbone, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        backbone = get_backbone(pl_module)
        for average in self.averages.values():
            average.update_parameters(backbone)


def get_backbone(module: pl.LightningModule) -> nn.Module:
    assert isinstance(module, SimSiam)
    return module.backbone


def train(seed: int, args: argparse.Namespace) -> tuple[dict[str, nn.Module], ViewsDataModule]:
    """Train one network; return its backbone with the last and the averaged weights, and the data.

    Args:
        seed: decides weights, order and views.
        args: the command line.
    """
    pl.seed_everything(seed, verbose=False)
    epochs = args.epochs
    # Small views at first, as in the recipe for two cores.
    phases = [f"16:{epochs * 5 // 8}", f"24:{epochs * 2 // 8}"] if epochs >= 8 else []
    data = ViewsDataModule(
        data_dir=args.data_dir,
        batch_size=64,
        seed=seed,
        image_schedule=phases,
        train_images=args.train_images,
        held_out_images=args.held_out_images,
    )
    module = SimSiam("resnet10", width=16, out_dim=512, h_dim=128, learning_rate=0.08)
    averages = WeightAverages(DECAYS)
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed",
        callbacks=[averages],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    backbones: dict[str, nn.Module] = {LAST: module.backbone}
    for decay, average in averages.averages.items():
        horizon = f"{1 / (1 - decay):.0f} steps"
        backbones[f"decay {decay:g} ({horizon})"] = average.module
    return backbones, data


def measure_backbone(backbone: nn.Module, data: ViewsDataModule) -> dict[str, float]:
    bank, queries = (
        extract_features(backbone, split.images, data.mean, data.std)
        for split in (data.train, data.test)
    )
    labels = data.train.labels
    return measure(bank, labels, queries, data.test.labels, len(data.classes), linear=False)


def measure_seed(seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train one network and return the accuracies of its backbones, by name and metric."""
    backbones, data = train(seed, args)
    results: dict[str, dict[str, float]] = {}
    for name, backbone in backbones.items():
        results[name] = measure_backbone(backbone, data)
        network = copy.deepcopy(backbone)
        batches = (
            normalize(images.float() / 255, data.mean, data.std)
            for images in data.train.images.split(BN_BATCH)
        )
        update_bn(batches, network)
        results[f"{name}, BN again"] = measure_backbone(network, data)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="./data", help="folder of CIFAR-10")
    parser.add_argument("--results", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-images", type=int, default=10_000 + HELD_OUT)
    parser.add_argument("--held-out-images", type=int, default=HELD_OUT)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)

    by_seed: dict[str, dict[str, dict[str, float]]] = {}
    for seed in args.seeds:
        file = args.results / f"seed_{seed}.json"
        if not file.exists():
            write_json(file, measure_seed(seed, args))
        by_seed[f"seed {seed}"] = json.loads(file.read_text())

    head = ["", *by_seed, "mean +- deviation", "difference from the first row"]
    names = next(iter(by_seed.values()))
    for metric, title in TITLES.items():
        rows: list[list[str]] = []
        for name in names:
            values = [of_seed[name][metric] for of_seed in by_seed.values()]
            differences = [
                of_seed[name][metric] - of_seed[LAST][metric] for of_seed in by_seed.values()
            ]
            cells = [f"{value:.2f}" for value in values]
            rows.append([name, *cells, describe(values), describe(differences, "+")])
        table(f"{title}, accuracy in % on held-out train images", head, rows)


if __name__ == "__main__":
    main()
