"""Measure images per second: decoded from files, taken from memory, and read from the cache.

Run `python tests/benchmarks/stream.py`. The decoded files are JPEG files of 500 x 375 pixels, like
most of ImageNet's, and are stored with the side that the program uses for views of the given size.
Batches of 256 in random order are then taken as in training: gathered from a tensor, or read from
the memory map by `PrefetchLoader`. The last column has the views that this machine augments per
second; reading should be faster. The file has just been written, so the operating system still has
most of it in memory.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import DEVICE, in_turn, seconds, table
from torch import Tensor

from simsiam.augment import augment
from simsiam.data.dataset import stored_side
from simsiam.data.files.image_cache import decode_images, map_images
from simsiam.data.sampler import EpochSampler, PrefetchLoader


def measure_decoding(size: int, files: int, folder: Path) -> float:
    """Return the images per second that are decoded from JPEG files into a cache."""
    source = folder / f"jpeg_{size}"
    source.mkdir()
    # A smooth image with a little noise compresses about like a photograph.
    coarse = torch.rand(1, 3, 24, 32)
    smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
    noisy = (smooth + 0.05 * torch.randn(3, 375, 500)).clamp(0, 1)
    image = Image.fromarray((255 * noisy).byte().permute(1, 2, 0).numpy())
    names = [Path(f"{i}.jpg") for i in range(files)]
    for name in names:
        image.save(source / name, quality=90)
    side = stored_side(size)
    return files / seconds(lambda: decode_images(folder / f"cache_{size}", source, names, side, {}))


def write_random_images(file: Path, n: int, side: int, batch: int) -> Tensor:
    """Write n random images to a cache, and return its memory map (n, 3, side, side) uint8."""
    written = np.memmap(file, np.uint8, "w+", shape=(n, 3, side, side))
    for start in range(0, n, batch):
        pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        written[start : start + batch] = pixels.numpy()
    written.flush()
    return map_images(file, n, side)


def measure(size: int, n: int, files: int, rounds: int, batch: int, folder: Path) -> list[str]:
    """Return a row of the table, for views of `size` pixels and n stored images."""
    n = n // batch * batch
    side = stored_side(size)
    on_disk = write_random_images(folder / f"{size}.uint8", n, side, batch)
    in_memory = on_disk.to(DEVICE, copy=True)
    order = EpochSampler(n, batch, 0, lambda: 0, torch.device("cpu"))
    mean = torch.zeros(3, device=DEVICE)
    std = torch.ones(3, device=DEVICE)
    zero = torch.tensor(0, device=DEVICE)
    first = torch.arange(batch, device=DEVICE)

    def take_from_memory() -> None:
        for indices in order:
            in_memory[indices.to(DEVICE)]

    def stream() -> None:
        for _, pixels in PrefetchLoader(order, on_disk, pin=DEVICE.type == "cuda"):
            pixels.to(DEVICE, non_blocking=True)

    def make_views() -> None:
        images = in_memory[first]
        augment(images, first, seed=0, epoch=zero, view=zero, mean=mean, std=std, size=size)

    works = {"memory": take_from_memory, "stream": stream, "views": make_views}
    times = in_turn(works, rounds)
    return [
        f"{size}, stored {side}",
        f"{measure_decoding(size, files, folder):,.0f}",
        f"{n / times['memory']:,.0f}",
        f"{n / times['stream']:,.0f}",
        f"{on_disk.nbytes / times['stream'] / 1e9:.1f}",
        f"{batch / times['views']:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument(
        "--megabytes", type=int, default=800, help="megabytes of stored images for each size"
    )
    parser.add_argument("--files", type=int, default=400, help="number of JPEG files to decode")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            bytes_per_image = 3 * stored_side(size) ** 2
            n = max(args.batch_size, args.megabytes * 10**6 // bytes_per_image)
            rows.append(measure(size, n, args.files, args.rounds, args.batch_size, Path(folder)))
    head = ("view, pixels", "decoded/s", "from memory/s", "streamed/s", "GB/s", "views made/s")
    table(f"Images a second, medians of {args.rounds} rounds in turn", head, rows)


if __name__ == "__main__":
    main()
