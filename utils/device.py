"""Which device and which precision, where "auto" is asked for."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.errors import check


def choose_accelerator(accelerator: str) -> str:
    """Lightning's name, "gpu" or "cpu".

    Raises:
        UserError: a GPU asked for where there is none.
    """
    gpu = torch.cuda.is_available()
    check(gpu or accelerator != "gpu", "--accelerator gpu: torch finds no GPU here; leave the flag out for the CPU")
    return "gpu" if gpu and accelerator != "cpu" else "cpu"


def choose_device(accelerator: str) -> torch.device:
    """torch's device, likewise."""
    return torch.device("cuda" if choose_accelerator(accelerator) == "gpu" else "cpu")


def choose_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name for it.

    Args:
        precision: auto, 32, bf16 or 16.
        accelerator: "gpu" or "cpu", or "auto" for what `choose_accelerator` makes of it.

    Raises:
        UserError: one that the device does not have.
    """
    accelerator = choose_accelerator(accelerator)
    if precision == "auto":
        precision = "bf16" if accelerator == "gpu" and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    check(precision != "16" or accelerator == "gpu", "--precision 16 needs a GPU: take bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def hardware(accelerator: str) -> dict[str, Any]:
    """What computes: the processor, and the cores that are ours; with `accelerator` "gpu" its name and memory."""
    about: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count()}
    if hasattr(os, "sched_getaffinity"):
        about["cores"] = len(os.sched_getaffinity(0))
    if accelerator == "gpu":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        about |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
    return about


def _processor() -> str | None:
    """The processor's name; Linux tells more of it than Python knows."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def free_memory(device: torch.device) -> int:
    """Bytes that are left: on a GPU, or to this process, by the machine, its control group and its own limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = [_field("/proc/meminfo", "MemAvailable:")]
    for limit, now in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            left.append(most - _field("/proc/self/status", now))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such group, or "max"
        left.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(left))


def _field(file: str, name: str) -> int:
    """Bytes that /proc says; no limit where there is no /proc."""
    try:
        return next(int(line.split()[1]) * 1024 for line in Path(file).read_text().splitlines() if name in line)
    except (OSError, StopIteration):
        return 2**62


def bf16_peak(device: torch.device) -> float:
    """Floating-point operations a second of a large bf16 matrix product, as measured here and now."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        begun = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        _wait(device)
        best = min(best, (time.perf_counter() - begun) / 10)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


PACKAGES = ("torch", "torchvision", "pytorch-lightning")


def versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """The commit of this program, with "-dirty" behind it where the files differ; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # a folder inside somebody else's checkout is not that checkout
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
