"""Why torch cannot use the NVIDIA GPU of this machine, and what helps."""

import errno
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/driver/nvidia")  # of the kernel's module; containers see it too
DEV = Path("/dev")

# NVIDIA's table "minor version compatibility": the first driver for each major version of CUDA.
DRIVER_OF_CUDA = {13: 580, 12: 525}
# The first driver for each of torch's package indices, the newest first. PyTorch's RELEASE.md:
# torch 2.11 has cu126, cu128 and cu130, torch 2.12 to 2.14 have cu126, cu130 and cu132.
INDEX_OF_DRIVER = {580: "cu130", 525: "cu126"}
NEWEST_DRIVER = 580
OLDEST_GPUS_INDEX = "cu126"  # from Maxwell (compute capability 5.0) to Hopper
# Blackwell GPUs need CUDA 12.8. Before driver 580 they take the last torch that is built for it.
BLACKWELL = re.compile(r"RTX 50\d0|Blackwell|\bG?B[123]0?0\b")
BLACKWELL_INDEX = "cu128"
INDEX_URL = "https://download.pytorch.org/whl/"


class Gpu(NamedTuple):
    """The first NVIDIA GPU of this machine, and the version of its driver, such as 580.65.06."""

    name: str
    driver: str

    @property
    def driver_branch(self) -> int:
        """The first number of the driver's version."""
        return int(self.driver.split(".")[0])


class Problem(NamedTuple):
    """Why torch does not use the GPU. If that is `intended`, training on the CPU is right."""

    message: str
    intended: bool


def find_gpu() -> Gpu | None:
    """Return the GPU that the kernel's module knows, or without that module (WSL) nvidia-smi."""
    with suppress(OSError):
        driver = re.search(r"\d{3,}\.\d+(\.\d+)*", (PROC / "version").read_text())
        for file in sorted(PROC.glob("gpus/*/information")):
            model = re.search(r"^Model:\s*(.+?)\s*$", file.read_text(), re.MULTILINE)
            if driver and model:
                return Gpu(model[1], driver[0])
        return None
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
        match = re.match(r"(.+?), *(\d{3,}[\d.]*)", answer)
        return Gpu(match[1], match[2]) if match else None
    return None


def find_problem(torch_version: str, cuda: str | None, torch_message: str) -> Problem | None:
    """Return why torch finds no GPU on this machine; None if it has no NVIDIA GPU.

    Args:
        torch_version: as in `torch.__version__`.
        cuda: the version of CUDA that torch was built for; None if it was built without.
        torch_message: what torch says about it.
    """
    gpu = find_gpu()
    if gpu is None:
        return None
    name = f"{gpu.name} (driver {gpu.driver})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (visible == "" or visible.startswith(("-1", "NoDevFiles"))):
        return Problem(f"{name} is hidden by CUDA_VISIBLE_DEVICES={visible!r}", intended=True)
    refused = _find_refused_device(name)
    if refused is not None:
        return refused
    if cuda is None:
        reason = f"was built without CUDA: {_advise_package(gpu)}"
    elif gpu.driver_branch < DRIVER_OF_CUDA.get(int(cuda.split(".")[0]), 0):
        needed = DRIVER_OF_CUDA[int(cuda.split(".")[0])]
        reason = f"was built for CUDA {cuda}, which needs driver {needed} or newer: "
        reason += _advise_package(gpu)
    else:
        given = f"CUDA_VISIBLE_DEVICES is {visible}; " if visible is not None else ""
        said = " ".join(torch_message.split())[:200] or "it does not say why"
        reason = f"cannot use it ({given}{said})"
    return Problem(f"{name} is here, but torch {torch_version} {reason}", intended=False)


def find_missing_kernels(
    name: str,
    capability: tuple[int, int],
    torch_version: str,
    architectures: list[str],
) -> str | None:
    """Return a message if torch has no code for a GPU because the GPU is too old, else None.

    Args:
        name: of the GPU.
        capability: the GPU's compute capability, such as (7, 0).
        torch_version: as in `torch.__version__`.
        architectures: as `torch.cuda.get_arch_list()` gives them: sm_75, sm_90a, compute_120.
    """
    matches = [re.search(r"_(\d+)", architecture) for architecture in architectures]
    oldest = min((int(match[1]) for match in matches if match), default=0)
    if oldest <= 10 * capability[0] + capability[1]:
        return None
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, but torch {torch_version} "
        f"was built for {oldest / 10} and newer: {_install(OLDEST_GPUS_INDEX)}"
    )


def _install(index: str) -> str:
    packages = f"torch torchvision --index-url {INDEX_URL}{index}"
    return f"{sys.executable} -m pip install --force-reinstall {packages}"


def _advise_package(gpu: Gpu) -> str:
    """Say which package of torch fits the driver, or that the driver must be newer."""
    update = f"update the driver to {NEWEST_DRIVER} or newer"
    indices = [index for first, index in INDEX_OF_DRIVER.items() if first <= gpu.driver_branch]
    if not indices:
        return update
    if gpu.driver_branch >= NEWEST_DRIVER:
        return _install(indices[0])
    if BLACKWELL.search(gpu.name):
        return f"{_install(BLACKWELL_INDEX)}, or {update}"
    return f"{_install(indices[0])}, or {update}"


def _find_refused_device(name: str) -> Problem | None:
    """Return why the GPU's device file cannot be opened; None if it can."""
    if (DEV / "dxg").exists():  # the device of WSL, which has no other
        return None
    devices = sorted(DEV.glob("nvidia[0-9]*"))
    if not devices:
        reason = f"this container or job was started without it: there is no {DEV}/nvidia0"
        return Problem(f"{name} belongs to the machine, but {reason}", intended=True)
    refused: dict[int, Path] = {}  # by the number of the error
    for device in devices:
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            refused[error.errno or 0] = device
        else:
            return None
    if errno.EPERM in refused:  # by a control group, such as that of a SLURM job, not by the file
        reason = f"this container or job may not open {refused[errno.EPERM]}"
        return Problem(f"{name} belongs to the machine, but {reason}", intended=True)
    if errno.EACCES in refused:
        device = refused[errno.EACCES]
        reason = f"you have no permission to open {device}: ask for its group (ls -l {device})"
        return Problem(f"{name} is here, but {reason}", intended=False)
    return None
