"""tests/benchmarks/factorial.py: the design, its effects, and interruptions."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam.config.commands import Pretrain
from tests.benchmarks.factorial import make_jobs, parse_args
from tests.benchmarks.factorial_design import (
    DEFINING_WORDS,
    DEVIATION,
    LETTERS,
    contrast,
    describe_results,
    estimate_effects,
    find_aliases,
    make_design,
)
from tests.helpers import ROOT
from utils.cli import parse

PAIRS = ["".join(pair) for pair in itertools.combinations(LETTERS, 2)]


def column(word: str, runs: int = 16) -> np.ndarray:
    return np.array([contrast(levels, word) for levels in make_design()[:runs]])


def test_the_design_is_balanced_and_orthogonal() -> None:
    mains = np.array([column(letter) for letter in LETTERS])
    assert (mains.sum(axis=1) == 0).all()
    assert (mains @ mains.T == 16 * np.eye(6)).all()
    assert len({tuple(levels.values()) for levels in make_design()}) == 16


def test_the_design_has_resolution_4() -> None:
    words = ["".join(w) for n in range(1, 7) for w in itertools.combinations(LETTERS, n)]
    constant = [word for word in words if abs(column(word).sum()) == 16]
    assert sorted(constant) == sorted(DEFINING_WORDS) and min(map(len, constant)) == 4
    assert all(column(word).sum() == 16 for word in DEFINING_WORDS)
    assert all(column(letter) @ column(pair) == 0 for letter in LETTERS for pair in PAIRS)


def test_the_groups_of_aliases_are_complete() -> None:
    groups = find_aliases()
    assert sorted(itertools.chain(*groups)) == PAIRS and len(groups) == 7
    assert ("AB", "CE") in groups  # initialisation x rate
    for one, other in itertools.combinations(PAIRS, 2):
        together = any(one in group and other in group for group in groups)
        assert (column(one) @ column(other) == 16) == together


def test_the_first_eight_runs_determine_all_main_effects() -> None:
    mains = np.array([column(letter, 8) for letter in LETTERS])
    assert (mains @ mains.T == 8 * np.eye(6)).all() and (mains.sum(axis=1) == 0).all()


def configs(monkeypatch: pytest.MonkeyPatch) -> list[Pretrain]:
    monkeypatch.setattr(sys, "argv", ["factorial.py", "--root", "runs"])
    return [parse(Pretrain, list(job.flags), "main.py") for job in make_jobs(*parse_args())]


def test_all_runs_have_the_same_steps_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = set()
    for config in configs(monkeypatch):
        epochs, batch = config.optimizer.epochs, config.optimizer.batch_size
        phases = [tuple(map(int, phase.split(":"))) for phase in config.method.image_schedule]
        phases.append((32, epochs - sum(count for _, count in phases)))
        steps = 45_000 // batch
        views = [(size, count * steps * batch * config.method.views) for size, count in phases]
        budgets.add((epochs * steps, *views))
    assert len(budgets) == 1


def test_runs_differ_in_the_factors_and_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = configs(monkeypatch)
    assert len({config.run.seed for config in runs}) == 16
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


def results(n: int, **effects: float) -> dict[int, dict[str, Any]]:
    found = {}
    for number, levels in enumerate(make_design()[:n], 1):
        accuracy = 60 + sum(effect / 2 * contrast(levels, word) for word, effect in effects.items())
        found[number] = {"levels": levels, "kNN_accuracy": accuracy, "z_std": 0.9, "rankme": 40.0}
        found[number] |= {"train_loss": -0.8, "seconds": 1000.0}
    return found


def test_planted_effects_are_found_with_their_errors() -> None:
    for n in (8, 16):
        found = estimate_effects([*results(n, A=2.0, F=-1.0).values()], LETTERS)
        assert found is not None
        assert [effect for effect, _ in found] == pytest.approx([2, 0, 0, 0, 0, -1])
        assert [error for _, error in found] == pytest.approx([2 * DEVIATION / n**0.5] * 6)
    assert estimate_effects([*results(6).values()], LETTERS) is None


def test_an_interaction_moves_its_own_row_only() -> None:
    table = describe_results(results(16, A=2.0, CE=3.0))
    shown = dict(re.findall(r"^  (\w.*?) +([+-]\d\.\d\d) \+-", table, re.MULTILINE))
    groups = [" = ".join(group) for group in find_aliases()]
    expected = dict.fromkeys([*LETTERS, *groups], 0.0) | {"A": 2.0, "AB = CE": 3.0}
    assert {name: float(effect) for name, effect in shown.items()} == expected


def test_a_collapsed_run_is_named_and_left_out() -> None:
    found = results(16, A=2.0)
    found[3] |= {"kNN_accuracy": 10.0, "z_std": 0.01, "rankme": 1.0}
    table = describe_results(found)
    assert "Runs [3] have collapsed" in table and "A   +2.00" in table


@pytest.mark.slow("three starts of Python with torch, each by the script itself")
def test_a_killed_script_leaves_no_process_and_continues(tmp_path: Path) -> None:
    flags = [
        "--root",
        str(tmp_path),
        "--epochs",
        "80",
        "--only",
        "1",
        "--",
        "--dataset",
        "patterns",
    ]
    flags += ["--train-images", "400", "--held-out-images", "100", "--knn-k", "20"]
    command = [sys.executable, "tests/benchmarks/factorial.py", *flags]
    log = tmp_path / "run_01.log"

    def wait_for(text: str, ends: float) -> None:
        while text not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < ends
            time.sleep(0.05)

    ends = time.monotonic() + 120
    script = subprocess.Popen(command, cwd=ROOT)
    wait_for("epoch  1/40", ends)
    script.kill()
    script.wait()
    wait_for("stopped by SIGTERM", ends)
    script = subprocess.Popen(command, cwd=ROOT)
    wait_for("resumed from", ends)
    os.kill(script.pid, signal.SIGTERM)
    assert script.wait(120) == 3
    assert subprocess.run(command, cwd=ROOT, timeout=250).returncode == 0
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["run"] == 1 and json.loads(line)["epochs"] == 40
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert (printed.returncode, printed.stdout) == (0, "")  # a finished run is not repeated
