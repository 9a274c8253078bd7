"""Several runs by one command: `ablate`, and `--seeds`."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from simsiam.commands import launch
from simsiam.commands.sweep import expand_seeds, list_gpus, make_variant
from simsiam.config.ablations import paper_says
from simsiam.config.commands import Ablate, Pretrain
from tests.at_steps import run_with_main, start_with_events_below
from tests.helpers import SMALL, Program, Started, children, rows, same_weights, start, wait_for
from utils.cli import from_settings

STUB = """
import json, os, signal, sys, time
stopping = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # one that comes before `sigwait` waits for it
flags = dict(flag.split("=", 1) for flag in sys.argv[1:] if "=" in flag)
name, folder = flags["--exp-name"], flags["--save-dir"]
statuses = json.loads(os.environ["STATUSES"])
open(f"{folder}/{name}.pid", "w").write(str(os.getpid()))
if name in statuses:
    sys.exit(statuses[name])
number = signal.sigwait(stopping)
time.sleep(0.2)  # to save takes time, for which the command has to wait
print(f"main.py: {name} stopped by {number.name}", file=sys.stderr)
sys.exit(128 + number)
"""  # ends with the status that it is given, or waits for a signal


def begin_stubs(tmp_path: Path, variants: list[str], **statuses: int) -> Started:
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "ablation_patterns").mkdir()
    flags = ["ablate", *SMALL, "--variants", *variants, "--save-dir", str(tmp_path)]
    return Started(
        run_with_main, [str(tmp_path / "stub.py"), *flags], STATUSES=json.dumps(statuses)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_command_is_passed_on_to_its_run_and_no_further_run_begins(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = begin_stubs(tmp_path, ["baseline", "no-predictor"])
    wait_for(process, (tmp_path / "ablation_patterns" / "baseline.pid").exists)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and "1 of 2: baseline" in out
    assert err == f"main.py: baseline stopped by {number.name}\n"
    assert not (tmp_path / "ablation_patterns" / "no-predictor.pid").exists()


def test_a_run_that_collapses_or_diverges_does_not_keep_the_others_from_being_trained(
    tmp_path: Path,
) -> None:
    variants = ["no-bn", "no-predictor", "baseline"]
    process = begin_stubs(tmp_path, variants, **{"no-bn": 3, "no-predictor": 4, "baseline": 0})
    out, err = process.communicate()
    assert process.returncode == 4 and err.count("\n") == 1 and "3 of 3: baseline" in out
    assert "runs that collapsed or diverged: no-bn (status 3), no-predictor (status 4)" in err


def test_a_run_that_a_person_has_to_mend_ends_all_with_its_status(tmp_path: Path) -> None:
    process = begin_stubs(tmp_path, ["baseline", "no-predictor"], baseline=2)
    assert process.communicate()[1] == "" and process.returncode == 2  # the run has said why
    assert not (tmp_path / "ablation_patterns" / "no-predictor.pid").exists()


def test_the_death_of_a_run_is_told_in_one_line(tmp_path: Path) -> None:
    process = begin_stubs(tmp_path, ["baseline", "no-predictor"])
    pid = tmp_path / "ablation_patterns" / "baseline.pid"
    wait_for(process, lambda: pid.exists() and pid.read_text() != "")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL and err.count("\n") == 1
    assert "baseline was ended by SIGKILL. The same command resumes it" in err


@pytest.mark.slow(
    "two fresh starts and a page; what starts, signals and ends runs is tested on stubs"
)
def test_an_ablation_trains_each_variant_and_compares_them(tmp_path: Path) -> None:
    folder = tmp_path / "ablation_patterns"
    flags = [
        "--train-images",
        "100",
        "--batch-size",
        "50",
        "--epochs",
        "1",
        "--save-dir",
        str(tmp_path),
    ]
    process = start("ablate", *SMALL, *flags, "--variants", "baseline", "no-predictor")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and str(folder / "report" / "index.html") in out
    assert [len(rows(folder / name)) for name in ("baseline", "no-predictor")] == [1, 1]
    page = (folder / "report" / "index.html").read_text()
    assert "67.7 (table 1)" in page and "0.1 (table 1)" in page


@pytest.mark.slow(
    "three fresh starts and a page; signals to an ablation and resuming are quick tests each"
)
def test_an_ablation_told_to_stop_saves_and_goes_on_to_the_report(tmp_path: Path) -> None:
    flags = [
        "ablate",
        *SMALL,
        "--epochs",
        "5",
        "--variants",
        "baseline",
        "no-predictor",
        "--save-dir",
        str(tmp_path),
    ]
    folder = tmp_path / "ablation_patterns"
    held = tmp_path / "held"
    process = start_with_events_below(tmp_path, {9: [held]}, *flags)
    wait_for(process, held.exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and "1 of 2: baseline" in out
    assert err.count("\n") == 1 and "step 9" in err and "saved: the same command resumes it" in err

    process = start(*flags)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "resumed from" in out
    assert [len(rows(folder / name)) for name in ("baseline", "no-predictor")] == [5, 5]
    assert str(folder / "report" / "index.html") in out


@pytest.mark.slow(
    "three trainings and a page; that expand_seeds makes a run of each seed is in the quick suite"
)
def test_a_run_for_each_seed_is_the_run_of_that_seed(program: Program, tmp_path: Path) -> None:
    process = start(
        *SMALL, "--epochs", "2", "--seeds", "3", "4", "--save-dir", str(tmp_path / "runs")
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "mean of 2 seeds" in out
    folder = tmp_path / "runs" / "simsiam_patterns"
    alone = start(*SMALL, "--epochs", "2", "--seed", "4", "--save-dir", str(tmp_path / "alone"))
    alone.communicate()
    assert same_weights(folder / "seed_4", tmp_path / "alone" / "simsiam_patterns")
    assert not same_weights(folder / "seed_3", folder / "seed_4")


def test_a_run_for_each_seed_has_its_settings_and_a_folder_of_its_own() -> None:
    given = from_settings(Pretrain, {"seeds": (3, 4), "epochs": 2, "exp_name": "x"})
    runs = expand_seeds(given)
    assert [run.run.seed for run in runs] == [3, 4] and all(
        run.run.seeds == () and run.optimizer.epochs == 2 for run in runs
    )
    assert [run.run_dir for run in runs] == [given.run_dir / "seed_3", given.run_dir / "seed_4"]


@pytest.mark.slow(
    "a fresh start of the program; that a run which loses its parent saves is all that is new here"
)
def test_the_death_of_the_command_stops_its_run(tmp_path: Path) -> None:
    flags = [
        "ablate",
        *SMALL,
        "--epochs",
        "5",
        "--variants",
        "baseline",
        "--save-dir",
        str(tmp_path),
    ]
    held = tmp_path / "held"
    process = start_with_events_below(tmp_path, {9: [held]}, *flags)
    wait_for(process, held.exists)
    (child,) = children(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 240
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.01)  # between two polls
    assert (
        "step 9" in process.printed()[1]
        and "saved: the same command resumes it" in process.printed()[1]
    )


def test_a_run_whose_command_has_died_does_not_begin(tmp_path: Path) -> None:
    """The command was killed while its run was still importing torch."""
    gone, zombie = (subprocess.Popen(["true"]) for _ in range(2))
    gone.wait()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    where = ("--save-dir", str(tmp_path / "runs"))
    for launcher, status in (
        (gone.pid, 143),
        (zombie.pid, 143),
        (os.getpid(), 0),
    ):  # the last is a grandparent
        process = start(*SMALL, *where, "--dry-run", **{launch.PARENT_VARIABLE: str(launcher)})
        _, err = process.communicate()
        assert process.returncode == status, err
        assert (
            err.count("\n")
            == ("the command that started this run has ended" in err)
            == (status == 143)
        )
    zombie.wait()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["ablate", "--variants", "no-brain"], "there are baseline, no-stop-grad"),
        (["--seeds", "1", "-1"], "greater than or equal to 0"),
        (["--seeds", "1", "2", "--ckpt-dir", "x"], "drop --seeds"),
        pytest.param(
            ["--seeds", "1", "2", "--batch-size", "4000"],
            "more than the 200 train images",
            marks=pytest.mark.slow("a fresh start; that a run's mistake ends all is a quick test"),
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(flags: list[str], answer: str, tmp_path: Path) -> None:
    command = flags[:1] if flags[0] == "ablate" else []
    process = start(*command, *SMALL, "--save-dir", str(tmp_path / "runs"), *flags[len(command) :])
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1 and answer in err
    assert not (tmp_path / "runs").exists()


def test_runs_at_once_take_the_gpus_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert list_gpus() == ["4", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(list_gpus()) == torch.cuda.device_count()


def test_the_rate_of_a_batch_variant_follows_the_batch() -> None:
    given = from_settings(Ablate, {"learning_rate": 0.1, "batch_size": 256})
    assert make_variant(given, "batch-1024").optimizer.peak_rate == pytest.approx(0.4)
    assert make_variant(given, "no-bn").optimizer.peak_rate == 0.1


def test_what_the_paper_says_of_a_run_follows_from_its_settings() -> None:
    usual = {
        "stop_grad": True,
        "predictor": True,
        "fixed_predictor": False,
        "constant_predictor_lr": False,
    }
    usual |= {"heads_bn": "paper", "symmetric": True, "batch_size": 512}
    assert paper_says([usual, usual | {"predictor": False}], usual) == [
        "67.7 (table 1)",
        "0.1 (table 1)",
    ]
    assert paper_says([usual, usual | {"batch_size": 4096}], usual) == [
        "68.1 (table 2)",
        "64.0 (table 2)",
    ]
    both = usual | {"predictor": False, "stop_grad": False}
    assert paper_says([usual, both], usual) == ["67.7 (table 1)", None]
    assert paper_says([usual, usual], usual) == [None, None]
