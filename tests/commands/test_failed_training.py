"""Runs whose loss is not finite, or whose projections collapse."""

from pathlib import Path

from tests.helpers import SMALL, Program, load_weights, read_rows
from tests.terminal import run_on_a_terminal


def test_a_loss_that_is_not_finite_ends_with_status_4(program: Program, tmp_path: Path) -> None:
    status, _, err = program(
        *SMALL, "--epochs", "3", "--warmup-epochs", "0", "--learning-rate", "1e30"
    )
    assert (
        status == 4 and err.count("\n") == 1 and "loss is nan" in err and "no checkpoint yet" in err
    )
    run = tmp_path / "runs" / "simsiam_patterns"
    assert not (run / "checkpoints" / "last.ckpt").exists() and not (run / "summary.json").exists()


COLLAPSING = [
    "--epochs",
    "3",
    "--knn-every",
    "0",
    "--no-stop-grad",
    "--heads-bn",
    "none",
]  # z_std is .1, then .02
COLLAPSING += ["--image-schedule", "32:3"]


def test_the_error_of_a_diverged_run_names_the_last_good_checkpoint(
    program: Program, tmp_path: Path
) -> None:
    flags = [
        "--epochs",
        "8",
        "--warmup-epochs",
        "1",
        "--learning-rate",
        "1e6",
        "--checkpoint-every",
        "1",
    ]
    status, _, err = program(*SMALL, *flags)
    last = tmp_path / "runs" / "simsiam_patterns" / "checkpoints" / "last.ckpt"
    assert (
        status == 4
        and f"in epoch 2: lower --learning-rate; the last good checkpoint is {last}" in err
    )
    assert all(bool(value.isfinite().all()) for value in load_weights(last.parent.parent).values())
    # The features of epoch 1 have overflowed, though its loss and its weights are finite.
    (row,) = read_rows(last.parent.parent)
    assert "kNN_accuracy" not in row


def test_a_collapse_ends_with_status_3_where_asked(program: Program) -> None:
    status, _, err = program(*SMALL, *COLLAPSING, "--stop-on-collapse")
    assert status == 3 and err.count("\n") == 1 and "collapsed in epoch" in err


def test_a_collapse_is_warned_of_once(program: Program, tmp_path: Path) -> None:
    status, out, _ = program(*SMALL, *COLLAPSING)
    assert status == 0 and out.count("warning: the representation has collapsed in epoch") == 1
    assert sum(row["z_std"] < 0.5 for row in read_rows(tmp_path / "runs" / "simsiam_patterns")) > 1


def test_the_bar_does_not_hide_an_error(tmp_path: Path) -> None:
    flags = [
        "--epochs",
        "3",
        "--warmup-epochs",
        "0",
        "--learning-rate",
        "1e30",
        "--save-dir",
        str(tmp_path),
    ]
    status, shown, err = run_on_a_terminal(80, *SMALL, *flags)
    assert status == 4 and err.count("\n") == 1 and "loss is nan" in err
    assert (
        b"steps" in shown and shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0
    )  # the cursor is back
