"""simsiam/callbacks/progress.py: what a person sees on a terminal while a run trains."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from simsiam.callbacks.progress import ProgressCallback
from simsiam.data.datamodule import ViewsDataModule
from tests.helpers import SMALL
from tests.terminal import run_on_a_terminal


def screen(columns: int, tmp_path: Path, *flags: str) -> list[str]:
    """All lines that a run drew on a terminal, without colours."""
    status, shown, err = run_on_a_terminal(columns, *SMALL, *flags, "--save-dir", str(tmp_path))
    assert (status, err) == (0, ""), shown
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()))


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow("as 80"))])
def test_bar_shows_epoch_step_loss_speed_and_time_left(columns: int, tmp_path: Path) -> None:
    lines = screen(columns, tmp_path, "--epochs", "3")
    bars = [line for line in lines if "\u2501" in line and "epoch" in line]
    assert bars and all(len(line) <= columns for line in bars)
    assert bars[0].startswith("epoch 1/3 ")
    full = r"epoch 3/3 .* 4/4  loss -?\d\.\d{4}  [\d,]+ images/s  left \d:\d\d:\d\d"
    assert any(re.match(full, line) for line in bars), bars
    done = [
        line
        for line in lines
        if re.match(r"epoch \d/3  loss -?\d\.\d{4}  kNN \d+\.\d\d %  z_std", line)
    ]
    assert [line[6] for line in done] == ["1", "2", "3"]


def test_notebook_gets_a_line_for_each_epoch_and_no_frames(tmp_path: Path) -> None:
    # Such is the terminal on which IPython's kernel runs `!python main.py`.
    kernel = {"TERM": "xterm-color", "PAGER": "cat", "JPY_PARENT_PID": "1", "FORCE_COLOR": "1"}
    flags = [*SMALL, "--epochs", "2", "--save-dir", str(tmp_path)]
    status, shown, err = run_on_a_terminal(80, *flags, **kernel)
    assert (status, err) == (0, "")
    assert b"\x1b" not in shown
    lines = shown.decode().splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert len(lines) < 30


@pytest.mark.slow("a fresh start; the usual width is a quick test")
def test_narrow_terminal_drops_the_speed_first(tmp_path: Path) -> None:
    bars = [
        line
        for line in screen(50, tmp_path, "--epochs", "2")
        if "\u2501" in line and "epoch" in line
    ]
    last = bars[-1]
    assert len(last) <= 50 and "4/4" in last and "left" in last and "images/s" not in last


def test_time_left_accounts_for_larger_views_in_later_epochs() -> None:
    data = ViewsDataModule(
        "patterns", train_images=40, test_images=10, batch_size=4, image_schedule=("16:2",)
    )
    data.setup()
    trainer = Trainer(max_epochs=4, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule, trainer.fit_loop.max_batches = data, 10  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit_loop.epoch_progress.current.completed = (
        trainer.fit_loop.epoch_progress.current.processed
    ) = 1
    bar = ProgressCallback(str)
    bar.batches = 20
    bar.seconds = 20.0  # a second for each batch, with views of 16 pixels
    bar.pixels = 20 * 16**2
    assert bar._estimate_time_left(trainer, 10) == timedelta(seconds=2 * 10 * 4)
