"""The fractional factorial: its design, its effects, and interruptions of the script."""

import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam.config.commands import Pretrain
from tests.benchmarks.factorial import UNFINISHED, parse_args
from tests.benchmarks.factorial_design import (
    DEFINING_WORDS,
    DEVIATION,
    LETTERS,
    contrast,
    describe_confirmation,
    describe_results,
    estimate_effects,
    find_aliases,
    make_design,
)
from tests.benchmarks.factorial_jobs import make_jobs
from tests.helpers import ROOT
from utils.cli import parse

RUNS = 16

PAIRS = ["".join(pair) for pair in itertools.combinations(LETTERS, 2)]


def column(word: str, runs: int = RUNS) -> np.ndarray:
    """Return the contrast of a word in each of the first runs: -1 or +1."""
    return np.array([contrast(levels, word) for levels in make_design()[:runs]])


def test_the_design_is_balanced_and_orthogonal() -> None:
    mains = np.array([column(letter) for letter in LETTERS])
    assert (mains.sum(axis=1) == 0).all()
    assert (mains @ mains.T == RUNS * np.eye(len(LETTERS))).all()
    assert len({tuple(levels.values()) for levels in make_design()}) == RUNS


def test_the_design_has_resolution_4() -> None:
    words = []
    for length in range(1, len(LETTERS) + 1):
        words += ["".join(word) for word in itertools.combinations(LETTERS, length)]
    constant = [word for word in words if abs(column(word).sum()) == RUNS]
    assert sorted(constant) == sorted(DEFINING_WORDS)
    assert min(len(word) for word in constant) == 4
    assert all(column(word).sum() == RUNS for word in DEFINING_WORDS)
    for letter in LETTERS:
        assert all(column(letter) @ column(pair) == 0 for pair in PAIRS)


def test_the_groups_of_aliases_are_complete() -> None:
    groups = find_aliases()
    assert sorted(itertools.chain(*groups)) == PAIRS
    assert len(groups) == 7
    assert ("AB", "CE") in groups  # initialisation x rate
    for pair, other_pair in itertools.combinations(PAIRS, 2):
        are_aliases = column(pair) @ column(other_pair) == RUNS
        are_grouped = any(pair in group and other_pair in group for group in groups)
        assert are_aliases == are_grouped


def test_the_first_eight_runs_determine_all_main_effects() -> None:
    mains = np.array([column(letter, 8) for letter in LETTERS])
    assert (mains @ mains.T == 8 * np.eye(len(LETTERS))).all()
    assert (mains.sum(axis=1) == 0).all()


def configs(monkeypatch: pytest.MonkeyPatch) -> list[Pretrain]:
    """Return the configurations of the 16 runs."""
    monkeypatch.setattr(sys, "argv", ["factorial.py", "--root", "runs"])
    return [parse(Pretrain, list(job.flags), "main.py") for job in make_jobs(*parse_args())]


def test_all_runs_have_the_same_steps_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = set()
    for config in configs(monkeypatch):
        epochs, batch = config.optimizer.epochs, config.optimizer.batch_size
        phases = [tuple(map(int, phase.split(":"))) for phase in config.method.image_schedule]
        small_epochs = sum(count for _, count in phases)
        phases.append((32, epochs - small_epochs))
        steps_per_epoch = 45_000 // batch
        views_per_epoch = steps_per_epoch * batch * config.method.views
        views_by_size = [(size, count * views_per_epoch) for size, count in phases]
        budgets.add((epochs * steps_per_epoch, *views_by_size))
    assert len(budgets) == 1


def test_runs_differ_only_in_the_factors_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = configs(monkeypatch)
    assert len({config.run.seed for config in runs}) == RUNS
    assert all(config.data.held_out_images == 5000 for config in runs)
    for levels, config in zip(make_design(), runs, strict=True):
        high = {letter for letter, level in levels.items() if level > 0}
        assert (config.network.conv_init == "torch") == ("A" in high)
        assert (config.optimizer.learning_rate == 0.08) == ("B" in high)
        assert (config.augmentation.grayscale == 0.1) == ("C" in high)
        assert (config.network.heads_bn == "hidden") == ("D" in high)
        assert (config.optimizer.predictor_lr_scale < 1) == ("E" in high)
        assert config.optimizer.constant_predictor_lr == ("E" not in high)
        assert (config.method.views == 4) == ("F" in high)


def make_results(n: int, **effects: float) -> dict[int, dict[str, Any]]:
    """Return the results of the first n runs if accuracy has these effects and no noise."""
    results = {}
    for number, levels in enumerate(make_design()[:n], 1):
        accuracy = 60.0
        for word, effect in effects.items():
            accuracy += effect / 2 * contrast(levels, word)
        results[number] = {
            "levels": levels,
            "kNN_accuracy": accuracy,
            "train_loss": -0.8,
            "z_std": 0.9,
            "rankme": 40.0,
            "seconds": 1000.0,
        }
    return results


def test_planted_effects_are_found_with_their_errors() -> None:
    for n in (8, 16):
        results = make_results(n, A=2.0, F=-1.0)
        estimates = estimate_effects(list(results.values()), LETTERS)
        assert estimates is not None
        assert [effect for effect, _ in estimates] == pytest.approx([2, 0, 0, 0, 0, -1])
        assert [error for _, error in estimates] == pytest.approx([2 * DEVIATION / n**0.5] * 6)


def test_six_runs_do_not_determine_the_effects() -> None:
    assert estimate_effects(list(make_results(6).values()), LETTERS) is None


def test_an_interaction_changes_only_its_own_row() -> None:
    table = describe_results(make_results(RUNS, A=2.0, CE=3.0))
    printed = dict(re.findall(r"^  (\w.*?) +([+-]\d\.\d\d) \+-", table, re.MULTILINE))
    groups = [" = ".join(group) for group in find_aliases()]
    expected = dict.fromkeys([*LETTERS, *groups], 0.0) | {"A": 2.0, "AB = CE": 3.0}
    assert {name: float(effect) for name, effect in printed.items()} == expected


def test_a_collapsed_run_is_named_and_left_out() -> None:
    results = make_results(RUNS, A=2.0)
    results[3] |= {"kNN_accuracy": 10.0, "z_std": 0.01, "rankme": 1.0}
    table = describe_results(results)
    assert "Runs [3] have collapsed" in table
    assert "A   +2.00" in table


def test_a_run_without_its_metrics_counts_with_its_accuracy() -> None:
    results = make_results(RUNS, A=2.0)
    results[3] = {name: results[3][name] for name in ("levels", "kNN_accuracy")}
    assert "A   +2.00" in describe_results(results)


def test_a_confirmation_compares_two_recipes_with_the_same_fresh_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["factorial.py", "--root", "runs", "--confirm", "BE"])
    jobs = make_jobs(*parse_args())
    results: dict[int, dict[str, Any]] = {}
    for job in jobs:
        config = parse(Pretrain, list(job.flags), "main.py")
        assert config.run.seed not in range(101, 117)
        assert config.optimizer.learning_rate == (0.08 if job.levels["B"] > 0 else 0.06)
        results[job.number] = {
            "levels": job.levels,
            "kNN_accuracy": 59.0 + 2 * job.levels["B"] + config.run.seed % 2,
        }
    assert [job.levels["E"] for job in jobs] == [0, 1] * 4
    table = describe_confirmation(results)
    assert "today's recipe    59.50 +- 0.58" in table and "difference        +2.00" in table


@pytest.mark.slow("three starts of Python with torch, each by the script itself")
def test_a_killed_script_leaves_no_process_and_continues(tmp_path: Path) -> None:
    flags = ["--root", str(tmp_path), "--epochs", "80", "--only", "1", "--nice", "0"]
    flags_of_main = "--dataset patterns --train-images 400 --held-out-images 100 --knn-k 20"
    script = "tests/benchmarks/factorial.py"
    command = [sys.executable, script, *flags, "--", *shlex.split(flags_of_main)]
    log = tmp_path / "run_01.log"
    deadline = time.monotonic() + 300

    def wait_for(text: str) -> None:
        while not log.exists() or text not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between two looks at the file

    # When the script is killed, its run saves and ends by itself.
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for("epoch  1/40")
    process.kill()
    process.wait()
    wait_for("stopped by SIGTERM")

    # A signal to the script stops its run, which was resumed.
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for("resumed from")
    process.terminate()
    assert process.wait(120) == UNFINISHED

    done = subprocess.run(command, cwd=ROOT, timeout=250)
    assert done.returncode == 0
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result["run"] == 1
    assert result["epochs"] == 40

    # A finished run is not repeated.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (0, "")
