"""Measure a training step: ours, ours without Lightning, and one built from lightly's parts.

Run `python tests/benchmarks/step.py`. The candidates have the same sizes and are measured in turn
in one process, after some steps to warm up.

- Ours is what a long run of `main.py` computes: views made on the device by compiled augmentation,
  the module, and Lightning's loop.
- "Plain PyTorch" is the same arithmetic in a short loop. The difference is Lightning's share.
- lightly's is built as in its CIFAR-10 benchmark: its ResNet, heads, loss and transform, workers,
  and a Lightning module. "Granted" also gives it our precision (--precision auto is bf16 if the
  device supports it) and channels_last. Both are left out if lightly is not installed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from timing import DEVICE, is_installed, now, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import main as program
from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import place_on_device
from simsiam.data.synthetic import make_patterns
from utils.device import choose_precision

OUT_DIM = 1024
H_DIM = 512
PLAIN = "plain PyTorch, same arithmetic"
GPU = DEVICE.type == "cuda"
WARMUP_STEPS = 20 if GPU else 2


class Clock(pl.Callback):
    """Measures the seconds of all steps after the warm-up."""

    begin = 0.0
    seconds = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == WARMUP_STEPS:
            self.begin = now()
        if trainer.global_step == trainer.max_steps:
            self.seconds = now() - self.begin


def train_with_lightning(
    model: pl.LightningModule, steps: int, precision: Any, **data: Any
) -> float:
    """Return the seconds of `steps` steps after the warm-up."""
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="gpu" if GPU else "cpu",
        devices=1,
        precision=precision,
        benchmark=GPU,  # as in main.py
        max_steps=WARMUP_STEPS + steps,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, **data)
    return clock.seconds


def train_without_lightning(
    model: SimSiam, data: ViewsDataModule, steps: int, precision: Any
) -> float:
    """Return the seconds of `steps` steps after the warm-up."""
    model.to(DEVICE).train()
    splits = (data.train, data.test)
    data.train, data.test = place_on_device(splits, torch.device(DEVICE), memory=64)
    data.mean = data.mean.to(DEVICE)
    data.std = data.std.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True)
    batches = torch.randperm(len(data.train), device=DEVICE).split(data.batch_size)
    complete_batches = len(data.train) // data.batch_size
    begin = 0.0
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            begin = now()
        indices = batches[step % complete_batches]
        views = data.make_views(indices, 0)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model.training_step(views, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return now() - begin


class Lightlys(pl.LightningModule):
    """SimSiam as in lightly's cifar10_benchmark.py, with our sizes."""

    def __init__(self, width: int, channels_last: bool) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models import ResNetGenerator
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        resnet = ResNetGenerator("resnet-18", width=width / 64)
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = SimSiamProjectionHead(8 * width, OUT_DIM, OUT_DIM)
        self.prediction_head = SimSiamPredictionHead(OUT_DIM, H_DIM, OUT_DIM)
        self.criterion = NegativeCosineSimilarity()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.format)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.backbone(x.to(memory_format=self.format)).flatten(start_dim=1)
        z = self.projection_head(f)
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        x0, x1 = batch
        z0, p0 = self(x0)
        z1, p1 = self(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss_ssl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)]


class Pairs(Dataset[Any]):
    """A data set of two views of each image, made by lightly's transform."""

    def __init__(self, images: Tensor) -> None:
        from lightly.transforms import SimSiamTransform

        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = SimSiamTransform(32, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def make_ours(width: int) -> SimSiam:
    model = SimSiam(width=width, out_dim=OUT_DIM, h_dim=H_DIM, warmup_epochs=0)
    if GPU:
        for network in (model.backbone, model.projector, model.predictor):
            network.compile(dynamic=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64 if GPU else 16)
    parser.add_argument("--batch-size", type=int, default=512 if GPU else 128)
    parser.add_argument("--steps", type=int, default=60 if GPU else 6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "32", "bf16"), default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--workers", type=int, default=16 if GPU else 2, help="worker processes of lightly's loader"
    )
    args = parser.parse_args()
    program.silence_libraries()
    our_precision = choose_precision(args.precision, "auto")
    images = max(50_000 if GPU else 0, args.batch_size * (WARMUP_STEPS + args.steps))
    data = ViewsDataModule(
        "patterns",
        train_images=images,
        test_images=10,
        batch_size=args.batch_size,
        compile=args.compile,
    )
    data.setup()

    def train_ours() -> float:
        model = make_ours(args.width)
        return train_with_lightning(model, args.steps, our_precision, datamodule=data)

    def train_plain() -> float:
        return train_without_lightning(make_ours(args.width), data, args.steps, our_precision)

    candidates: dict[str, Callable[[], float]] = {"ours": train_ours, PLAIN: train_plain}
    if is_installed("lightly"):
        pairs = DataLoader(
            Pairs(make_patterns(images)[0]),
            batch_size=args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            persistent_workers=True,
        )

        def train_lightlys(granted: bool) -> float:
            model = Lightlys(args.width, channels_last=granted)
            precision = our_precision if granted else "32-true"
            return train_with_lightning(model, args.steps, precision, train_dataloaders=pairs)

        candidates["lightly's parts, as shipped"] = lambda: train_lightlys(granted=False)
        candidates["lightly's parts, granted"] = lambda: train_lightlys(granted=True)

    best = {name: float("inf") for name in candidates}  # seconds of a step
    for _ in range(args.rounds):
        for name, train in candidates.items():
            best[name] = min(best[name], train() / args.steps)

    rows = []
    for name, time in best.items():
        speed = args.batch_size / time
        rows.append((name, f"{1000 * time:,.1f}", f"{speed:,.0f}", f"{time / best['ours']:.2f}"))
    size = f"{args.batch_size} images x 2 views, resnet18 of width {args.width}, {our_precision}"
    title = f"A step of {size}, best of {args.rounds} in turn"
    table(title, ("", "ms a step", "images/s", "time, x ours"), rows)
    share = 1 - best[PLAIN] / best["ours"]
    print(f"Lightning's share of our step: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
