"""Augmented views a second: ours against torchvision (PIL, and v2 on tensors), lightly's SimSiam transform and kornia.

`python tests/benchmarks/augment.py`. The same pipeline for all: crop of .2 to 1, flip, jitter .4/.4/.4/.1 at .8,
grayscale at .2, normalised; 32 x 32, without blur. Pipelines of single images run in as many worker processes as the
column says, as in a DataLoader; those of a batch give torch that many threads. torchvision's v2 goes image by image
too: on a batch it draws once for all of it, which is another augmentation. Ratios are to torchvision's PIL pipeline in
the same column. lightly and kornia are left out where they are not installed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timing import DEVICE, has, in_turn, table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import transforms as v1
from torchvision.transforms import v2

from simsiam.augment import augment
from simsiam.data.synthetic import make_patterns

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
JITTER = (0.4, 0.4, 0.4, 0.1)


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
    """Images through a transform of one image."""

    def __init__(self, images: list[Any], transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def through_workers(dataset: Single, workers: int, batch: int) -> Callable[[], None]:
    """A pass over the images in workers that live on, so that their start is not measured."""
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=True)

    def work() -> None:
        for _ in loader:
            pass

    return work


def measure(images: Tensor, threads: int, rounds: int) -> dict[str, float]:
    """Views a second of each pipeline."""
    torch.set_num_threads(threads)
    n, on_device, indices = len(images), images.to(DEVICE), torch.arange(len(images), device=DEVICE)
    mean, std = torch.tensor(MEAN, device=DEVICE), torch.tensor(STD, device=DEVICE)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    compiled, zero = (
        torch.compile(augment, fullgraph=True, dynamic=False),
        torch.zeros((), dtype=torch.int64, device=DEVICE),
    )

    def ours(function: Callable[..., Tensor]) -> Callable[[], None]:
        def work() -> None:
            for part in indices.split(512):
                function(on_device[part], part, seed=0, epoch=zero, view=zero, mean=mean, std=std)

        return work

    def kornias() -> Callable[[], None]:
        batch = kornia_batch().to(DEVICE)

        def work() -> None:
            for part in on_device.split(512):
                batch(part.float() / 255)

        return work

    works = {
        "torchvision, PIL": through_workers(Single(pil, torchvision_pil()), threads, 128),
        "torchvision v2, tensors": through_workers(
            Single(list(images), torchvision_v2()), threads, 128
        ),
    }
    if has("lightly"):
        works["lightly's SimSiam transform"] = through_workers(
            Single(pil, lightly_simsiam()), threads, 128
        )
    if has("kornia"):
        works["kornia, batches of 512"] = kornias()
    works |= {"ours, eager": ours(augment), "ours, compiled": ours(compiled)}
    views = {name: 2 if "lightly" in name else 1 for name in works}
    return {name: n * views[name] / s for name, s in in_turn(works, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    images, _ = make_patterns(args.images)
    figures = {threads: measure(images, threads, args.rounds) for threads in args.threads}
    names = list(next(iter(figures.values())))
    head = ["pipeline"]
    for threads in args.threads:
        head += [f"views/s, {threads} thread{'s' * (threads > 1)}", "ratio"]
    rows = []
    for name in names:
        row = [name]
        for threads in args.threads:
            speed = figures[threads]
            row += [f"{speed[name]:,.0f}", f"{speed[name] / speed[names[0]]:.2f}"]
        rows.append(row)
    table(
        f"Augmentation: {args.images:,} images of 32 x 32, medians of {args.rounds} rounds in turn",
        head,
        rows,
    )


if __name__ == "__main__":
    main()
