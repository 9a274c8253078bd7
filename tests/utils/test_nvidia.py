"""utils/nvidia.py: the message about a GPU that torch cannot use names it and says what helps."""

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch

from tests.helpers import SMALL, Program
from utils import nvidia

VERSION = "NVRM version: NVIDIA UNIX {}x86_64 Kernel Module  {}  Sat Aug 23 15:11:57 UTC 2025\n"
TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)."
BUILT_FOR = ["sm_75", "sm_80", "sm_90a", "compute_120"]
AUTO = [*SMALL, "--accelerator", "auto", "--epochs", "1", "--dry-run"]


def warn_and_find_none() -> bool:
    warnings.warn(TOO_OLD, stacklevel=1)
    return False


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes this a machine with a GPU that torch does not find."""

    def make(
        driver: str = "535.104.05",
        name: str = "NVIDIA A100-SXM4-40GB",
        cuda: str | None = "13.0",
    ) -> Path:
        gpu = tmp_path / "proc" / "gpus" / "0000:3b:00.0"
        gpu.mkdir(parents=True)
        (tmp_path / "dev").mkdir()
        (tmp_path / "proc" / "version").write_text(VERSION.format("", driver))
        (gpu / "information").write_text(f"Model: \t\t {name}\nIRQ:  \t 59\n")
        for device in ("nvidia0", "nvidiactl"):
            (tmp_path / "dev" / device).touch()
        monkeypatch.setattr(nvidia, "PROC", tmp_path / "proc")
        monkeypatch.setattr(nvidia, "DEV", tmp_path / "dev")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", warn_and_find_none)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return tmp_path / "dev"

    return make


def refuse(program: Program, *flags: str) -> str:
    """Return the line of error with which a dry run ends."""
    status, _, err = program(*AUTO, *flags)
    assert status == 2 and err.startswith("main.py: ") and err.count("\n") == 1, err
    assert "--accelerator cpu" in err
    return err


def test_driver_too_old_for_torch_is_named(machine, program: Program) -> None:
    machine()
    err = refuse(program)
    assert "NVIDIA A100-SXM4-40GB (driver 535.104.05)" in err
    assert f"torch {torch.__version__} was built for CUDA 13.0, which needs driver 580" in err
    assert "torch torchvision --index-url https://download.pytorch.org/whl/cu126," in err
    assert program(*AUTO, "--accelerator", "cpu")[::2] == (0, "")  # and no warning of torch


@pytest.mark.parametrize(
    ("driver", "name", "cuda", "advice"),
    [
        ("575.57.08", "NVIDIA GeForce RTX 4090", "13.2", "/cu126, or update the driver to 580"),
        ("570.86.10", "NVIDIA GeForce RTX 5090", "13.0", "/cu128, or update the driver to 580"),
        ("470.57.02", "Tesla V100-SXM2-16GB", "12.6", ": update the driver to 580 or newer"),
        ("580.65.06", "NVIDIA H200", None, "built without CUDA: "),
        ("580.65.06", "NVIDIA H200", None, "/cu130. "),
        ("550.54.14", "NVIDIA H100", None, "/cu126, or update"),
        ("595.10", "NVIDIA H200", "13.0", f"cannot use it ({TOO_OLD[:20]}"),
    ],
)
def test_advice_fits_the_driver(driver, name, cuda, advice, machine, program: Program) -> None:
    machine(driver, name, cuda)
    assert advice in refuse(program)


def test_gpu_too_old_for_torch_is_named(monkeypatch, program: Program) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT_FOR)
    err = refuse(program)
    assert "Tesla V100-SXM2-16GB has compute capability 7.0, but torch" in err
    assert "built for 7.5 and newer" in err and "/whl/cu126" in err


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (12, 1)])
def test_gpu_that_is_new_enough_for_torch_is_used(capability: tuple[int, int]) -> None:
    assert nvidia.explain_missing_kernels("GPU", capability, "2.14", BUILT_FOR) is None


def test_gpu_without_permission_is_named(machine, program: Program, monkeypatch) -> None:
    dev = machine()
    refuse_to_open(monkeypatch, errno.EACCES)
    assert f"no permission to open {dev}/nvidia0: ask to be added to its group" in refuse(program)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def open_(path, flags: int, *args, **options) -> int:  # root may open every file
        if "nvidia" in str(path) and flags == os.O_RDWR:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **options)

    real = os.open
    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "no device", "job"])
def test_auto_uses_the_cpu_if_the_gpu_is_hidden_on_purpose(
    hidden: str, machine, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = machine()
    if hidden == "no device":
        (dev / "nvidia0").unlink()
        expected = f"there is no {dev}/nvidia0"
    elif hidden == "job":
        refuse_to_open(monkeypatch, errno.EPERM)
        expected = f"may not open {dev}/nvidia0"
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        expected = f"is hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
    status, out, err = program(*AUTO)
    assert (status, err) == (0, "") and "device    cpu" in out
    assert "NVIDIA A100-SXM4-40GB (driver 535.104.05)" in out and expected in out
    assert expected in refuse(program, "--accelerator", "gpu")


def test_nvidia_smi_is_asked_if_the_kernel_module_is_missing(
    tmp_path: Path, program: Program, machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = machine()
    (dev / "dxg").touch()  # Windows' subsystem for Linux
    (dev / "nvidia0").unlink()
    monkeypatch.setattr(nvidia, "PROC", tmp_path / "nothing")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3090, 566.36'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "NVIDIA GeForce RTX 3090 (driver 566.36)" in refuse(program)


def test_machine_without_gpu_uses_the_cpu(program, machine, tmp_path, monkeypatch) -> None:
    machine()
    monkeypatch.setattr(nvidia, "PROC", tmp_path / "nothing")
    monkeypatch.setattr("shutil.which", lambda name: None)
    status, out, err = program(*AUTO)
    assert (status, err) == (0, "") and "device    cpu" in out and "NVIDIA" not in out
