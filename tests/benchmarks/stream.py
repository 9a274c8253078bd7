"""Images a second: decoded from files, held in memory, and read from the cache while something else computes.

`python tests/benchmarks/stream.py`. Decoding is that of JPEG files of 500 x 375 pixels, as ImageNet's mostly are, to
the side that is stored for views of the given size. Batches of 256 in random order are then taken as training takes
them: gathered from a tensor, or read from the memory map by `PrefetchLoader`. The last column is views made here, which
must not wait. The file has just been written, so most of it comes from the machine's memory, not from its disk.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import DEVICE, in_turn, seconds, table

from simsiam.augment import augment
from simsiam.data.dataset import stored_side
from simsiam.data.image_cache import decode_images, map_images
from simsiam.data.sampler import EpochSampler, PrefetchLoader


def decoding(size: int, files: int, folder: Path) -> float:
    """Images a second from JPEG files into a cache."""
    source = folder / f"jpeg_{size}"
    source.mkdir()
    smooth = torch.rand(1, 3, 24, 32)
    picture = torch.nn.functional.interpolate(smooth, (375, 500), mode="bicubic").clamp(0, 1)[0]
    noisy = (255 * (picture + 0.05 * torch.randn(3, 375, 500)).clamp(0, 1)).byte().permute(1, 2, 0)
    names = [Path(f"{i}.jpg") for i in range(files)]
    for name in names:
        Image.fromarray(noisy.numpy()).save(source / name, quality=90)
    side = stored_side(size)
    return files / seconds(lambda: decode_images(folder / f"cache_{size}", source, names, side, {}))


def measure(size: int, n: int, files: int, rounds: int, batch: int, folder: Path) -> list[str]:
    """A row of the table."""
    side, file, n = stored_side(size), folder / f"{size}.uint8", n // batch * batch
    written = np.memmap(file, np.uint8, "w+", shape=(n, 3, side, side))
    for start in range(0, n, batch):
        written[start : start + batch] = torch.randint(
            0, 256, (batch, 3, side, side), dtype=torch.uint8
        ).numpy()
    written.flush()
    disk, order = (
        map_images(file, n, side),
        EpochSampler(n, batch, 0, lambda: 0, torch.device("cpu")),
    )
    resident = disk.to(DEVICE, copy=True)
    mean, std, zero = (
        torch.zeros(3, device=DEVICE),
        torch.ones(3, device=DEVICE),
        torch.tensor(0, device=DEVICE),
    )

    def held() -> None:
        for indices in order:
            resident[indices.to(DEVICE)]

    def streamed() -> None:
        for _, pixels in PrefetchLoader(order, disk, pin=DEVICE.type == "cuda"):
            pixels.to(DEVICE, non_blocking=True)

    def views() -> None:
        few = torch.arange(batch, device=DEVICE)
        augment(resident[few], few, seed=0, epoch=zero, view=zero, mean=mean, std=std, size=size)

    took = in_turn({"held": held, "streamed": streamed, "views": views}, rounds)
    rates = [decoding(size, files, folder), len(disk) / took["held"], len(disk) / took["streamed"]]
    gigabytes = disk.nbytes / took["streamed"] / 1e9
    return [
        f"{size}, stored {side}",
        *(f"{x:,.0f}" for x in rates),
        f"{gigabytes:.1f}",
        f"{batch / took['views']:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument(
        "--megabytes", type=int, default=800, help="of stored images, for each size"
    )
    parser.add_argument("--files", type=int, default=400, help="JPEG files to decode")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            n = max(args.batch_size, args.megabytes * 10**6 // (3 * stored_side(size) ** 2))
            rows.append(measure(size, n, args.files, args.rounds, args.batch_size, Path(folder)))
    head = ("view, pixels", "decoded/s", "from memory/s", "streamed/s", "GB/s", "views made/s")
    table(f"Images a second, medians of {args.rounds} rounds in turn", head, rows)


if __name__ == "__main__":
    main()
