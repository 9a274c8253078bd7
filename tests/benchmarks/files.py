"""Measure images per second from JPEG files to crops and to views, beside torchvision's loader.

Run `python tests/benchmarks/files.py`. The files are JPEG files of 500 x 375 pixels, like most of
ImageNet's. Each image gives two views, and each candidate passes over all files once a round. The
candidates decode the files each time (`--image-cache off`), read the cache (`on`), or are
torchvision's `ImageFolder` and torch's `DataLoader` with a worker process for each core.

"crops" are the batches of uint8 crops: decode, crop, resize. "views" are the complete pipeline with
colour jitter, grayscale, flip and normalisation, which this program computes on the device by
compiled augmentation. The ratios are to torchvision. The last lines extrapolate to ImageNet on 16
cores. The files have just been written, so the operating system still has most of them in memory.

The second table has each part of a training from files: decoding alone, decoding and cropping
(`off`), complete views, and the steps of a resnet18 of width 64 on views that are ready. The part
that gives the fewest images a second bounds the training. On a CPU all parts share the cores, so
the last column has what they reach together.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torchvision.transforms as T
from PIL import Image
from timing import DEVICE, in_turn, seconds, table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from simsiam import SimSiam
from simsiam.data.datamodule import ViewsDataModule
from simsiam.data.dataset import default_stem
from simsiam.data.files.crop_loader import CropLoader
from simsiam.data.files.threads import count_threads, start_threads
from simsiam.data.sampler import EpochSampler
from utils.device import choose_precision

IMAGENET_IMAGES = 1_281_167
CORES = 16  # of the extrapolation
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]


def write_files(folder: Path, n: int) -> None:
    """Write n JPEG files of smooth images with a little noise, which compress like photographs."""
    for i in range(n):
        coarse = torch.rand(1, 3, 24, 32)
        smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
        noisy = (smooth + 0.05 * torch.randn(3, 375, 500)).clamp(0, 1)
        image = Image.fromarray((255 * noisy).byte().permute(1, 2, 0).numpy())
        file = folder / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=90)


class TwoViews:
    """Return two views of an image, as the authors' TwoCropsTransform."""

    def __init__(self, transform: Callable[[Image.Image], object]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[object]:
        return [self.transform(image), self.transform(image)]


def torchvision_loader(folder: Path, batch: int, transforms: list[object]) -> DataLoader[object]:
    """Return torch's loader, with a worker process for each core."""
    return DataLoader(
        ImageFolder(str(folder), TwoViews(T.Compose(transforms))),
        batch,
        shuffle=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
        drop_last=True,
    )


def open_loader(data: ViewsDataModule) -> CropLoader:
    """Return the loader of the crops of epoch 0."""
    whole = data.train.whole
    assert whole is not None
    batches = EpochSampler(len(whole), data.batch_size, 0, lambda: 0, torch.device("cpu"))
    draw_boxes = data.view_maker.draw_boxes_in(lambda: 0)
    on_gpu = DEVICE.type == "cuda"
    return CropLoader(batches, whole, data.views, draw_boxes, lambda: data.size, pin=on_gpu)


def decode(path: Path) -> None:
    """Decode a file at its full size."""
    with Image.open(path) as image:
        image.load()


def decode_all(folder: Path) -> None:
    """Decode all files in as many threads as the loader of crops has."""
    with start_threads(count_threads()) as pool:
        exhaust(pool.map(decode, folder.rglob("*.jpg")))


def measure_training(size: int, batch: int, width: int) -> float:
    """Return images per second of the forward and backward pass of a resnet18, views being ready.

    The precision is that of `--precision auto`.
    """
    model = SimSiam("resnet18", width=width, stem=default_stem(size), image_size=size)
    model.to(DEVICE).train()
    views = [torch.randn(batch, 3, size, size, device=DEVICE) for _ in range(2)]
    bf16 = choose_precision("auto", "auto") == "bf16-mixed"

    def take_step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = model.training_step(views, 0)["loss"]
        model.zero_grad()
        loss.backward()

    return batch / in_turn({"step": take_step}, rounds=3)["step"]


def describe_parts(size: int, speeds: dict[str, float]) -> list[str]:
    """Return a row: images per second of each part, which part bounds, and all parts together."""
    slowest = min(speeds, key=lambda part: speeds[part])
    together = 1 / (1 / speeds["views"] + 1 / speeds["network"])
    numbers = [f"{speed:,.0f}" for speed in speeds.values()]
    return [f"{size} x {size}", *numbers, slowest, f"{together:,.0f}"]


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def measure(
    size: int, n: int, batch: int, rounds: int, width: int, compile: bool, folder: Path
) -> tuple[list[list[str]], list[str]]:
    """Print the extrapolation, and return the rows of both tables for views of `size` pixels."""
    files = folder / "files"
    modules: dict[str, ViewsDataModule] = {}
    preparation: dict[str, float] = {}
    for mode in ("on", "off"):
        data = ViewsDataModule(
            "folder",
            str(files),
            batch_size=batch,
            image_size=size,
            image_cache=mode,
            cache_dir=str(folder / "cache"),
        )
        preparation[mode] = seconds(data.prepare_data)
        data.setup()
        data.mean = data.mean.to(DEVICE)
        data.std = data.std.to(DEVICE)
        if compile:
            data.view_maker.compile_sizes([size], print)
        modules[mode] = data

    crop = T.RandomResizedCrop(size, scale=(0.2, 1.0))
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    to_views = [jitter, T.RandomGrayscale(0.2), T.RandomHorizontalFlip(), T.ToTensor()]
    their_crops = torchvision_loader(files, batch, [crop, T.PILToTensor()])
    their_views = torchvision_loader(files, batch, [crop, *to_views, T.Normalize(MEAN, STD)])

    def make_views(data: ViewsDataModule) -> None:
        for indices, crops in open_loader(data):
            data.view_maker.finish_crops(
                crops.to(DEVICE), indices.to(DEVICE), 0, data.mean, data.std
            )

    works: dict[str, Callable[[], object]] = {
        "decode": lambda: decode_all(files),
        "crops torchvision": lambda: exhaust(their_crops),
        "crops off": lambda: exhaust(open_loader(modules["off"])),
        "crops on": lambda: exhaust(open_loader(modules["on"])),
        "views torchvision": lambda: exhaust(their_views),
        "views off": lambda: make_views(modules["off"]),
        "views on": lambda: make_views(modules["on"]),
    }
    times = in_turn(works, rounds)
    images = n // batch * batch
    rows: list[list[str]] = []
    for what in ("crops", "views"):
        row = [f"{what} of {size} x {size}"]
        for who in ("torchvision", "off", "on"):
            row.append(f"{images / times[f'{what} {who}']:,.0f}")
        for who in ("off", "on"):
            row.append(f"{times[f'{what} torchvision'] / times[f'{what} {who}']:.2f}")
        rows.append(row)

    cache_bytes = sum(f.stat().st_size for f in (folder / "cache").rglob("*.uint8"))
    print(extrapolate(size, n, times, preparation["on"], cache_bytes), flush=True)
    speeds = {
        "decode": n / times["decode"],
        "crops": images / times["crops off"],
        "views": images / times["views off"],
        "network": measure_training(size, batch, width),
    }
    return rows, describe_parts(size, speeds)


def extrapolate(
    size: int, n: int, times: dict[str, float], decoding: float, cache_bytes: int
) -> str:
    """Return what the measurement means for ImageNet on `CORES` cores, in proportion."""
    scale = CORES / len(os.sched_getaffinity(0))
    off = n / times["crops off"] * scale
    on = n / times["crops on"] * scale
    gib = cache_bytes / n * IMAGENET_IMAGES / 2**30
    minutes = IMAGENET_IMAGES / (n / decoding * scale) / 60
    return (
        f"ImageNet, {size} pixels, {CORES} cores: off {off:,.0f} images/s, "
        f"{IMAGENET_IMAGES / off / 60:.0f} minutes an epoch; on {on:,.0f} images/s, "
        f"{IMAGENET_IMAGES / on / 60:.0f} minutes an epoch, {gib:.0f} GiB of cache, which takes "
        f"{minutes:.0f} minutes to make"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64, help="of the resnet18")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows: list[list[str]] = []
    rows_of_parts: list[list[str]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_files(folder / "files", args.files)
            rows_of_size, parts = measure(
                size,
                args.files,
                args.batch_size,
                args.rounds,
                args.width,
                args.compile,
                folder,
            )
            rows += rows_of_size
            rows_of_parts.append(parts)
    head = ("", "torchvision", "off", "on", "ratio of off", "ratio of on")
    table(f"Images a second, medians of {args.rounds} rounds in turn", head, rows)
    head = ("", "decode", "crops", "views", "network", "bound", "views and network together")
    table("Images a second of each part, from files", head, rows_of_parts)


if __name__ == "__main__":
    main()
