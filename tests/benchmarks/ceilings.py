"""Measure what the machine can do at most, and where the time of a training step goes.

Run `python tests/benchmarks/ceilings.py`. It measures the rate of a large bf16 matrix product and
of a copy, then the parts of a training step (views, forward, backward, optimizer) and of the end of
an epoch (features, kNN). torch counts the floating-point operations of a step, and the table has
their rate as a share of the matrix product's.
"""

import argparse
from collections.abc import Callable

import torch
from timing import DEVICE, bf16_peak, in_turn, seconds, step_flops, table

from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import place_on_device
from simsiam.evaluation.features import extract_features
from utils.knn import knn_predict

GPU = DEVICE.type == "cuda"
WARMUP_ROUNDS = 3


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU)


def make_data(images: int, batch_size: int) -> ViewsDataModule:
    """Return generated images and their statistics on the device."""
    data = ViewsDataModule(
        "patterns",
        train_images=images,
        test_images=images // 5,
        batch_size=batch_size,
        compile=GPU,
    )
    data.setup()
    splits = (data.train, data.test)
    data.train, data.test = place_on_device(splits, torch.device(DEVICE), memory=64)
    data.mean = data.mean.to(DEVICE)
    data.std = data.std.to(DEVICE)
    return data


class Step:
    """The parts of a training step. They must be called in this order."""

    def __init__(self, model: SimSiam, data: ViewsDataModule) -> None:
        self.model = model
        self.data = data
        self.indices = torch.arange(data.batch_size, device=DEVICE)
        self.optimizer = torch.optim.SGD(
            model.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True
        )

    def make_views(self) -> None:
        self.views = self.data.make_views(self.indices, 0)

    def forward(self) -> None:
        with autocast():
            self.loss = self.model.training_step(self.views, 0)["loss"]

    def backward(self) -> None:
        self.loss.backward()

    def optimize(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_step(step: Step, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part of a training step."""
    parts: dict[str, Callable[[], None]] = {
        "two views of each image": step.make_views,
        "forward": step.forward,
        "backward": step.backward,
        "optimizer": step.optimize,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(WARMUP_ROUNDS + rounds):
        for name, part in parts.items():
            times[name].append(seconds(part))
    medians = {}
    for name, values in times.items():
        measured = sorted(values[WARMUP_ROUNDS:])
        medians[name] = measured[rounds // 2]
    return medians


def measure_end_of_epoch(model: SimSiam, data: ViewsDataModule) -> dict[str, float]:
    """Return the median seconds of the features of all images, and of kNN on them."""
    features = {}

    def extract() -> None:
        with autocast():
            for name, split in (("bank", data.train), ("queries", data.test)):
                features[name] = extract_features(model.backbone, split.images, data.mean, data.std)

    def classify() -> None:
        k = min(200, len(data.train))
        knn_predict(features["queries"], features["bank"], data.train.labels, 10, k=k)

    return in_turn({"features of all images": extract, "kNN": classify}, 3)


def measure_copy() -> float:
    """Return the bytes per second that a copy reads and writes."""
    a = torch.zeros(2**28 if GPU else 2**24, device=DEVICE)
    b = torch.empty_like(a)
    times = in_turn({"copy": lambda: b.copy_(a)}, 10)
    return 2 * a.numel() * a.element_size() / times["copy"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--images", type=int, default=50_000 if GPU else 2_000)
    parser.add_argument("--rounds", type=int, default=20 if GPU else 3)
    args = parser.parse_args()
    data = make_data(args.images, args.batch_size)
    model = SimSiam(args.backbone, args.width).to(DEVICE)
    if GPU:
        for network in (model.backbone, model.projector, model.predictor):
            network.compile(dynamic=False)

    parts = measure_step(Step(model, data), args.rounds)
    step = sum(parts.values())
    end_of_epoch = measure_end_of_epoch(model, data)
    peak = bf16_peak()
    copy = measure_copy()
    flops = step_flops(lambda: SimSiam(args.backbone, args.width), args.batch_size, 2, 32)
    share = flops / step / peak

    rows = [
        ("bf16 matrix product", f"{peak / 1e12:,.2f} TFLOP/s", ""),
        ("copy", f"{copy / 1e12:,.3f} TB/s", ""),
    ]
    for name, time in parts.items():
        rows.append((name, f"{1000 * time:,.2f} ms", f"{100 * time / step:.0f} %"))
    rows.append(("a step", f"{1000 * step:,.2f} ms", "100 %"))
    rate = f"{100 * share:.1f} % of the product's rate"
    rows.append(("operations of a step", f"{flops / 1e12:,.3f} TFLOP", rate))
    for name, time in end_of_epoch.items():
        rows.append((name, f"{1000 * time:,.1f} ms", "at an epoch's end"))
    network = f"{args.backbone} of width {args.width}"
    size = f"{args.batch_size} images x 2 views; {args.images:,} images"
    table(f"{network}, {size}", ("what", "measured", ""), rows)


if __name__ == "__main__":
    main()
