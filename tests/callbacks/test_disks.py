"""A run survives a disk that is full or becomes read-only."""

import csv
import errno
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from simsiam.callbacks import checkpoint
from simsiam.callbacks.knn import KNNMonitor
from tests.at_steps import LONG, start_small_with_events, steps_saved
from tests.helpers import SMALL, Program, read_rows, same_run, start_small
from tests.processes import Started, torchrun_environments, wait_for
from utils import filesystem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        # Only root may mount a file system, and nothing else makes a disk truly full.
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


def test_a_full_disk_does_not_end_a_run_and_nothing_is_lost(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    early, late = tmp_path / "early", tmp_path / "late"  # in the third and in the last epoch
    on_it = (*LONG, "--save-dir", str(small_disk), "--logger", "tensorboard", "csv")
    process = start_small_with_events("run", tmp_path, {15: [early], 32: [late]}, *on_it)
    last = small_disk / "run" / "checkpoints" / "last.ckpt"
    wait_for(process, lambda: early.exists() and last.exists())
    filler, good = fill(small_disk), last.read_bytes()
    early.unlink()
    wait_for(process, late.exists)
    assert "\nepoch 5/6" in process.printed()[0] and last.read_bytes() == good
    filler.unlink()
    late.unlink()
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err + out
    assert "warning: " in out and "No space left on device" in out, out
    shutil.copytree(small_disk / "run", tmp_path / "copy")
    assert same_run(tmp_path / "copy", undisturbed)
    with open(small_disk / "run" / "csv" / "version_0" / "metrics.csv", newline="") as file:
        losses = [row["train_loss"] for row in csv.DictReader(file) if row["train_loss"]]
    recorded = [row["train_loss"] for row in read_rows(undisturbed)]
    assert [float(loss) for loss in losses] == pytest.approx(recorded)


@pytest.mark.slow("four runs; a full disk is a quick test")
def test_a_run_on_a_read_only_disk_resumes_once_it_is_writable(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    on_it = (*LONG, "--save-dir", str(small_disk))
    held = tmp_path / "held"
    process = start_small_with_events("run", tmp_path, {15: [held]}, *on_it)
    last = small_disk / "run" / "checkpoints" / "last.ckpt"
    wait_for(process, lambda: held.exists() and last.exists())
    subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(small_disk)], check=True)
    try:
        step = steps_saved(last)
        held.unlink()
        out, err = process.communicate()
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert (
            "Read-only file system" in err and f"the same command then resumes from {last}" in err
        )
        assert "epoch 6/6" in out and out.count("warning: ") >= 2, out
        assert steps_saved(last) >= step
        again = start_small("run", tmp_path, *on_it)
        _, err = again.communicate()
        assert again.returncode == 2 and err.count("\n") == 1 and "cannot be written" in err
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)
    again = start_small("run", tmp_path, *on_it)
    _, err = again.communicate()
    assert (again.returncode, err) == (0, "")
    shutil.copytree(small_disk / "run", tmp_path / "copy")
    assert same_run(tmp_path / "copy", undisturbed)


def test_no_run_starts_on_a_full_disk(small_disk: Path, program: Program) -> None:
    fill(small_disk)
    status, _, err = program(*SMALL, "--save-dir", str(small_disk))
    assert status == 2 and err.count("\n") == 1 and "No space left" in err


def run_without_room_for_best(args: list[str]) -> int:
    """Run main.py with kNN accuracies that fall, and a full disk for the first two best.ckpt."""
    falling = itertools.count(50, -1)
    writes = itertools.count(1)

    def measure(*_: Any) -> dict[str, float]:
        return {"kNN_accuracy": float(next(falling))}

    def write_unless_best(path: Path, write: Any) -> None:
        if path.name == "best.ckpt" and next(writes) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        filesystem.write_atomically(path, write)

    KNNMonitor.measure = measure  # pyright: ignore[reportAttributeAccessIssue]
    checkpoint.write_atomically = write_unless_best
    return main.main(args)


def test_two_processes_agree_when_best_ckpt_cannot_be_written(tmp_path: Path) -> None:
    """Only rank 0 knows of the failure. If it alone saved again, the processes would hang."""
    flags = [*SMALL, "--epochs", "6", "--checkpoint-every", "1"]
    flags += ["--save-dir", str(tmp_path), "--exp-name", "run"]
    pair = [
        Started(run_without_room_for_best, flags, **environment)
        for environment in torchrun_environments()
    ]
    assert [process.communicate()[1] for process in pair] == ["", ""]
    assert [process.returncode for process in pair] == [0, 0]
    accuracies = [row["kNN_accuracy"] for row in read_rows(tmp_path / "run")]
    assert accuracies == sorted(accuracies, reverse=True)
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["row"]["epoch"] > 1
