"""The answer of a search says how much it is worth."""

import json
from pathlib import Path

import pytest

from simsiam.commands.tuning.answer import describe_answer
from simsiam.commands.tuning.plan import make_plan
from simsiam.config.commands import Search
from simsiam.report.study import StudyRecord, TrialRecord
from tests.commands.search_stub import search_flags
from utils.cli import parse


@pytest.mark.parametrize(("score", "learned"), [(32.0, False), (80.0, True)])
def test_trials_that_hardly_learn_are_named(score: float, learned: bool, tmp_path: Path) -> None:
    plan = make_plan(parse(Search, search_flags(tmp_path)[1:], "test"))
    run = plan.config.run_dir / "trial_0001"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"kNN_untrained": 30.0}))
    trial = TrialRecord(1, run.name, {}, "finished", "", score, [(4, score)], is_start=False)
    record = StudyRecord("kNN accuracy in %", {}, frozenset(), 4, 2, [trial])
    answer = " ".join(describe_answer(record, plan))
    assert ("hardly learn" in answer) == (not learned)
    assert ("Before training, kNN accuracy was 30.00 %" in answer) == (not learned)
