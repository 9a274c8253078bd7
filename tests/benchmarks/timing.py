"""Functions that the benchmarks share: measuring candidates in turn, and printing a table."""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.console import print_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def processor() -> str:
    """Return the name of the GPU, or of the CPU and its number of cores."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    name = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if "model name" in line:
            name = line.split(":")[1].strip()
            break
    return f"{os.cpu_count()} cores of {name}"


@cache
def is_installed(peer: str) -> bool:
    """Return whether a package to compare with is installed. If not, print that once."""
    try:
        importlib.import_module(peer)
    except ModuleNotFoundError:
        print(f"{peer} is not installed: left out", flush=True)
        return False
    return True


def now() -> float:
    """Return a time in seconds, after the device has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, including the work of the device."""
    begin = now()
    work()
    return now() - begin


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each function, after one call to warm up.

    A round calls each function once, so that noise on the machine affects all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def bf16_peak() -> float:
    """Measure the floating-point operations per second of a large bf16 matrix product."""
    size = 8192 if DEVICE.type == "cuda" else 256
    products = 10
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    shortest = min(seconds(multiply) for _ in range(5))
    return 2 * size**3 * products / shortest


def step_flops(build: Callable[[], nn.Module], batch: int, views: int, size: int) -> float:
    """Return the floating-point operations of a training step, forward and backward.

    torch counts them on tensors without content.

    Args:
        build: makes a module with `training_step(x, 0)`, where x is a list of views.
        batch: images in the step.
        views: views of each image.
        size: side of a view in pixels.
    """
    counted_images = 2  # the least that BN accepts; operations are proportional to the images
    with torch.device("meta"):
        module = build().train()
        x = [torch.empty(counted_images, 3, size, size) for _ in range(views)]
    with FlopCounterMode(display=False) as counter:
        module.training_step(x, 0)["loss"].backward()  # pyright: ignore[reportCallIssue, reportIndexIssue]
    return counter.get_total_flops() * batch / counted_images


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return b of cost = a * size ** b, by least squares of the logarithms. Linear growth is 1."""
    log_sizes = torch.tensor(sizes).log().tolist()
    log_costs = torch.tensor(costs).log().tolist()
    return statistics.linear_regression(log_sizes, log_costs).slope


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, with the processor and torch's version in its title."""
    print_table(f"{title}\n{processor()}, torch {torch.__version__}", head, rows)
