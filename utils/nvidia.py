"""Find out why torch cannot use the NVIDIA GPU of this machine, and what the user can do."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/driver/nvidia")  # files of NVIDIA's kernel module, also visible in containers
DEV = Path("/dev")
NVIDIA_SMI_TIMEOUT = 20  # seconds

# The oldest driver branch for each major version of CUDA, from NVIDIA's table "minor version
# compatibility".
DRIVER_OF_CUDA = {13: 580, 12: 525}
# PyTorch's package index, by the oldest driver branch that it works with. The newest branch comes
# first. PyTorch's RELEASE.md lists the indices: torch 2.11 has cu126, cu128 and cu130; torch 2.12
# to 2.14 have cu126, cu130 and cu132.
INDEX_OF_DRIVER = {580: "cu130", 525: "cu126"}
NEWEST_DRIVER = 580  # with this branch or a newer one, every torch works
OLDEST_GPUS_INDEX = "cu126"  # supports Maxwell (compute capability 5.0) to Hopper
# Blackwell GPUs need CUDA 12.8 or newer. With a driver before 580, only the index cu128 is left,
# whose last torch is 2.11. The pattern matches names with "RTX 5090" (5080, ...), "RTX PRO 6000
# Blackwell", "B100", "B200", "B300", "GB10", "GB200" or "GB300".
BLACKWELL = re.compile(r"RTX 50\d0|Blackwell|\bG?B[123]0?0\b")
BLACKWELL_INDEX = "cu128"
INDEX_URL = "https://download.pytorch.org/whl/"

# Values of CUDA_VISIBLE_DEVICES that hide all GPUs begin with one of these.
HIDES_ALL_GPUS = ("-1", "NoDevFiles")
MAX_TORCH_MESSAGE = 200  # characters of torch's own message in ours


class Gpu(NamedTuple):
    """The first NVIDIA GPU of this machine.

    Attributes:
        name: its model, such as "NVIDIA H200".
        driver: the version of its driver, such as "580.65.06".
    """

    name: str
    driver: str

    @property
    def driver_branch(self) -> int:
        """The first number of the driver's version, such as 580."""
        return int(self.driver.split(".")[0])


class Problem(NamedTuple):
    """A reason why torch does not use the GPU.

    Attributes:
        message: the reason, and what the user can do.
        intended: whether somebody chose that this process gets no GPU, for example by the settings
            of a container. Then "auto" may use the CPU.
    """

    message: str
    intended: bool


def find_gpu() -> Gpu | None:
    """Return the first NVIDIA GPU of this machine, also if torch cannot use it.

    The files of NVIDIA's kernel module name the GPU. If they are missing, as in WSL, nvidia-smi is
    asked.
    """
    try:
        return _read_kernel_module()
    except OSError:
        return _ask_nvidia_smi()


def _read_kernel_module() -> Gpu | None:
    """Return the GPU that the files of the kernel module name. Without files, raise OSError."""
    driver = re.search(r"\d{3,}\.\d+(\.\d+)*", (PROC / "version").read_text())
    for file in sorted(PROC.glob("gpus/*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", file.read_text(), re.MULTILINE)
        if driver is not None and model is not None:
            return Gpu(name=model[1], driver=driver[0])
    return None


def _ask_nvidia_smi() -> Gpu | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # "NVIDIA GeForce RTX 3090, 566.36"
    match = re.match(r"(.+?), *(\d{3,}[\d.]*)", result.stdout)
    if match is None:
        return None
    return Gpu(name=match[1], driver=match[2])


def find_problem(torch_version: str, cuda: str | None, torch_message: str) -> Problem | None:
    """Return why torch finds no GPU on this machine; None if the machine has no NVIDIA GPU.

    Args:
        torch_version: as in `torch.__version__`.
        cuda: the version of CUDA that torch was built for; None if it was built without CUDA.
        torch_message: the warning in which torch gives the reason; may be empty.
    """
    gpu = find_gpu()
    if gpu is None:
        return None
    name = f"{gpu.name} (driver {gpu.driver})"

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (visible == "" or visible.startswith(HIDES_ALL_GPUS)):
        return Problem(f"{name} is hidden by CUDA_VISIBLE_DEVICES={visible!r}", intended=True)

    problem_with_file = _find_problem_with_device_file(name)
    if problem_with_file is not None:
        return problem_with_file

    torch_name = f"torch {torch_version}"
    if cuda is None:
        reason = f"{torch_name} was built without CUDA: {_advise_package(gpu)}"
        return Problem(f"{name} is here, but {reason}", intended=False)

    cuda_major = int(cuda.split(".")[0])
    needed_driver = DRIVER_OF_CUDA.get(cuda_major, 0)
    if gpu.driver_branch < needed_driver:
        reason = (
            f"{torch_name} was built for CUDA {cuda}, which needs driver {needed_driver} or newer"
        )
        return Problem(f"{name} is here, but {reason}: {_advise_package(gpu)}", intended=False)

    details = " ".join(torch_message.split())[:MAX_TORCH_MESSAGE] or "it does not say why"
    if visible is not None:
        details = f"CUDA_VISIBLE_DEVICES is {visible}; {details}"
    return Problem(f"{name} is here, but {torch_name} cannot use it ({details})", intended=False)


def explain_missing_kernels(
    name: str,
    capability: tuple[int, int],
    torch_version: str,
    architectures: list[str],
) -> str | None:
    """Return a message if a GPU is older than all GPUs for which torch was built, else None.

    Args:
        name: the GPU's name.
        capability: the GPU's compute capability, such as (7, 0).
        torch_version: as in `torch.__version__`.
        architectures: what torch was built for, from `torch.cuda.get_arch_list()`: "sm_75",
            "sm_90a", "compute_120" and others.
    """
    supported: list[int] = []  # ten times the compute capability
    for architecture in architectures:
        match = re.search(r"_(\d+)", architecture)
        if match is not None:
            supported.append(int(match[1]))
    oldest = min(supported, default=0)
    major, minor = capability
    if oldest <= 10 * major + minor:
        return None
    return (
        f"{name} has compute capability {major}.{minor}, but torch {torch_version} "
        f"was built for {oldest / 10} and newer: {_install_command(OLDEST_GPUS_INDEX)}"
    )


def _install_command(index: str) -> str:
    packages = f"torch torchvision --index-url {INDEX_URL}{index}"
    return f"{sys.executable} -m pip install --force-reinstall {packages}"


def _advise_package(gpu: Gpu) -> str:
    """Return the command that installs a fitting torch, or the advice to update the driver."""
    update = f"update the driver to {NEWEST_DRIVER} or newer"
    usable = [index for branch, index in INDEX_OF_DRIVER.items() if branch <= gpu.driver_branch]
    if not usable:  # the driver is too old for every torch
        return update
    newest_index = usable[0]
    if gpu.driver_branch >= NEWEST_DRIVER:
        return _install_command(newest_index)
    if BLACKWELL.search(gpu.name):
        return f"{_install_command(BLACKWELL_INDEX)}, or {update}"
    return f"{_install_command(newest_index)}, or {update}"


def _find_problem_with_device_file(name: str) -> Problem | None:
    """Return why no device file of a GPU can be opened.

    The result is None if one can be opened, and if the reason is not known: on WSL, which has no
    such files, and after an error other than a refusal.

    Args:
        name: the GPU's name, for the message.
    """
    if (DEV / "dxg").exists():  # WSL has this file in place of nvidia0
        return None
    devices = sorted(DEV.glob("nvidia[0-9]*"))
    if not devices:
        reason = f"this container or job was started without it: there is no {DEV}/nvidia0"
        return Problem(f"{name} belongs to the machine, but {reason}", intended=True)

    refused: dict[int, Path] = {}  # device by number of the error
    for device in devices:
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            refused[error.errno or 0] = device
        else:
            return None

    # If a control group (such as that of a SLURM job) refuses the file, the error is EPERM. If the
    # permissions of the file refuse, it is EACCES.
    if errno.EPERM in refused:
        reason = f"this container or job may not open {refused[errno.EPERM]}"
        return Problem(f"{name} belongs to the machine, but {reason}", intended=True)
    if errno.EACCES in refused:
        device = refused[errno.EACCES]
        advice = f"ask to be added to its group (ls -l {device})"
        reason = f"you have no permission to open {device}: {advice}"
        return Problem(f"{name} is here, but {reason}", intended=False)
    return None
