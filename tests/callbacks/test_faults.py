"""A run that was killed, stopped or lost its folder resumes and ends as an undisturbed one."""

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

import main
from simsiam.callbacks.checkpoint import BackgroundCheckpointIO, CheckpointCallback
from simsiam.callbacks.knn import KNNMonitor
from simsiam.callbacks.metrics import MetricsRecorder
from simsiam.callbacks.signals import SignalCallback
from tests.at_steps import LONG, run_with_events, start_small_with_events, steps_saved, to_json
from tests.benchmarks import faults
from tests.helpers import SMALL, Program, read_rows, same_run, same_weights, start_small
from tests.processes import Started, wait_for
from utils.run_dir import RunDirectory


def run_killed_in_a_save(args: list[str]) -> int:
    """Run main.py, and kill it when half of its first checkpoint is written."""
    save = torch.save

    def save_half(content: object, file: BinaryIO) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        checkpoint = buffer.getvalue()
        file.write(checkpoint[: len(checkpoint) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    return main.main(args)


def test_a_run_killed_again_and_again_is_the_same_run(undisturbed: Path, tmp_path: Path) -> None:
    """Kills before the first checkpoint, in mid-epoch and in a save cost at most two epochs each.

    Events are at steps counted from the start of each process. An epoch has 6 steps, and each 12th
    step of the run saves a checkpoint.
    """
    run = tmp_path / "runs" / "run"
    held = tmp_path / "held"
    last = run / "checkpoints" / "last.ckpt"
    folder_flags = ["--save-dir", str(tmp_path / "runs"), "--exp-name", "run"]

    # A kill in the second epoch, before the first checkpoint.
    process = start_small_with_events("run", tmp_path, {9: ["SIGKILL"]}, *LONG)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(read_rows(run)) == 1 and not last.exists()

    # A kill in the middle of the fourth epoch, after a checkpoint at the end of the second.
    process = start_small_with_events("run", tmp_path, {21: [held]}, *LONG)
    wait_for(process, lambda: held.exists() and last.exists())
    process.kill()
    process.communicate()
    assert len(read_rows(run)) == 3 and steps_saved(last) == 12

    # A kill in the save of the second checkpoint. The first one is still there.
    process = Started(run_killed_in_a_save, [*SMALL, *LONG, *folder_flags])
    out, _ = process.communicate()
    assert "resumed from" in out and process.returncode == -signal.SIGKILL
    assert len(read_rows(run)) >= 4 and steps_saved(last) == 12
    assert list(last.parent.glob(".*.partial"))

    again = start_small("run", tmp_path, *LONG)
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "") and "resumed from" in out
    assert same_run(run, undisturbed) and not list(run.rglob("*.partial"))


@pytest.mark.slow(
    "nine kills at random moments take minutes; a quick test kills at the moments that matter"
)
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    tally = faults.Faults(tmp_path, epochs=24).kill_runs(9)
    assert tally.ok, tally
    assert tally.in_a_save == 3 and tally.signals >= 2
    assert tally.resumes >= 3  # after each third kill, which comes just after a checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_saves_the_step_it_came_in(number: signal.Signals, tmp_path: Path) -> None:
    stop_in_step_9(number, tmp_path)
    assert steps_saved(tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt") == 9


LIKE_SIGTERM = pytest.mark.slow(
    "the same as SIGTERM after the save; a quick test checks that each signal saves"
)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=LIKE_SIGTERM),
        pytest.param(signal.SIGHUP, marks=LIKE_SIGTERM),
    ],
)
def test_a_run_stopped_in_mid_epoch_resumes_to_the_bit(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    stop_in_step_9(number, tmp_path)
    again = start_small("run", tmp_path, *LONG)
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "") and "resumed from" in out
    assert same_run(tmp_path / "runs" / "run", undisturbed)


def stop_in_step_9(number: signal.Signals, tmp_path: Path) -> None:
    """Start a run and send a signal in the middle of its second epoch. It saves and prints that."""
    process = start_small_with_events("run", tmp_path, {9: [number.name]}, *LONG)
    _, err = process.communicate()
    assert process.returncode == 128 + number and err.count("\n") == 1, err
    assert f"stopped by {number.name} in epoch 2, step 9" in err
    assert "saved: the same command resumes it" in err


def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path: Path) -> None:
    process = start_small_with_events("run", tmp_path, {9: ["SIGINT", "SIGINT"]}, *LONG)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    run = tmp_path / "runs" / "run"
    assert len(read_rows(run)) == 1 and not (run / "checkpoints" / "last.ckpt").exists()


def run_under_nohup(args: list[str]) -> int:
    # If the output of a program is a file, nohup does nothing else than this.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return run_with_events(args)


def test_under_nohup_a_hang_up_is_ignored(tmp_path: Path) -> None:
    flags = [*SMALL, "--epochs", "2", "--save-dir", str(tmp_path / "runs"), "--exp-name", "run"]
    # The signal comes in step 3 of the 4 steps of the first epoch.
    process = Started(run_under_nohup, [to_json({3: ["SIGHUP"]}), *flags])
    process.communicate()
    assert process.returncode == 0 and len(read_rows(tmp_path / "runs" / "run")) == 2


def test_slurms_signal_requeues_the_run_and_it_resumes(undisturbed: Path, tmp_path: Path) -> None:
    """Lightning recognises SLURM by its variables and calls `scontrol`, a script of this test."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    killed = tmp_path / "killed"
    process = start_small_with_events(
        "run", tmp_path, {9: ["SIGUSR1"], 10: [killed]}, *LONG, "--overwrite", **slurm
    )
    wait_for(process, killed.exists)
    process.kill()  # as SLURM does once the job is in the queue again
    process.communicate()
    assert (tmp_path / "asked").read_text().startswith("requeue 77")
    again = start_small("run", tmp_path, *LONG, "--overwrite", SLURM_RESTART_COUNT="1", **slurm)
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "") and "resumed from" in out
    assert out.count("--overwrite is ignored: SLURM has requeued the job") == 1
    assert same_run(tmp_path / "runs" / "run", undisturbed)


def test_a_removed_run_folder_is_written_again(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    held = tmp_path / "held"
    process = start_small_with_events("run", tmp_path, {20: [held]}, *LONG)
    wait_for(process, lambda: held.exists() and (run / "checkpoints" / "last.ckpt").exists())
    shutil.rmtree(run)
    held.unlink()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert read_rows(run) == read_rows(undisturbed) and same_weights(run, undisturbed)
    out, _ = start_small("run", tmp_path, *LONG).communicate()
    assert out.count("finished already") == 1


@pytest.mark.slow("two runs; tests/data/test_own_runs.py has a quick test of --ckpt-dir")
def test_resuming_in_another_folder_keeps_the_rows(program: Program, tmp_path: Path) -> None:
    flags = [*SMALL, "--epochs", "4", "--checkpoint-every", "1"]
    assert program(*flags, "--exp-name", "a")[0] == 0
    a = tmp_path / "runs" / "a"
    b = tmp_path / "runs" / "b"
    middle = str(a / "checkpoints" / "last.previous.ckpt")
    assert program(*flags, "--exp-name", "b", "--ckpt-dir", middle)[0] == 0
    assert read_rows(a) == read_rows(b) and same_weights(a, b)


@pytest.mark.slow("three runs; a quick test resumes from the previous checkpoint")
def test_a_damaged_checkpoint_never_replaces_an_intact_one(
    program: Program, tmp_path: Path
) -> None:
    flags = [*SMALL, "--epochs", "4", "--checkpoint-every", "1"]
    assert program(*flags)[0] == 0
    run = tmp_path / "runs" / "simsiam_patterns"
    (run / "summary.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    before = steps_saved(last.with_name("last.previous.ckpt"))
    last.write_bytes(last.read_bytes()[:-1000])
    held = tmp_path / "held"
    process = start_small_with_events(
        "simsiam_patterns", tmp_path, {1: [held]}, "--epochs", "4", "--checkpoint-every", "1"
    )
    wait_for(process, held.exists)
    process.kill()  # before a checkpoint of its own
    process.communicate()
    assert steps_saved(last) == before
    assert program(*flags)[0] == 0 and json.loads((run / "summary.json").read_text())["epochs"] == 4


def test_checkpoints_by_time_are_saved_in_mid_epoch_too(
    trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.callbacks.checkpoint.MIN_CHECKPOINT_SECONDS", 0)
    # Save however long the disk takes.
    monkeypatch.setattr("simsiam.callbacks.checkpoint.MAX_BLOCKED_FRACTION", 1e9)
    position = SMALL.index("--checkpoint-every")
    by_time = SMALL[:position] + SMALL[position + 2 :]  # without the flag and its value
    assert program(*by_time, "--epochs", "2")[0] == 0
    often = tmp_path / "runs" / "simsiam_patterns"
    before = torch.load(often / "checkpoints" / "last.previous.ckpt", weights_only=True)
    assert before["global_step"] == 7 and before["row"]["epoch"] == 1  # four steps an epoch
    assert read_rows(trained) == read_rows(often) and same_weights(trained, often)


@pytest.mark.parametrize(
    ("passed", "waited", "due"), [(29, 0, False), (31, 0, True), (31, 1, False), (101, 1, True)]
)
def test_a_slow_disk_gets_fewer_checkpoints(
    passed: float, waited: float, due: bool, tmp_path: Path
) -> None:
    """Training waits for checkpoints a hundredth of the time at most."""
    run = RunDirectory(tmp_path)
    recorder = MetricsRecorder(run, KNNMonitor())
    checkpoint_io = BackgroundCheckpointIO(run, extra_state={})
    checkpoints = CheckpointCallback(run, recorder, None, checkpoint_io, SignalCallback())
    checkpoints.saved_at = time.monotonic() - passed
    checkpoints.blocked_seconds = waited
    assert checkpoints._is_due_by_time() == due


def test_best_ckpt_is_written_with_the_next_last_ckpt_and_at_the_end(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    checkpoint_io = BackgroundCheckpointIO(run, extra_state={})
    weight = torch.zeros(1)

    def save(value: float, file: Path) -> None:
        checkpoint_io.save_checkpoint({"weight": weight.fill_(value)}, file)

    def load(file: Path) -> float:
        return torch.load(file)["weight"].item()

    for value in (1.0, 2.0):
        save(value, run.best)
        checkpoint_io.wait()
    assert not run.best.exists()

    save(3.0, run.last)
    # A checkpoint of Lightning's SLURM plugin replaces neither of the two.
    save(4.0, tmp_path / "hpc_ckpt_1.ckpt")
    checkpoint_io.wait()
    assert load(run.best) == 2.0 and load(run.last) == 3.0

    save(5.0, run.best)
    checkpoint_io.teardown()
    assert load(run.best) == 5.0


@pytest.mark.slow("a whole run; a quick test removes the whole folder")
def test_a_run_without_its_config_yaml_does_not_lock_itself_out(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    held = tmp_path / "held"
    process = start_small_with_events("run", tmp_path, {20: [held]}, *LONG)
    wait_for(process, held.exists)
    (run / "config.yaml").unlink()
    held.unlink()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert (run / "config.yaml").exists() and same_run(run, undisturbed)
