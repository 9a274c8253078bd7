"""Measure how time and memory grow with images, batch size, width, views and the kNN bank.

Run `python tests/benchmarks/scale.py`. It prints exponents of growth; 1 is linear. Each point is
measured in a process of its own: the seconds of the work, and the highest memory of the process (on
a GPU, of the device) above what it was before. The work is a training step (batch, width, views),
the order of an epoch and the statistics of the images (images), or a kNN search (bank).
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

# Exponents of time. The operations of a convolution grow with the square of the width.
EXPECTED = {"images": 1, "batch": 1, "width": 2, "views": 1, "bank": 1}

MESSAGES = 200  # that are measured
WARMUP_MESSAGES = 20


def training_step(batch: int = 64, width: int = 16, views: int = 2) -> Callable[[], object]:
    model = SimSiam(width=width, out_dim=256, h_dim=64).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, fused=True)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    indices = torch.arange(batch, device=DEVICE)
    mean = torch.full((3,), 0.5, device=DEVICE)

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
    images[0] = 255  # the standard deviation must not be 0

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


def highest_memory() -> float:
    """Return the highest memory so far, in MiB."""
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_here(axis: str, size: int, rounds: int) -> dict[str, float]:
    """Measure one point in this process."""
    before = highest_memory()
    work = WORK[axis](size)
    work()
    median = statistics.median(seconds(work) for _ in range(rounds))
    return {"seconds": median, "MiB": max(1.0, highest_memory() - before)}


def measure(axis: str, size: int, rounds: int) -> dict[str, float]:
    """Measure one point in a new process, because the highest memory cannot be reset."""
    flags = ["--only", axis, "--sizes", str(size), "--rounds", str(rounds)]
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def exchange_messages(rank: int, store: str, times: list[float]) -> None:
    """Exchange the messages of a BN layer with another process, and append their seconds.

    The layer has 512 channels, and the batch has two views.
    """
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = torch.zeros(2, 2, 512)
    gathered = [torch.empty_like(mine) for _ in range(2)]
    for i in range(WARMUP_MESSAGES + MESSAGES):
        begin = time.perf_counter()
        distributed.all_gather(gathered, mine)
        if rank == 0 and i >= WARMUP_MESSAGES:
            times.append(time.perf_counter() - begin)
    distributed.destroy_process_group()


def measure_message() -> float:
    """Return the median seconds of a message between two processes of this machine."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.Manager() as manager:
        times = manager.list()
        multiprocessing.spawn(exchange_messages, (f"{folder}/store", times), nprocs=2)
        return statistics.median(times)


def make_rows(axis: str, sizes: list[int], rounds: int) -> list[list[str]]:
    """Measure the points of an axis. The last row has the exponents."""
    points = [measure(axis, size, rounds) for size in sizes]
    rows = []
    for size, point in zip(sizes, points, strict=True):
        milliseconds = 1000 * point["seconds"]
        rows.append([axis, f"{size:,}", f"{milliseconds:,.0f}", f"{point['MiB']:,.0f}", "", ""])
    time_exponent = exponent(sizes, [point["seconds"] for point in points])
    memory_exponent = exponent(sizes, [point["MiB"] for point in points])
    rows[-1][4] = f"{time_exponent:.2f} (at most {EXPECTED[axis]})"
    rows[-1][5] = f"{memory_exponent:.2f}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument(
        "--points", type=int, default=4, help="number of sizes of each axis, from the smallest"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure_here(args.only, args.sizes[0], args.rounds)))
        return
    rows = []
    for axis in args.axes:
        rows += make_rows(axis, POINTS[axis][: args.points], args.rounds)
    message = f"{1000 * measure_message():,.2f}"
    rows.append(["a message of BN", "2 processes", message, "", "", ""])
    head = ("grows", "to", "ms", "MiB", "exponent of time", "of memory")
    table(f"Growth; medians of {args.rounds}", head, rows)


if __name__ == "__main__":
    main()
