"""Several runs by one command: `ablate`, and `--seeds`."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from simsiam.commands import launch, sweep
from simsiam.commands.sweep import expand_seeds, list_gpus, make_variant
from simsiam.config.ablations import find_paper_results
from simsiam.config.commands import Ablate, Pretrain
from tests.at_steps import run_with_child_script, start_with_events_below
from tests.helpers import SMALL, Program, read_rows, same_weights
from tests.processes import Started, child_pids, start, wait_for
from utils.errors import RunError, UserError
from utils.run_dir import RunDirectory
from utils.settings import from_settings

# A stub of main.py: it ends with the status that $STATUSES has for its run, or waits for a signal.
STUB = """
import json, os, signal, sys, time
stopping = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# A signal that arrives before `sigwait` stays pending until then.
signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
flags = dict(flag.split("=", 1) for flag in sys.argv[1:] if "=" in flag)
name, folder = flags["--exp-name"], flags["--save-dir"]
statuses = json.loads(os.environ["STATUSES"])
open(f"{folder}/{name}.pid", "w").write(str(os.getpid()))
if name in statuses:
    sys.exit(statuses[name])
number = signal.sigwait(stopping)
time.sleep(0.2)  # stands for saving, for which the command has to wait
print(f"main.py: {name} stopped by {number.name}", file=sys.stderr)
sys.exit(128 + number)
"""


def start_ablation_of_stubs(tmp_path: Path, variants: list[str], **statuses: int) -> Started:
    """Start `ablate` with STUB in place of the runs; `statuses` by the name of the variant."""
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "ablation_patterns").mkdir()
    flags = ["ablate", *SMALL, "--variants", *variants, "--save-dir", str(tmp_path)]
    return Started(
        run_with_child_script, [str(tmp_path / "stub.py"), *flags], STATUSES=json.dumps(statuses)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_current_run_and_no_other_run_starts(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start_ablation_of_stubs(tmp_path, ["baseline", "no-predictor"])
    wait_for(process, (tmp_path / "ablation_patterns" / "baseline.pid").exists)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and "1 of 2: baseline" in out
    assert err == f"main.py: baseline stopped by {number.name}\n"
    assert not (tmp_path / "ablation_patterns" / "no-predictor.pid").exists()


def test_other_runs_train_after_one_has_collapsed_or_diverged(
    tmp_path: Path,
) -> None:
    variants = ["no-bn", "no-predictor", "baseline"]
    process = start_ablation_of_stubs(
        tmp_path, variants, **{"no-bn": 3, "no-predictor": 4, "baseline": 0}
    )
    out, err = process.communicate()
    assert process.returncode == 4 and err.count("\n") == 1 and "3 of 3: baseline" in out
    assert "runs that collapsed or diverged: no-bn (status 3), no-predictor (status 4)" in err


def test_user_error_in_a_run_ends_the_command_with_its_status(tmp_path: Path) -> None:
    process = start_ablation_of_stubs(tmp_path, ["baseline", "no-predictor"], baseline=2)
    assert process.communicate()[1] == "" and process.returncode == 2  # the run has printed why
    assert not (tmp_path / "ablation_patterns" / "no-predictor.pid").exists()


def test_killed_run_gives_one_line_of_error(tmp_path: Path) -> None:
    process = start_ablation_of_stubs(tmp_path, ["baseline", "no-predictor"])
    pid = tmp_path / "ablation_patterns" / "baseline.pid"
    wait_for(process, lambda: pid.exists() and pid.read_text() != "")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL and err.count("\n") == 1
    advice = "the same command resumes it and trains the runs that are left"
    assert f"baseline was ended by SIGKILL; {advice}" in err


def test_advice_after_a_kill_says_to_leave_out_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_and_kill(*_: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "60"])
        process.kill()
        return process

    monkeypatch.setattr(sweep, "start_process", start_and_kill)
    config = from_settings(Pretrain, {"overwrite": True, "save_dir": str(tmp_path)})
    with pytest.raises(RunError, match="the same command without --overwrite resumes it"):
        sweep.run_processes({"seed_7": config}, [None])


@pytest.mark.slow(
    "two fresh starts and a page; starting, signals and exit statuses are tested with stubs"
)
def test_ablation_trains_each_variant_and_compares_them(tmp_path: Path) -> None:
    folder = tmp_path / "ablation_patterns"
    short = ["--train-images", "100", "--batch-size", "50", "--epochs", "1"]
    variants = ["--variants", "baseline", "no-predictor"]
    process = start("ablate", *SMALL, *short, *variants, "--save-dir", str(tmp_path))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and str(folder / "report" / "index.html") in out
    assert [len(read_rows(folder / name)) for name in ("baseline", "no-predictor")] == [1, 1]
    page = (folder / "report" / "index.html").read_text()
    assert "67.7 (table 1)" in page and "0.1 (table 1)" in page


@pytest.mark.slow(
    "three fresh starts and a page; signals and resuming have quick tests of their own"
)
def test_stopped_ablation_saves_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    variants = ["--variants", "baseline", "no-predictor"]
    flags = ["ablate", *SMALL, "--epochs", "5", *variants, "--save-dir", str(tmp_path)]
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
    assert [len(read_rows(folder / name)) for name in ("baseline", "no-predictor")] == [5, 5]
    assert str(folder / "report" / "index.html") in out


@pytest.mark.slow("three trainings and a page; expand_seeds has a quick test")
def test_run_of_a_sweep_equals_the_run_with_that_seed_alone(
    program: Program, tmp_path: Path
) -> None:
    flags = [*SMALL, "--epochs", "2"]
    process = start(*flags, "--seeds", "3", "4", "--save-dir", str(tmp_path / "runs"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and "mean of 2 seeds" in out
    folder = tmp_path / "runs" / "simsiam_patterns"
    alone = start(*flags, "--seed", "4", "--save-dir", str(tmp_path / "alone"))
    alone.communicate()
    assert same_weights(folder / "seed_4", tmp_path / "alone" / "simsiam_patterns")
    assert not same_weights(folder / "seed_3", folder / "seed_4")


def test_run_for_a_seed_has_the_settings_and_its_own_folder() -> None:
    config = from_settings(Pretrain, {"seeds": (3, 4), "epochs": 2, "exp_name": "x"})
    runs = expand_seeds(config)
    assert [run.run.seed for run in runs] == [3, 4]
    assert all(run.run.seeds == () and run.optimizer.epochs == 2 for run in runs)
    assert [run.run_dir for run in runs] == [config.run_dir / "seed_3", config.run_dir / "seed_4"]


@pytest.mark.slow("a fresh start of the program")
def test_run_saves_and_ends_when_its_command_is_killed(tmp_path: Path) -> None:
    variants = ["--variants", "baseline"]
    flags = ["ablate", *SMALL, "--epochs", "5", *variants, "--save-dir", str(tmp_path)]
    held = tmp_path / "held"
    process = start_with_events_below(tmp_path, {9: [held]}, *flags)
    wait_for(process, held.exists)
    (child,) = child_pids(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 240
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.01)  # between two polls
    _, err = process.printed()
    assert "step 9" in err and "saved: the same command resumes it" in err


def test_run_whose_command_was_killed_does_not_start(tmp_path: Path) -> None:
    """A kill of the command may come while its run is still importing torch."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    zombie = subprocess.Popen(["true"])  # it has ended, but nobody has asked for its status
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)

    def dry_run(launcher: int) -> tuple[int | None, str]:
        """Return the exit status and the stderr of a run that a process with this id started."""
        flags = [*SMALL, "--save-dir", str(tmp_path / "runs"), "--dry-run"]
        process = start(*flags, **{launch.PARENT_VARIABLE: str(launcher)})
        _, err = process.communicate()
        return process.returncode, err

    for launcher in (ended.pid, zombie.pid):
        status, err = dry_run(launcher)
        assert status == 128 + signal.SIGTERM
        assert err.count("\n") == 1 and "the command that started this run has ended" in err
    # This process is the grandparent of the run, and still there.
    assert dry_run(os.getpid()) == (0, "")
    zombie.wait()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["ablate", "--variants", "no-brain"], "There are baseline, no-stop-grad"),
        (["ablate", "--ckpt-dir", "x"], "--ckpt-dir resumes one run"),
        (["--seeds", "1", "-1"], "greater than or equal to 0"),
        (["--seeds", "1", "2", "--ckpt-dir", "x"], "Drop --ckpt-dir or --seeds"),
        pytest.param(
            ["--seeds", "1", "2", "--batch-size", "4000"],
            "more than the 200 train images",
            marks=pytest.mark.slow("a fresh start; a user error in a run is tested with stubs"),
        ),
    ],
)
def test_user_error_gives_one_line(flags: list[str], answer: str, tmp_path: Path) -> None:
    command = flags[:1] if flags[0] == "ablate" else []
    process = start(*command, *SMALL, "--save-dir", str(tmp_path / "runs"), *flags[len(command) :])
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1 and answer in err
    assert not (tmp_path / "runs").exists()


def test_folder_that_a_later_run_cannot_use_is_noticed_before_the_first_run(
    program: Program, tmp_path: Path
) -> None:
    other = RunDirectory(tmp_path / "runs" / "simsiam_patterns" / "seed_1")
    other.create({"settings": {"seed": 1, "epochs": 7}, "resolved": {}})
    status, out, err = program(*SMALL, "--epochs", "1", "--seeds", "0", "1")
    assert (status, out) == (2, "") and f"{other.path} holds a run with other settings" in err
    assert not (other.path.parent / "seed_0").exists()


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("4,5", ["4", "5"]),
        ("0,1,", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("-1", []),
        ("GPU-8932f937, MIG-1a2b", ["GPU-8932f937", "MIG-1a2b"]),
    ],
)
def test_list_gpus_returns_what_cuda_sees(
    visible: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_gpus() == gpus


def test_list_gpus_returns_all_gpus_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(list_gpus()) == torch.cuda.device_count()


def test_learning_rate_of_a_variant_is_proportional_to_its_batch_size() -> None:
    config = from_settings(Ablate, {"learning_rate": 0.1, "batch_size": 256})
    assert make_variant(config, "batch-1024").optimizer.peak_rate == pytest.approx(0.4)
    assert make_variant(config, "no-bn").optimizer.peak_rate == 0.1
    auto = {"learning_rate": "auto", "base_learning_rate": 0.1, "batch_size": 256}
    variant = make_variant(from_settings(Ablate, auto), "batch-1024")
    assert variant.optimizer.peak_rate == pytest.approx(0.4)
    # The baseline may get a batch of 128 with a rate of 0.1, so a quarter for 128 would be wrong.
    small = from_settings(Ablate, {"learning_rate": 0.1, "train_images": 4000})
    with pytest.raises(UserError, match="Give its --batch-size too"):
        make_variant(small, "batch-128")


def test_paper_result_of_a_run_follows_from_its_settings() -> None:
    baseline = {
        "stop_grad": True,
        "predictor": True,
        "fixed_predictor": False,
        "constant_predictor_lr": False,
        "heads_bn": "paper",
        "symmetric": True,
        "batch_size": 512,
    }
    no_predictor = {**baseline, "predictor": False}
    large_batch = {**baseline, "batch_size": 4096}
    two_changes = {**no_predictor, "stop_grad": False}
    results = find_paper_results([baseline, no_predictor], baseline)
    assert results == ["67.7 (table 1)", "0.1 (table 1)"]
    results = find_paper_results([baseline, large_batch], baseline)
    assert results == ["68.1 (table 2)", "64.0 (table 2)"]
    assert find_paper_results([baseline, two_changes], baseline) == ["67.7 (table 1)", None]
    assert find_paper_results([baseline, baseline], baseline) == [None, None]
