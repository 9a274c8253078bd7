"""Several runs by one command: `ablate`, and `--seeds`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simsiam.several import gpus
from simsiam.variants import paper_says
from tests.conftest import SMALL
from tests.test_ranks import children
from tests.test_run import ONE_THREAD, ROOT, Program, rows, same_weights, wait_for_epochs


def begin(*flags: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "main.py", *flags], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=ONE_THREAD)


def test_an_ablation_told_to_stop_saves_and_goes_on_where_it_was(tmp_path: Path) -> None:
    flags = ["ablate", *SMALL, "--epochs", "5", "--variants", "baseline", "no-predictor", "--save-dir", str(tmp_path)]
    folder = tmp_path / "ablation_patterns"
    process = begin(*flags)
    wait_for_epochs(process, folder / "baseline", 1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "1 of 2: baseline" in out
    assert err.count("\n") == 1 and "saved: the same command resumes it" in err
    assert not (folder / "no-predictor").exists()

    process = begin(*flags)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and "resumed from" in out
    assert [len(rows(folder / name)) for name in ("baseline", "no-predictor")] == [5, 5]
    page = (folder / "report" / "index.html").read_text()
    assert str(folder / "report" / "index.html") in out and "67.7 (table 1)" in page and "0.1 (table 1)" in page

    process = begin(*flags)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and out.count("is finished already") == 2


def test_a_run_for_each_seed_is_the_run_of_that_seed(program: Program, tmp_path: Path) -> None:
    process = begin(*SMALL, "--epochs", "2", "--seeds", "3", "4", "--save-dir", str(tmp_path / "runs"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and "mean of 2 seeds" in out
    folder = tmp_path / "runs" / "simsiam_patterns"
    alone = begin(*SMALL, "--epochs", "2", "--seed", "4", "--save-dir", str(tmp_path / "alone"))
    alone.communicate(timeout=120)
    assert same_weights(folder / "seed_4", tmp_path / "alone" / "simsiam_patterns")
    assert not same_weights(folder / "seed_3", folder / "seed_4")


def test_the_death_of_a_run_is_told_in_one_line_and_that_of_the_command_stops_its_run(tmp_path: Path) -> None:
    flags = ["ablate", *SMALL, "--epochs", "200", "--variants", "baseline", "--save-dir", str(tmp_path)]
    run = tmp_path / "ablation_patterns" / "baseline"
    for killed in ("run", "command"):
        process = begin(*flags)
        wait_for_epochs(process, run, 1 + len(rows(run)) if run.exists() else 1)
        (child,) = children(process)
        os.kill(child if killed == "run" else process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        if killed == "run":
            assert process.returncode == 128 + signal.SIGKILL and err.count("\n") == 1
            assert "baseline was ended by SIGKILL; the same command goes on" in err
        else:
            assert "saved: the same command resumes it" in err  # by the run, whose end the pipe's end waits for


def test_a_run_that_collapses_does_not_keep_the_others_from_being_compared(tmp_path: Path) -> None:
    """Without BN in the heads z_std is small from the beginning."""
    process = begin(
        *("ablate", *SMALL, "--epochs", "1", "--save-dir", str(tmp_path), "--stop-on-collapse"),
        *("--variants", "no-bn", "baseline"),
    )
    out, err = process.communicate(timeout=120)
    first, last = err.splitlines()
    assert process.returncode == 3 and "collapsed" in first and "no-bn (status 3)" in last
    assert len(rows(tmp_path / "ablation_patterns" / "baseline")) == 1 and "index.html" in out


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["ablate", "--variants", "no-brain"], "there are baseline, no-stop-grad"),
        (["ablate", "--variants", "baseline", "baseline"], "each once"),
        (["--seeds", "1", "1"], "each once"),
        (["--seeds", "1", "-1"], "0 or more"),
        (["--seeds", "1", "2", "--ckpt-dir", "x"], "without --seeds"),
        (["--seeds", "1", "2", "--batch-size", "4000"], "more than the 400 train images"),
    ],
)
def test_a_mistake_is_answered_in_one_line(flags: list[str], answer: str, tmp_path: Path) -> None:
    command = flags[:1] if flags[0] == "ablate" else []
    process = begin(*command, *SMALL, "--save-dir", str(tmp_path / "runs"), *flags[len(command) :])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("\n") == 1 and answer in err
    assert not (tmp_path / "runs").exists()


def test_runs_at_once_take_the_gpus_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert gpus() == ["4", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(gpus()) == torch.cuda.device_count()


def test_what_the_paper_says_of_a_run_follows_from_its_settings() -> None:
    usual = {"stop_grad": True, "predictor": True, "fixed_predictor": False, "constant_predictor_lr": False}
    usual |= {"heads_bn": "paper", "symmetric": True, "batch_size": 512}
    assert paper_says([usual, usual | {"predictor": False}], usual) == ["67.7 (table 1)", "0.1 (table 1)"]
    assert paper_says([usual, usual | {"batch_size": 4096}], usual) == ["68.1 (table 2)", "64.0 (table 2)"]
    both = usual | {"predictor": False, "stop_grad": False}
    assert paper_says([usual, both], usual) == ["67.7 (table 1)", None]
    assert paper_says([usual, usual], usual) == [None, None]
