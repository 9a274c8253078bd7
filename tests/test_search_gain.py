"""The benchmark of what a search gains, on a study whose trials were not trained."""

from pathlib import Path

import pytest

from simsiam.commands.tuning.plan import make_plan
from simsiam.commands.tuning.study import Study
from simsiam.config.commands import Search
from tests.benchmarks.search_gain import count_epochs, describe, make_arms
from tests.commands.search_stub import search_flags
from utils.cli import parse


def test_arms_are_the_flags_the_best_trial_and_a_longer_run(tmp_path: Path) -> None:
    flags = [*search_flags(tmp_path)[1:], "--vary", "weight_decay"]
    plan = make_plan(parse(Search, flags, "test"))
    study = Study(plan.config.run_dir, None, 0)
    study.enqueue_start(plan.start_of_space())
    for score in (20.0, 30.0):
        claim = study.claim(plan.space, None)
        assert claim is not None
        for epoch in range(1, 5):
            claim.trial.report(score, epoch)
        study.end(claim, "finished", "", score)
    assert count_epochs(study) == 8
    arms = make_arms(plan, study, trial_epochs=4)
    second = study.trials()[1].params["weight_decay"]
    assert arms["given"]["weight_decay"] == arms["longer"]["weight_decay"] == 5e-4
    assert arms["best"]["weight_decay"] == pytest.approx(second, rel=1e-3)
    assert [arms[name]["epochs"] for name in ("given", "best", "longer")] == [8, 8, 16]
    # The final runs train on all images, and are measured on the test images.
    assert all(arm["held_out_images"] == 0 for arm in arms.values())


def test_table_has_means_and_gains() -> None:
    rows = [
        {"given_kNN": 30.0, "given_epochs": 8, "best_kNN": 33.0, "best_epochs": 8},
        {"given_kNN": 32.0, "given_epochs": 8, "best_kNN": 33.0, "best_epochs": 8},
    ]
    lines = describe(rows)
    assert "| the settings of the flags | 8 | 31.00 ± 1.41 | 30.00, 32.00 |" in lines
    assert "| gain of the best settings of the search | | 2.00 ± 1.41 | 3.00, 1.00 |" in lines
