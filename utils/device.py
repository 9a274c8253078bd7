"""The device and the precision to compute with, and what the machine is."""

import os
import platform
import re
import subprocess
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, require
from utils.nvidia import find_missing_kernels, find_problem
from utils.run_dir import PACKAGES

AUTO_PRECISIONS = ("32-true", "bf16-mixed")  # what "auto" comes to


def choose_accelerator(accelerator: str) -> str:
    """Return Lightning's name, "gpu" or "cpu", for auto, gpu or cpu.

    Raises:
        UserError: for gpu if torch finds none; for auto if there is a GPU that torch cannot use.
    """
    if accelerator == "cpu":
        return "cpu"
    problem = None
    available, message = _ask_torch_for_gpu()
    if not available:
        problem = find_problem(torch.__version__, torch.version.cuda, message)
    if problem is not None and (accelerator == "gpu" or not problem.intended):
        raise UserError(f"{problem.message}. Or go on without it: --accelerator cpu")
    missing = "--accelerator gpu: torch finds no GPU here; leave the flag out for the CPU"
    require(available or accelerator != "gpu", missing)
    if available and torch.version.cuda is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own words on a GPU that is too old
            capability = torch.cuda.get_device_capability()
            name = torch.cuda.get_device_name()
        built_for = torch.cuda.get_arch_list()
        too_old = find_missing_kernels(name, capability, torch.__version__, built_for)
        require(too_old is None, f"{too_old}. Or go on without it: --accelerator cpu")
    return "gpu" if available else "cpu"


def hidden_gpu(accelerator: str) -> str | None:
    """Return why "auto" takes the CPU though the machine has a GPU; None if it has none."""
    if accelerator != "auto" or torch.cuda.is_available():
        return None
    problem = find_problem(torch.__version__, torch.version.cuda, "")
    return problem.message if problem is not None else None


def _ask_torch_for_gpu() -> tuple[bool, str]:
    """Whether torch can use a GPU; if not, the warning in which it says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    messages = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
    return available, " ".join(messages)


def choose_device(accelerator: str) -> torch.device:
    """torch's device for auto, gpu or cpu. Raises UserError, as `choose_accelerator`."""
    return torch.device("cuda" if choose_accelerator(accelerator) == "gpu" else "cpu")


def choose_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name for a precision: auto, 32, bf16 or 16. Raises UserError if the device does not have it."""
    gpu = choose_accelerator(accelerator) == "gpu"
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_has_bf16()
        precision = "bf16" if native else "32"
    require(precision != "16" or gpu, "--precision 16 needs a GPU: take bf16 or 32")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; where it does not, bf16 is slower than fp32."""
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", _read("/proc/cpuinfo")))


def hardware(accelerator: str) -> dict[str, Any]:
    """The processor and the cores that this process may use; for "gpu" also the GPU's name and memory."""
    names = re.findall(
        r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE
    )  # platform knows few names
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about: dict[str, Any] = {
        "cpu": [*names, platform.processor() or platform.machine()][0],
        "cores": cores,
    }
    if accelerator == "gpu":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        about |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
    return about


def free_memory(device: torch.device) -> int:
    """Bytes that are free: on a GPU, or on the machine and within this process's control group (a container's)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s+(\d+)", _read("/proc/meminfo"))]
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():  # without a limit: "max"
        free.append(int(limit) - int(used))
    return max(0, min(free, default=2**62))


def _read(file: str) -> str:
    """The text of a file of the kernel; empty on a system without it."""
    with suppress(OSError):
        return Path(file).read_text()
    return ""


def versions() -> dict[str, str]:
    """Versions of PACKAGES."""
    return {
        name: platform.python_version() if name == "python" else version(name) for name in PACKAGES
    }


def git_commit() -> str | None:
    """This program's commit, with "-dirty" behind it if files differ; None outside its own git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git would find a checkout that the program merely lies in
        return None
    describe = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    with suppress(OSError, subprocess.TimeoutExpired):
        return (
            subprocess.run(describe, capture_output=True, text=True, timeout=10).stdout.strip()
            or None
        )
