"""A run cannot be lost: killed, told to stop, out of disk, or with its folder gone, it goes on as the same run."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import main
from simsiam.callbacks.checkpoint import BackgroundCheckpointIO
from tests.benchmarks import faults
from tests.helpers import (
    SMALL,
    Program,
    Started,
    rows,
    same_run,
    same_weights,
    start_small,
    wait_for,
    wait_for_epochs,
)
from utils.run_dir import RunDirectory

SLOW = ("--backbone", "resnet18", "--width", "64", "--batch-size", "200", "--epochs", "1", "--knn-every", "0")
LONG = (  # six steps an epoch
    *("--train-images", "60", "--batch-size", "10", "--epochs", "6"),
    *("--checkpoint-every", "2", "--knn-every", "2", "--image-schedule", "16:2", "24:2"),
)


@pytest.fixture(scope="session")
def undisturbed(made: Callable[..., Path]) -> Path:
    def fill(folder: Path) -> None:
        process = start_small("run", folder, *LONG)
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")

    return made("undisturbed", fill) / "runs" / "run"


@pytest.mark.parametrize(
    ("kills", "epochs"), [(4, 4), pytest.param(9, 24, marks=pytest.mark.slow("more kills, in longer runs"))]
)
def test_kills_at_random_moments_lose_at_most_an_interval_and_change_nothing(
    kills: int, epochs: int, tmp_path: Path
) -> None:
    tally = faults.Faults(tmp_path, epochs).kill_runs(kills)
    assert tally.ok, tally
    assert tally.kills == kills and tally.in_a_save >= 1
    assert tally.resumes >= 1 and tally.signals >= (kills - 1) // 3  # a kill just after a checkpoint gives a resume


@pytest.mark.parametrize(
    "go_on",
    [
        [signal.SIGTERM],
        pytest.param(
            [signal.SIGINT, signal.SIGHUP],
            marks=pytest.mark.slow("resumes two more; all three are stopped in the quick test"),
        ),
    ],
)
def test_each_signal_saves_in_the_middle_of_an_epoch_and_the_run_goes_on_from_there(
    go_on: list[signal.Signals], undisturbed: Path, tmp_path: Path
) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    processes = [start_small(number.name, tmp_path, *LONG) for number in numbers]  # at once
    for number, process in zip(numbers, processes, strict=True):
        wait_for_epochs(process, tmp_path / "runs" / number.name, 1)
        process.send_signal(number)
    for number, process in zip(numbers, processes, strict=True):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number and err.count("\n") == 1, err
        assert f"stopped by {number.name}" in err and "saved: the same command resumes it" in err
        last = tmp_path / "runs" / number.name / "checkpoints" / "last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"]
        assert f"step {step}" in err and 0 < step < 36
    for process in [start_small(number.name, tmp_path, *LONG) for number in go_on]:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "") and "resumed from" in out
    assert all(same_run(tmp_path / "runs" / number.name, undisturbed) for number in go_on)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    process = start_small("run", tmp_path, *SLOW)
    wait_for(process, (tmp_path / "runs" / "run" / "views.png").exists)
    for _ in range(2):
        time.sleep(1)  # into the first step; and the two signals must not arrive as one
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "") and not (tmp_path / "runs" / "run" / "checkpoints").exists()


def under_nohup(args: list[str]) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # all that nohup does to a program whose output is a file
    return main.main(args)


def test_under_nohup_a_hang_up_is_ignored(tmp_path: Path) -> None:
    process = Started(under_nohup, [*SMALL, *LONG, "--save-dir", str(tmp_path / "runs"), "--exp-name", "run"])
    wait_for_epochs(process, tmp_path / "runs" / "run", 1)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0 and len(rows(tmp_path / "runs" / "run")) == 6


def test_slurms_signal_requeues_through_lightnings_plugin_and_the_run_goes_on(
    undisturbed: Path, tmp_path: Path
) -> None:
    """No SLURM is needed: Lightning knows it by its environment, and asks `scontrol`, which here notes the question."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "77", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = start_small("run", tmp_path, *LONG, **slurm)
    run = tmp_path / "runs" / "run"
    wait_for_epochs(process, run, 1)
    process.send_signal(signal.SIGUSR1)
    wait_for(process, (tmp_path / "asked").exists)
    process.kill()  # as SLURM would, at last
    process.communicate()
    assert (tmp_path / "asked").read_text().startswith("requeue 77")
    again = start_small("run", tmp_path, *LONG, **slurm)
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "") and "resumed from" in out
    assert same_run(run, undisturbed)


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")  # only root may; nothing else makes a disk truly full
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


def test_on_a_full_disk_training_goes_on_and_once_there_is_room_all_is_there(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    on_it = (*LONG, "--save-dir", str(small_disk))
    process = start_small("run", tmp_path, *on_it)
    run = small_disk / "run"
    wait_for(process, (run / "checkpoints" / "last.ckpt").exists)
    filler = fill(small_disk)
    good = (run / "checkpoints" / "last.ckpt").read_bytes()
    wait_for(process, lambda: "\nepoch 5/6" in process.printed()[0])
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == good
    filler.unlink()
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err + out
    assert "warning: " in out and "No space left on device" in out, out
    shutil.copytree(run, tmp_path / "copy")
    assert same_run(tmp_path / "copy", undisturbed)


@pytest.mark.slow("four runs; a full disk is a quick test")
def test_on_a_disk_that_becomes_read_only_the_last_checkpoint_stays_and_the_run_goes_on_later(
    undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    on_it = (*LONG, "--save-dir", str(small_disk))
    process = start_small("run", tmp_path, *on_it)
    last = small_disk / "run" / "checkpoints" / "last.ckpt"
    wait_for(process, last.exists)
    subprocess.run(["mount", "--bind", str(small_disk), str(small_disk)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(small_disk)], check=True)
    try:
        step = torch.load(last, weights_only=True)["global_step"]
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2 and err.count("\n") == 1, err
        assert "Read-only file system" in err
        assert "epoch 6/6" in out and out.count("warning: ") >= 2, out
        assert torch.load(last, weights_only=True)["global_step"] >= step
        again = start_small("run", tmp_path, *on_it)
        _, err = again.communicate(timeout=120)
        assert again.returncode == 2 and err.count("\n") == 1 and "cannot be written" in err
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)
    again = start_small("run", tmp_path, *on_it)
    _, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (0, "")
    shutil.copytree(small_disk / "run", tmp_path / "copy")
    assert same_run(tmp_path / "copy", undisturbed)


def test_on_a_full_disk_a_run_does_not_begin_and_says_so_in_one_line(small_disk: Path, program: Program) -> None:
    fill(small_disk)
    status, _, err = program(*SMALL, "--save-dir", str(small_disk))
    assert status == 2 and err.count("\n") == 1 and "No space left" in err


def test_a_folder_that_is_removed_under_the_run_comes_back(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    process = start_small("run", tmp_path, *LONG)
    wait_for_epochs(process, run, 3)
    shutil.rmtree(run, ignore_errors=True)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert rows(run) == rows(undisturbed) and same_weights(run, undisturbed)
    assert start_small("run", tmp_path, *LONG).communicate(timeout=60)[0].count("finished already") == 1


@pytest.mark.slow("two runs; --ckpt-dir is a quick test in test_run.py")
def test_a_checkpoint_resumed_in_another_folder_brings_its_rows(program: Program, tmp_path: Path) -> None:
    flags = [*SMALL, "--epochs", "4", "--checkpoint-every", "1"]
    assert program(*flags, "--exp-name", "a")[0] == 0
    a, b = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    middle = str(a / "checkpoints" / "last.previous.ckpt")
    assert program(*flags, "--exp-name", "b", "--ckpt-dir", middle)[0] == 0
    assert rows(a) == rows(b) and same_weights(a, b)


@pytest.mark.slow("three runs; that the checkpoint before is taken is a quick test")
def test_what_was_found_damaged_never_takes_the_place_of_what_is_whole(program: Program, tmp_path: Path) -> None:
    flags = [*SMALL, "--epochs", "4", "--checkpoint-every", "1"]
    assert program(*flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "summary.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    before = torch.load(last.with_name("last.previous.ckpt"), weights_only=True)["global_step"]
    last.write_bytes(last.read_bytes()[:-1000])
    process = start_small("simsiam_patterns", tmp_path, "--epochs", "4", "--checkpoint-every", "1")
    wait_for(process, lambda: not last.with_name("last.previous.ckpt").exists())  # from the first moment on
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert torch.load(last, weights_only=True)["global_step"] >= before
    assert program(*flags)[0] == 0 and json.loads((run / "summary.json").read_text())["epochs"] == 4


def test_checkpoints_by_time_come_in_the_middle_of_an_epoch_too(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.callbacks.checkpoint.CHECKPOINT_SECONDS", 3600)
    assert program(*SMALL, "--epochs", "2", "--exp-name", "usual")[0] == 0
    monkeypatch.setattr("simsiam.callbacks.checkpoint.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr("simsiam.callbacks.checkpoint.SHARE", 1)
    assert program(*SMALL, "--epochs", "2", "--exp-name", "often")[0] == 0
    usual, often = tmp_path / "runs" / "usual", tmp_path / "runs" / "often"
    assert not (usual / "checkpoints" / "last.previous.ckpt").exists()
    before = torch.load(often / "checkpoints" / "last.previous.ckpt", weights_only=True)
    assert before["global_step"] == 7 and before["row"]["epoch"] == 1  # four steps an epoch
    assert rows(usual) == rows(often) and same_weights(usual, often)


def test_the_best_weights_go_to_the_disk_with_the_last_ones_and_at_the_end(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    io, weight = BackgroundCheckpointIO(run, about={}), torch.zeros(1)
    for value in (1.0, 2.0):
        io.save_checkpoint({"weight": weight.fill_(value)}, run.best)
        io.wait()
    assert not run.best.exists()
    io.save_checkpoint({"weight": weight.fill_(3.0)}, run.last)
    io.save_checkpoint({"weight": weight.fill_(4.0)}, tmp_path / "hpc_ckpt_1.ckpt")
    io.wait()
    assert [torch.load(file)["weight"].item() for file in (run.best, run.last)] == [2.0, 3.0]
    io.save_checkpoint({"weight": weight.fill_(5.0)}, run.best)
    io.teardown()
    assert torch.load(run.best)["weight"].item() == 5.0


@pytest.mark.slow("as the removal of its folder, which is a quick test")
def test_a_run_whose_contents_were_removed_does_not_lock_itself_out(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    process = start_small("run", tmp_path, *LONG)
    wait_for_epochs(process, run, 3)
    (run / "config.yaml").unlink()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and (run / "config.yaml").exists() and same_run(run, undisturbed)
