"""Choose the device and the precision to compute with, and describe the machine."""

import os
import platform
import re
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, require
from utils.nvidia import explain_missing_kernels, find_problem
from utils.run_dir import RECORDED_PACKAGES

# Lightning's name of each value of --precision.
LIGHTNING_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# What --precision auto can choose.
AUTO_PRECISIONS = (LIGHTNING_PRECISIONS["32"], LIGHTNING_PRECISIONS["bf16"])

USE_CPU = "Or pass --accelerator cpu to compute without the GPU."
GIT_TIMEOUT = 10  # seconds


def choose_accelerator(accelerator: str) -> str:
    """Return Lightning's name of the accelerator to compute on.

    Args:
        accelerator: "auto", "gpu" or "cpu". "auto" is the GPU if there is one.

    Returns:
        "gpu" or "cpu".

    Raises:
        UserError: for "gpu", if torch finds no GPU; for "auto" and "gpu", if there is a GPU that
            torch cannot use. "auto" does not raise if somebody hid the GPU on purpose.
    """
    if accelerator == "cpu":
        return "cpu"
    available, torch_message = _ask_torch_for_gpu()
    if available:
        _require_kernels()
        return "gpu"
    problem = find_problem(torch.__version__, torch.version.cuda, torch_message)
    # "auto" uses the CPU without an error if somebody hid the GPU on purpose.
    if problem is not None and (accelerator == "gpu" or not problem.intended):
        raise UserError(f"{problem.message}. {USE_CPU}")
    no_gpu = "--accelerator gpu: torch finds no GPU here. Leave the flag out to use the CPU."
    require(accelerator != "gpu", no_gpu)
    return "cpu"


def hidden_gpu_reason(accelerator: str) -> str | None:
    """Return why "auto" chooses the CPU although the machine has a GPU.

    Args:
        accelerator: "auto", "gpu" or "cpu".

    Returns:
        None if the accelerator is not "auto", if torch can use the GPU, or if there is no GPU.
    """
    if accelerator != "auto" or torch.cuda.is_available():
        return None
    problem = find_problem(torch.__version__, torch.version.cuda, "")
    return None if problem is None else problem.message


def _ask_torch_for_gpu() -> tuple[bool, str]:
    """Return whether torch can use a GPU, and the warning in which torch says why it cannot."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    # torch adds the line of its C++ code: "... (Triggered internally at ...)".
    messages = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
    return available, " ".join(messages)


def _require_kernels() -> None:
    """Raise UserError if torch was built without code for this machine's GPU."""
    if torch.version.cuda is None:  # not an NVIDIA GPU
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old GPU, less clearly than we do
        capability = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
    architectures = torch.cuda.get_arch_list()
    problem = explain_missing_kernels(name, capability, torch.__version__, architectures)
    require(problem is None, f"{problem}. {USE_CPU}")


def choose_device(accelerator: str) -> torch.device:
    """Return torch's device for "auto", "gpu" or "cpu".

    Raises:
        UserError: as `choose_accelerator`.
    """
    return torch.device("cuda" if choose_accelerator(accelerator) == "gpu" else "cpu")


def choose_precision(precision: str, accelerator: str) -> Any:
    """Return Lightning's name of the precision to compute in.

    Args:
        precision: "auto", "32", "bf16" or "16". "auto" is bf16 on a device that has instructions
            for it, and 32 elsewhere.
        accelerator: "auto", "gpu" or "cpu".

    Returns:
        A value of LIGHTNING_PRECISIONS. It is a `str`; the annotation is `Any` because Lightning
        expects a literal type.

    Raises:
        UserError: for "16" without a GPU, and as `choose_accelerator`.
    """
    uses_gpu = choose_accelerator(accelerator) == "gpu"
    if precision == "auto":
        if uses_gpu:
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_bf16 = _cpu_has_bf16()
        precision = "bf16" if has_bf16 else "32"
    require(precision != "16" or uses_gpu, "--precision 16 needs a GPU. Pass bf16 or 32 instead.")
    return LIGHTNING_PRECISIONS[precision]


def _cpu_has_bf16() -> bool:
    """Return whether the processor has instructions for bf16; without them fp32 is faster."""
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", _read("/proc/cpuinfo")) is not None


def describe_hardware(accelerator: str) -> dict[str, Any]:
    """Return the name of the processor and the number of cores that this process may use.

    With the accelerator "gpu", the result also has the name and the memory of the GPU.
    """
    cpu = platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if model is not None:  # on Linux, where `platform` often says no more than "x86_64"
        cpu = model[1]

    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))

    description: dict[str, Any] = {"cpu": cpu, "cores": cores}
    if accelerator == "gpu":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        description["gpu"] = gpu.name
        description["gpu_memory_gib"] = round(gpu.total_memory / 2**30, 1)
    return description


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes.

    For the CPU, this is the smaller of two numbers: the free memory of the machine, and the memory
    that this process's control group (such as that of a container) may still use. If the system
    reports neither, it is 2**62.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free

    limits: list[int] = []
    available = re.search(r"MemAvailable:\s+(\d+)", _read("/proc/meminfo"))
    if available is not None:
        limits.append(int(available[1]) * 1024)  # the file has KiB
    group_limit = _read("/sys/fs/cgroup/memory.max").strip()
    group_usage = _read("/sys/fs/cgroup/memory.current").strip()
    if group_limit.isdigit() and group_usage.isdigit():  # a group without limit has "max"
        limits.append(int(group_limit) - int(group_usage))
    return max(0, min(limits, default=2**62))


def _read(file: str) -> str:
    """Return the text of one of Linux's files about the system; empty if there is no such file."""
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def package_versions() -> dict[str, str]:
    """Return the installed version of each of RECORDED_PACKAGES."""
    installed: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        installed[name] = platform.python_version() if name == "python" else version(name)
    return installed


def git_commit() -> str | None:
    """Return this program's commit, with "-dirty" at the end if tracked files have changed.

    Outside of the program's own git checkout the result is None.
    """
    root = Path(__file__).resolve().parent.parent
    # Somebody may have copied this program into another repository. Without this check, git would
    # describe that repository.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command.append("--exclude=*")  # no tags: the commit alone
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
