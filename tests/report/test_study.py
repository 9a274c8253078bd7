"""What a page about a search says of its trials."""

from pathlib import Path
from typing import Any

import pytest

from simsiam.report.study import StudyRecord, TrialRecord, describe_region, find_region
from simsiam.report.study_charts import NAMES, STYLES, kind_of, render_study


def make_study(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(
        unit="kNN accuracy in %",
        settings={"weight_decay": "", "batch_size": ""},
        logarithmic=frozenset({"weight_decay"}),
        trial_epochs=4,
        rung=2,
        trials=list(trials),
    )


def make_trial(number: int, outcome: str, score: float | None, **values: Any) -> TrialRecord:
    values = {"weight_decay": 1e-4, "batch_size": 64} | values
    curve = [] if score is None else [(1, score / 2), (2, score)]
    return TrialRecord(
        number=number,
        run_name=f"trial_{number:04}",
        values=values,
        outcome=outcome,
        reason="",
        score=score,
        curve=curve,
        is_start=number == 0,
    )


def test_region_of_collapse_is_found() -> None:
    healthy = [make_trial(i, "finished", 40.0, weight_decay=10**-i) for i in range(3, 6)]
    lost = [make_trial(9, "collapsed", 0.0, weight_decay=0.004, batch_size=32)]
    lost += [make_trial(10, "diverged", 0.0, weight_decay=0.008)]
    study = make_study(*healthy, *lost)
    region = find_region(study)
    assert region is not None
    assert (region.setting, region.values) == ("weight_decay", "of 0.004 and more")
    assert (region.lost, region.inside, region.lost_outside, region.outside) == (2, 2, 0, 3)
    assert "With a weight_decay of 0.004 and more, 2 of 2 did" in describe_region(study)


def test_region_can_be_at_the_low_end() -> None:
    trials = [make_trial(i, "finished", 40.0, batch_size=64 * i) for i in range(1, 4)]
    trials += [make_trial(i, "collapsed", 0.0, batch_size=i) for i in (8, 16)]
    region = find_region(make_study(*trials))
    assert region is not None and region.values == "of 16 and less"


def test_collapse_that_no_setting_explains_has_no_region() -> None:
    trials = [make_trial(i, "finished", 40.0) for i in range(3)]
    trials += [make_trial(i, "collapsed", 0.0) for i in range(3, 6)]
    study = make_study(*trials)
    assert find_region(study) is None
    assert "No single setting" in describe_region(study)


def test_study_without_collapse_says_so() -> None:
    assert "No trial collapsed" in describe_region(make_study(make_trial(0, "finished", 1.0)))


@pytest.mark.parametrize("outcome", ["running", "failed"])
def test_nothing_is_said_of_trials_without_a_result(outcome: str) -> None:
    study = make_study(make_trial(0, outcome, None))
    assert "nothing is known" in describe_region(study)
    assert NAMES[kind_of(make_trial(1, outcome, 30.0), study)] == "not trained to the end"


def test_best_is_a_trial_that_was_trained_to_its_end() -> None:
    study = make_study(
        make_trial(0, "finished", 30.0),
        make_trial(1, "stopped", 50.0),
        make_trial(2, "failed", None),
    )
    assert study.best is study.trials[0]


def test_charts_show_trials_of_all_outcomes(tmp_path: Path) -> None:
    study = make_study(
        make_trial(0, "finished", 30.0),
        make_trial(1, "finished", 40.0, batch_size=32, weight_decay=1e-3),
        make_trial(2, "finished", 35.0, batch_size=128),
        make_trial(3, "stopped", 10.0),
        make_trial(4, "collapsed", 0.0, weight_decay=1e-2),
        make_trial(5, "failed", None),
        make_trial(6, "running", None),
    )
    assert {kind_of(trial, study) for trial in study.trials} == set(STYLES)
    charts = render_study(study, {"weight_decay": 0.75, "batch_size": 0.25}, tmp_path)
    assert list(charts) == ["curves", "parallel", "values", "importance"]
    assert {file.stem for file in tmp_path.glob("*.png")} == set(charts)
    assert "trial 1 40" in charts["curves"]["alt"]


def test_study_without_scores_has_no_charts(tmp_path: Path) -> None:
    assert render_study(make_study(make_trial(0, "running", None)), {}, tmp_path) == {}
