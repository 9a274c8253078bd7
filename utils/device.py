"""The device and the precision to compute with, and what the machine is."""

import os
import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.errors import check

PACKAGES = ("python", "torch", "torchvision", "pytorch-lightning")  # whose versions a run notes


def choose_accelerator(accelerator: str) -> str:
    """Lightning's name, "gpu" or "cpu", for auto, gpu or cpu.

    Raises:
        UserError: there is no GPU.
    """
    gpu = torch.cuda.is_available()
    check(gpu or accelerator != "gpu", "--accelerator gpu: torch finds no GPU here; leave the flag out for the CPU")
    return "gpu" if gpu and accelerator != "cpu" else "cpu"


def choose_device(accelerator: str) -> torch.device:
    """torch's device for auto, gpu or cpu. Raises UserError, as `choose_accelerator`."""
    return torch.device("cuda" if choose_accelerator(accelerator) == "gpu" else "cpu")


def choose_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name for a precision: auto, 32, bf16 or 16.

    Raises:
        UserError: the device does not have it.
    """
    gpu = choose_accelerator(accelerator) == "gpu"
    if precision == "auto":
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    check(precision != "16" or gpu, "--precision 16 needs a GPU: take bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def hardware(accelerator: str) -> dict[str, Any]:
    """The processor and the cores that this process may use; for "gpu" also the GPU's name and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about: dict[str, Any] = {"cpu": _processor(), "cores": cores}
    if accelerator == "gpu":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        about |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
    return about


def _processor() -> str | None:
    """The processor's name; on Linux Python knows only the architecture."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine() or None


def free_memory(device: torch.device) -> int:
    """Bytes that are free: on a GPU, or for this process, given the machine, its control group and its own limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_field("/proc/meminfo", "MemAvailable:")]
    for limit, used in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            free.append(most - _field("/proc/self/status", used))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such group, or "max"
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(free))


def _field(file: str, name: str) -> int:
    """Bytes in a line of a file in /proc; no limit on a system without /proc."""
    try:
        return next(int(line.split()[1]) * 1024 for line in Path(file).read_text().splitlines() if name in line)
    except (OSError, StopIteration):
        return 2**62


def versions() -> dict[str, str]:
    """Versions of PACKAGES."""
    return {name: sys.version.split()[0] if name == "python" else version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """This program's commit, with "-dirty" behind it if files differ; None outside its own git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git would find a checkout that the program merely lies in
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
