"""How time and memory grow with images, batch, width, views and the kNN bank: the exponents, 1 being linear.

`python tests/benchmarks/scale.py`. Each figure is of a process of its own: seconds of the work itself, and the highest
memory of the process, or on a GPU of the device, over what it was before. The work is a training step (batch, width,
views), what a run does with all its images besides (order of an epoch, statistics), or a kNN search (bank).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import DEVICE, exponent, seconds, table
from torch import distributed, multiprocessing
from torch.nn.functional import normalize

from simsiam import SimSiam
from simsiam.augment import augment
from simsiam.data.dataset import channel_statistics
from utils.knn import knn_predict
from utils.philox import permutation

GPU = DEVICE.type == "cuda"
POINTS: dict[str, list[int]] = {
    "images": [50_000, 100_000, 200_000, 400_000],
    "batch": [128, 256, 512, 1024] if GPU else [32, 64, 128, 256],
    "width": [16, 32, 64, 128] if GPU else [8, 16, 32, 64],
    "views": [2, 4, 8],
    "bank": [25_000, 50_000, 100_000, 200_000],
}
QUERIES = 10_000 if GPU else 1_000
EXPECTED = {
    "images": 1,
    "batch": 1,
    "width": 2,
    "views": 1,
    "bank": 1,
}  # of time: a convolution grows with the square


def training_step(batch: int = 64, width: int = 16, views: int = 2) -> Callable[[], object]:
    model = SimSiam(width=width, out_dim=256, h_dim=64).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, fused=True)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    indices, mean = torch.arange(batch, device=DEVICE), torch.full((3,), 0.5, device=DEVICE)

    def work() -> None:
        x = [
            augment(images, indices, seed=0, epoch=0, view=view, mean=mean, std=mean)
            for view in range(views)
        ]
        loss = model.training_step(x, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return work


def all_images(n: int) -> Callable[[], object]:
    images = torch.zeros(n, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    images[0] = 255

    def work() -> None:
        permutation(n, 0, seed=0, device=DEVICE)
        channel_statistics(images)

    return work


def search(bank: int) -> Callable[[], object]:
    features = normalize(torch.randn(bank, 512, device=DEVICE), dim=1)
    labels = torch.randint(10, (bank,), device=DEVICE)
    return lambda: knn_predict(features[:QUERIES], features, labels, 10)


WORK: dict[str, Callable[[int], Callable[[], object]]] = {
    "images": all_images,
    "batch": lambda n: training_step(batch=n),
    "width": lambda n: training_step(width=n),
    "views": lambda n: training_step(views=n),
    "bank": search,
}


def memory() -> float:
    """MiB, the highest so far."""
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if GPU
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def one(what: str, n: int, rounds: int) -> dict[str, float]:
    """One point, in this process."""
    before = memory()
    work = WORK[what](n)
    work()
    return {
        "seconds": statistics.median(seconds(work) for _ in range(rounds)),
        "MiB": max(1.0, memory() - before),
    }


def point(what: str, n: int, rounds: int) -> dict[str, float]:
    """One point, in a process of its own."""
    command = [sys.executable, __file__, "--only", what, "--sizes", str(n), "--rounds", str(rounds)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def message(rank: int, store: str, times: list[float]) -> None:
    """Seconds of one message of a BN layer of 512 channels and two views, between two processes of this machine."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = torch.zeros(2, 2, 512)
    theirs = [torch.empty_like(mine) for _ in range(2)]
    for i in range(220):
        begun = time.perf_counter()
        distributed.all_gather(theirs, mine)
        if rank == 0 and i >= 20:
            times.append(time.perf_counter() - begun)
    distributed.destroy_process_group()


def messages() -> float:
    """The median of 200, in microseconds."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.Manager() as manager:
        times = manager.list()
        multiprocessing.spawn(message, (f"{folder}/store", times), nprocs=2)
        return 1e6 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--points", type=int, default=4, help="sizes of each, from the smallest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(one(args.only, args.sizes[0], args.rounds)))
        return
    rows: list[list[Any]] = []
    for what in args.axes:
        sizes = POINTS[what][: args.points]
        figures = [point(what, n, args.rounds) for n in sizes]
        for n, figure in zip(sizes, figures, strict=True):
            rows.append(
                [
                    what,
                    f"{n:,}",
                    f"{1000 * figure['seconds']:,.0f}",
                    f"{figure['MiB']:,.0f}",
                    "",
                    "",
                ]
            )
        powers = [
            exponent(sizes, [figure[unit] for figure in figures]) for unit in ("seconds", "MiB")
        ]
        rows[-1][4:] = [f"{powers[0]:.2f} (at most {EXPECTED[what]})", f"{powers[1]:.2f}"]
    rows.append(["a message of BN", "2 processes", f"{messages() / 1000:,.2f}", "", "", ""])
    table(
        f"Growth; medians of {args.rounds}",
        ("grows", "to", "ms", "MiB", "exponent of time", "of memory"),
        rows,
    )


if __name__ == "__main__":
    main()
