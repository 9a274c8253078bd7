"""Measure augmented views per second: ours, torchvision, lightly's SimSiam transform and kornia.

Run `python tests/benchmarks/augment.py`. All candidates have the same pipeline: crop of 0.2 to 1,
flip, jitter 0.4/0.4/0.4/0.1 with probability 0.8, grayscale with probability 0.2, normalisation.
Images have 32 x 32 pixels, and there is no blur.

A column is for a number of threads. Pipelines of single images run in that many worker processes of
a DataLoader. Pipelines of a batch give torch that many threads. torchvision's v2 gets single images
too: for a batch it would draw the same parameters for all images, which is another augmentation.
Ratios are relative to torchvision's PIL pipeline in the same column. lightly and kornia are left
out if they are not installed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timing import DEVICE, in_turn, is_installed, table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import transforms as v1
from torchvision.transforms import v2

from simsiam.augment import augment
from simsiam.data.synthetic import make_patterns

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
JITTER = (0.4, 0.4, 0.4, 0.1)
LIGHTLY = "lightly's SimSiam transform"
BATCH = 512  # images, for pipelines of a batch


def torchvision_pil() -> Callable[[Image.Image], Tensor]:
    return v1.Compose(
        [
            v1.RandomResizedCrop(32, scale=(0.2, 1)),
            v1.RandomHorizontalFlip(),
            v1.RandomApply([v1.ColorJitter(*JITTER)], p=0.8),
            v1.RandomGrayscale(0.2),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )


def torchvision_v2() -> Callable[[Tensor], Tensor]:
    return v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def lightly_simsiam() -> Callable[[Image.Image], list[Tensor]]:
    from lightly.transforms import SimSiamTransform

    return SimSiamTransform(32, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD})


def kornia_batch() -> nn.Module:
    import kornia.augmentation as K

    return nn.Sequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


class Single(torch.utils.data.Dataset[Any]):
    """A data set that applies a transform to single images."""

    def __init__(self, images: list[Any], transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def pass_in_workers(
    images: list[Any], transform: Callable[[Any], Any], workers: int
) -> Callable[[], None]:
    """Return a function that transforms all images in worker processes.

    The workers are started once, so that their start is not measured.
    """
    dataset = Single(images, transform)
    loader = DataLoader(dataset, batch_size=128, num_workers=workers, persistent_workers=True)

    def work() -> None:
        for _ in loader:
            pass

    return work


def measure(images: Tensor, threads: int, rounds: int) -> dict[str, float]:
    """Return the views per second of each pipeline."""
    torch.set_num_threads(threads)
    n = len(images)
    on_device = images.to(DEVICE)
    indices = torch.arange(n, device=DEVICE)
    mean = torch.tensor(MEAN, device=DEVICE)
    std = torch.tensor(STD, device=DEVICE)
    zero = torch.zeros((), dtype=torch.int64, device=DEVICE)
    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    tensor_images = list(images)

    def ours(function: Callable[..., Tensor]) -> Callable[[], None]:
        def work() -> None:
            for part in indices.split(BATCH):
                function(on_device[part], part, seed=0, epoch=zero, view=zero, mean=mean, std=std)

        return work

    def kornias() -> Callable[[], None]:
        transform = kornia_batch().to(DEVICE)

        def work() -> None:
            for part in on_device.split(BATCH):
                transform(part.float() / 255)

        return work

    works = {
        "torchvision, PIL": pass_in_workers(pil_images, torchvision_pil(), threads),
        "torchvision v2, tensors": pass_in_workers(tensor_images, torchvision_v2(), threads),
    }
    if is_installed("lightly"):
        works[LIGHTLY] = pass_in_workers(pil_images, lightly_simsiam(), threads)
    if is_installed("kornia"):
        works[f"kornia, batches of {BATCH}"] = kornias()
    works["ours, eager"] = ours(augment)
    works["ours, compiled"] = ours(torch.compile(augment, fullgraph=True, dynamic=False))

    views_per_second = {}
    for name, time in in_turn(works, rounds).items():
        views = 2 * n if name == LIGHTLY else n  # lightly's transform returns two views
        views_per_second[name] = views / time
    return views_per_second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    images, _ = make_patterns(args.images)
    speeds = {threads: measure(images, threads, args.rounds) for threads in args.threads}

    head = ["pipeline"]
    for threads in args.threads:
        unit = "thread" if threads == 1 else "threads"
        head += [f"views/s, {threads} {unit}", "ratio"]
    names = list(speeds[args.threads[0]])
    reference = names[0]
    rows = []
    for name in names:
        row = [name]
        for threads in args.threads:
            speed = speeds[threads][name]
            row += [f"{speed:,.0f}", f"{speed / speeds[threads][reference]:.2f}"]
        rows.append(row)
    size = f"{args.images:,} images of 32 x 32"
    table(f"Augmentation: {size}, medians of {args.rounds} rounds in turn", head, rows)


if __name__ == "__main__":
    main()
