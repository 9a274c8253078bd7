"""What the machine can do at most, and where a step's time goes.

`python tests/benchmarks/ceilings.py`: the rate of a large bf16 matrix product and of a copy; then the parts of a
training step of ours (views, forward, backward, optimizer) and of an epoch's end (features, kNN). The step's share of
the matrix product's rate is by floating-point operations that torch counts.
"""

import argparse

import torch
from timing import DEVICE, bf16_peak, in_turn, seconds, step_flops, table

from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import place_on_device
from simsiam.evaluation.features import extract_features
from utils.knn import knn_predict

GPU = DEVICE.type == "cuda"


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
    data = ViewsDataModule(
        "patterns",
        train_images=args.images,
        test_images=args.images // 5,
        batch_size=args.batch_size,
        compile=GPU,
    )
    data.setup()
    data.train, data.test = place_on_device(
        (data.train, data.test), torch.device(DEVICE), memory=64
    )
    data.mean, data.std = data.mean.to(DEVICE), data.std.to(DEVICE)
    model = SimSiam(args.backbone, args.width).to(DEVICE)
    if GPU:
        for part in (model.backbone, model.projector, model.predictor):
            part.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True)
    indices = torch.arange(args.batch_size, device=DEVICE)
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: object) -> None:
        taken.setdefault(name, []).append(seconds(work))  # pyright: ignore[reportArgumentType]

    loss, views = torch.zeros(()), []

    def make_views() -> None:
        nonlocal views
        views = data.make_views(indices, 0)

    def forward() -> None:
        nonlocal loss
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            loss = model.training_step(views, 0)["loss"]

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(args.rounds + 3):
        timed("two views of each image", make_views)
        timed("forward", forward)
        timed("backward", lambda: loss.backward())
        timed("optimizer", step)
    parts = {name: sorted(values[3:])[args.rounds // 2] for name, values in taken.items()}
    features = {}

    def extract() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            for name, split in (("bank", data.train), ("queries", data.test)):
                features[name] = extract_features(model.backbone, split.images, data.mean, data.std)

    def vote() -> None:
        knn_predict(
            features["queries"], features["bank"], data.train.labels, 10, k=min(200, args.images)
        )

    end = in_turn({"features of all images": extract, "kNN": vote}, 3)

    peak = bf16_peak()
    a = torch.zeros(2**28 if GPU else 2**24, device=DEVICE)
    b = torch.empty_like(a)
    copied = 2 * a.numel() * a.element_size() / in_turn({"copy": lambda: b.copy_(a)}, 10)["copy"]
    flops = step_flops(lambda: SimSiam(args.backbone, args.width), args.batch_size, 2, 32)
    total = sum(parts.values())
    rows = [
        ("bf16 matrix product", f"{peak / 1e12:,.2f} TFLOP/s", ""),
        ("copy", f"{copied / 1e12:,.3f} TB/s", ""),
        *((name, f"{1000 * s:,.2f} ms", f"{100 * s / total:.0f} %") for name, s in parts.items()),
        ("a step", f"{1000 * total:,.2f} ms", "100 %"),
        (
            "operations of a step",
            f"{flops / 1e12:,.3f} TFLOP",
            f"{100 * flops / total / peak:.1f} % of the product's rate",
        ),
        *((name, f"{1000 * s:,.1f} ms", "at an epoch's end") for name, s in end.items()),
    ]
    title = f"{args.backbone} of width {args.width}, {args.batch_size} images x 2 views; {args.images:,} images"
    table(title, ("what", "measured", ""), rows)


if __name__ == "__main__":
    main()
