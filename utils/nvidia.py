"""Why torch cannot use the NVIDIA GPU of this machine, and what helps. Asked only where torch finds no GPU."""

import errno
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/driver/nvidia")  # the kernel module's; a container sees it too
DEV = Path("/dev")

# The first driver for each major version of CUDA, and torch's package index for it. Sources: NVIDIA's table "minor
# version compatibility", PyTorch's RELEASE.md (torch 2.12 to 2.14 have cu126, cu130 and cu132; 2.11 also has cu128).
INDEX_OF_DRIVER = {580: "cu130", 525: "cu126"}
DRIVER_OF_CUDA = {13: 580, 12: 525}
# GPUs that need CUDA 12.8: drivers before 580 take the last torch that has it, 2.11.
BLACKWELL = re.compile(r"RTX 50\d0|Blackwell|\bG?B[123]0?0\b")
BLACKWELL_INDEX = "cu128"
INDEX_URL = "https://download.pytorch.org/whl/"


class Gpu(NamedTuple):
    """The first NVIDIA GPU of this machine, and the version of its driver."""

    name: str
    driver: str

    @property
    def major(self) -> int:
        """The driver's first number, as in 580.65.06."""
        return int(self.driver.split(".")[0])


class Problem(NamedTuple):
    """Why torch does not use a GPU. With `intended`, someone has chosen that, and the CPU is right."""

    message: str
    intended: bool


def find_gpu() -> Gpu | None:
    """Return the GPU that the kernel's module knows; where there is none (as in WSL), that of nvidia-smi."""
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


def find_problem(torch_version: str, torch_cuda: str | None, torch_message: str) -> Problem | None:
    """Return why torch does not use the GPU of this machine; None if there is no NVIDIA GPU.

    Args:
        torch_version: as in `torch.__version__`.
        torch_cuda: the version of CUDA that torch was built for; None if for none.
        torch_message: what torch says about it.
    """
    gpu = find_gpu()
    if gpu is None:
        return None
    found = f"{gpu.name} (driver {gpu.driver})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (visible == "" or visible.startswith(("-1", "NoDevFiles"))):
        return Problem(f"{found} is hidden by CUDA_VISIBLE_DEVICES={visible!r}", intended=True)
    if closed := _find_closed_device(found):
        return closed
    if torch_cuda is None:
        build = f"torch {torch_version} was built without CUDA"
        return Problem(f"{found} is here, but {build}: {_advise_package(gpu)}", intended=False)
    needed = DRIVER_OF_CUDA.get(int(torch_cuda.split(".")[0]))
    if needed is not None and gpu.major < needed:
        build = f"torch {torch_version} was built for CUDA {torch_cuda}, which needs driver {needed} or newer"
        return Problem(f"{found} is here, but {build}: {_advise_package(gpu)}", intended=False)
    given = f"CUDA_VISIBLE_DEVICES is {visible}; " if visible is not None else ""
    reason = " ".join(torch_message.split())[:200] or "it does not say why"
    return Problem(f"{found} is here, but torch {torch_version} cannot use it ({given}{reason})", intended=False)


def find_missing_kernels(name: str, capability: tuple[int, int], torch_version: str, archs: list[str]) -> str | None:
    """Return a message if torch has no code for a GPU since that is too old, else None.

    Args:
        name: of the GPU.
        capability: its compute capability, as (7, 0).
        torch_version: as in `torch.__version__`.
        archs: as `torch.cuda.get_arch_list()` gives them: sm_75, sm_90a, compute_120.
    """
    numbers = [int(match[1]) for arch in archs if (match := re.search(r"_(\d+)", arch))]
    if not numbers or min(numbers) <= 10 * capability[0] + capability[1]:
        return None
    built = f"torch {torch_version} was built for {min(numbers) / 10} and newer"
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, but {built}: {_install(INDEX_OF_DRIVER[525])}"
    )


def _install(index: str) -> str:
    return f"{sys.executable} -m pip install --force-reinstall torch torchvision --index-url {INDEX_URL}{index}"


def _advise_package(gpu: Gpu) -> str:
    """Say which packages of torch fit the driver, or that the driver must be newer."""
    newest = max(INDEX_OF_DRIVER)
    index = next((INDEX_OF_DRIVER[first] for first in sorted(INDEX_OF_DRIVER, reverse=True) if gpu.major >= first), "")
    if index and gpu.major < newest and BLACKWELL.search(gpu.name):
        index = BLACKWELL_INDEX
    if not index:
        return f"update the driver to {newest} or newer"
    update = f", or update the driver to {newest} or newer" if gpu.major < newest else ""
    return f"{_install(index)}{update}"


def _find_closed_device(found: str) -> Problem | None:
    """Return why the GPU's device files cannot be opened; None if they can."""
    if (DEV / "dxg").exists():  # WSL has this one instead
        return None
    devices = sorted(DEV.glob("nvidia[0-9]*"))
    if not devices:
        why = f"this container or job was started without it: there is no {DEV}/nvidia0"
        return Problem(f"{found} belongs to the machine, but {why}", intended=True)
    refusals: dict[int, Path] = {}
    for device in devices:
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            refusals[error.errno or 0] = device
        else:
            return None
    if errno.EPERM in refusals:  # not the file's permissions: a control group, such as that of a SLURM job
        why = f"this container or job may not open {refusals[errno.EPERM]}"
        return Problem(f"{found} belongs to the machine, but {why}", intended=True)
    if errno.EACCES in refusals:
        device = refusals[errno.EACCES]
        how = f"ask for the group of that file (ls -l {device})"
        return Problem(f"{found} is here, but you have no permission to open {device}: {how}", intended=False)
    return None
