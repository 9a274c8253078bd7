"""A training step: ours, the same arithmetic without Lightning, and the same job built from lightly's own parts.

`python tests/benchmarks/step.py`. Ours is what `main.py` runs: views made on the device, the module, Lightning's loop.
"Plain PyTorch" is the same arithmetic in a loop of a few lines: the difference is Lightning's share. lightly's is its
CIFAR-10 benchmark's way: its ResNet, heads, loss and transform, workers, a Lightning module; "granted" gives it our
precision (bf16 where the device has it) and channels_last besides; it is left out where it is not installed. Same sizes
for all; the steady state, in turn, in one process.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from timing import DEVICE, has, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import main as program
from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import place_on_device
from simsiam.data.synthetic import make_patterns
from utils.device import choose_precision

OUT, HIDDEN = 1024, 512
GPU = DEVICE.type == "cuda"
PRECISION = choose_precision("auto", "auto")
SKIP = 20 if GPU else 2  # steps before the steady state


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(pl.Callback):
    """Seconds of the steps after the first few."""

    begun, seconds = 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == SKIP:
            self.begun = now()
        if trainer.global_step == trainer.max_steps:
            self.seconds = now() - self.begun


def by_lightning(model: pl.LightningModule, steps: int, precision: Any, **data: Any) -> float:
    """Seconds of `steps` steps."""
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="gpu" if GPU else "cpu",
        devices=1,
        precision=precision,
        max_steps=SKIP + steps,
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


def plain(model: SimSiam, data: ViewsDataModule, steps: int) -> float:
    """Our arithmetic in a loop of its own; seconds of `steps` steps."""
    model.to(DEVICE).train()
    data.train, data.test = place_on_device(
        (data.train, data.test), torch.device(DEVICE), memory=64
    )
    data.mean, data.std = data.mean.to(DEVICE), data.std.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4, fused=True)
    batches = torch.randperm(len(data.train), device=DEVICE).split(data.batch_size)
    begun = 0.0
    for step in range(SKIP + steps):
        if step == SKIP:
            begun = now()
        indices = batches[step % (len(data.train) // data.batch_size)]
        views = data.make_views(indices, 0)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=PRECISION == "bf16-mixed"):
            loss = model.training_step(views, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return now() - begun


class Lightlys(pl.LightningModule):
    """As lightly's cifar10_benchmark.py builds it, with our sizes."""

    def __init__(self, width: int, channels_last: bool) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models import ResNetGenerator
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        resnet = ResNetGenerator("resnet-18", width=width / 64)
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = SimSiamProjectionHead(8 * width, OUT, OUT)
        self.prediction_head = SimSiamPredictionHead(OUT, HIDDEN, OUT)
        self.criterion = NegativeCosineSimilarity()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.format)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.backbone(x.to(memory_format=self.format)).flatten(start_dim=1)
        z = self.projection_head(f)
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        (x0, x1) = batch
        (z0, p0), (z1, p1) = self(x0), self(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss_ssl", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)]


class Pairs(Dataset[Any]):
    """Two views of each image by lightly's transform."""

    def __init__(self, images: Tensor) -> None:
        from lightly.transforms import SimSiamTransform

        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = SimSiamTransform(32, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64 if GPU else 16)
    parser.add_argument("--batch-size", type=int, default=512 if GPU else 128)
    parser.add_argument("--steps", type=int, default=60 if GPU else 6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=16 if GPU else 2, help="of lightly's loader")
    args = parser.parse_args()
    program.silence_lightning()
    images = max(50_000 if GPU else 0, args.batch_size * (SKIP + args.steps))
    data = ViewsDataModule(
        "patterns", train_images=images, test_images=10, batch_size=args.batch_size, compile=GPU
    )
    data.setup()

    def ours() -> SimSiam:
        model = SimSiam(width=args.width, out_dim=OUT, h_dim=HIDDEN, warmup_epochs=0)
        if GPU:
            for part in (model.backbone, model.projector, model.predictor):
                part.compile(dynamic=False)
        return model

    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: by_lightning(ours(), args.steps, PRECISION, datamodule=data),
        "plain PyTorch, same arithmetic": lambda: plain(ours(), data, args.steps),
    }
    if has("lightly"):
        pairs = DataLoader(
            Pairs(make_patterns(images)[0]),
            batch_size=args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            persistent_workers=True,
        )

        def lightlys(granted: bool) -> float:
            precision = PRECISION if granted else "32-true"
            return by_lightning(
                Lightlys(args.width, granted), args.steps, precision, train_dataloaders=pairs
            )

        ways["lightly's parts, as shipped"] = lambda: lightlys(False)
        ways["lightly's parts, granted"] = lambda: lightlys(True)
    taken = {name: float("inf") for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            taken[name] = min(taken[name], way() / args.steps)
    rows = [
        (name, f"{1000 * s:,.1f}", f"{args.batch_size / s:,.0f}", f"{s / taken['ours']:.2f}")
        for name, s in taken.items()
    ]
    what = (
        f"A step of {args.batch_size} images x 2 views, resnet18 of width {args.width}, {PRECISION}"
    )
    title = f"{what}, best of {args.rounds} in turn"
    table(title, ("", "ms a step", "images/s", "time, x ours"), rows)
    print(
        f"Lightning's share of our step: {100 * (1 - taken['plain PyTorch, same arithmetic'] / taken['ours']):.1f} %"
    )


if __name__ == "__main__":
    main()
