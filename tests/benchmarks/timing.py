"""What the benchmarks share: turns taken one after another in one process, and a table of the medians."""

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

from utils.console import console, print_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def processor() -> str:
    """What a table is of: the GPU, or the CPU by its own name."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{os.cpu_count()} cores of {names[0] if names else 'an unknown CPU'}"


@cache
def has(peer: str) -> bool:
    """Whether a package to compare with is installed; if not, it is said, once."""
    try:
        importlib.import_module(peer)
    except ModuleNotFoundError:
        print(f"{peer} is not installed: left out", flush=True)
        return False
    return True


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the device's work included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a call to warm up; a round is one call of each, so that noise hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def bf16_peak() -> float:
    """Floating-point operations a second of a large bf16 matrix product, as measured here and now."""
    size = 8192 if DEVICE.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return (
        2
        * size**3
        * 10
        / min(seconds(lambda: [torch.mm(a, b) for _ in range(10)]) for _ in range(5))
    )


def step_flops(build: Callable[[], nn.Module], batch: int, views: int, size: int) -> float:
    """Floating-point operations of a training step, forward and backward, counted by torch on tensors without content.

    Args:
        build: makes a module with `training_step(views, 0)`, which takes `views` tensors (batch, 3, size, size).
    """
    with torch.device("meta"):
        module = build().train()
        x = [torch.empty(2, 3, size, size) for _ in range(views)]
    with FlopCounterMode(display=False) as counter:
        module.training_step(x, 0)["loss"].backward()  # pyright: ignore[reportCallIssue, reportIndexIssue]
    return counter.get_total_flops() * batch / 2


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a * size ** b, by least squares of the logarithms: 1 is linear."""
    return statistics.linear_regression(
        torch.tensor(sizes).log().tolist(), torch.tensor(costs).log().tolist()
    ).slope


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    console.width = max(console.width, 110)
    print_table(f"{title}\n{processor()}, torch {torch.__version__}", head, rows)
