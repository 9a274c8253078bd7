"""What a failed resume leaves in the folder of the run, and what messages say about resuming."""

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from simsiam.callbacks.checkpoint import CheckpointCallback
from simsiam.commands.resume import Start, explain_failures
from tests.at_steps import start_small_with_events
from utils.errors import UserError
from utils.run_dir import RunDirectory


class NotBegun:
    """Stands for a CheckpointCallback before the first step."""

    begun = False


def fail_to_resume(run: RunDirectory, checkpoint: Path) -> None:
    callback = cast(CheckpointCallback, cast(Any, NotBegun()))
    with (
        pytest.raises(UserError, match="cannot resume from"),
        explain_failures(run, Start(checkpoint, 5), callback),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def make_run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create({"settings": {}})
    run.metrics.touch()
    return run


@pytest.mark.parametrize("linked", ["nothing", "checkpoints", "last.ckpt"])
def test_failed_resume_leaves_a_run_with_links_as_it_is(linked: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    other_disk = tmp_path / "other disk"
    other_disk.mkdir()
    if linked == "checkpoints":
        run.checkpoints.symlink_to(other_disk)
    else:
        run.checkpoints.mkdir()
    if linked == "last.ckpt":
        (other_disk / "last.ckpt").touch()
        run.last.symlink_to(other_disk / "last.ckpt")
    run.last.touch()
    run.best.touch()
    fail_to_resume(run, run.last)
    for file in (run.last, run.best, run.metrics, run.config):
        assert file.exists()


def test_failed_start_from_the_checkpoint_of_another_run_leaves_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    other = tmp_path / "other" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    other.touch()
    fail_to_resume(run, other)
    assert other.exists() and not run.path.exists()


def test_message_says_to_leave_out_overwrite(tmp_path: Path) -> None:
    flags = ["--overwrite", "--epochs", "2"]
    _, err = start_small_with_events("run", tmp_path, {2: ["SIGTERM"]}, *flags).communicate()
    assert "saved: the same command without --overwrite resumes it" in err


def test_a_reader_that_has_ended_is_not_taken_for_a_broken_disk(tmp_path: Path) -> None:
    callback = cast(CheckpointCallback, cast(Any, NotBegun()))
    with pytest.raises(BrokenPipeError), explain_failures(make_run(tmp_path), None, callback):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")  # as print_line does in `| head`
