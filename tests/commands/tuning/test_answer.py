"""The answer of a search says how much it is worth."""

import json
from pathlib import Path

import pytest

from simsiam.commands.tuning.answer import describe_answer
from simsiam.commands.tuning.plan import make_plan
from simsiam.commands.tuning.result import choose_commands
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


@pytest.mark.parametrize(
    ("score", "names"),
    [
        (50.0, ["the settings that you gave", "the settings of the best trial"]),
        (90.0, ["the best settings"]),
    ],
)
def test_without_a_clear_gain_the_given_settings_come_first(
    score: float, names: list[str], tmp_path: Path
) -> None:
    plan = make_plan(parse(Search, search_flags(tmp_path)[1:], "test"))
    start = TrialRecord(0, "trial_0000", plan.start_of_space(), "finished", "", 48.0, is_start=True)
    values = {**plan.start_of_space(), "base_learning_rate": 0.123}
    best = TrialRecord(1, "trial_0001", values, "finished", "", score)
    record = StudyRecord("kNN accuracy in %", {}, frozenset(), 4, 2, [start, best])
    commands = choose_commands(record, plan)
    assert list(commands) == names
    assert ("no clear gain" in " ".join(describe_answer(record, plan))) == (len(names) == 2)
    assert ["0.123" in command for command in commands.values()] == [False, True][-len(names) :]
    for command in commands.values():
        assert "--test-images=16" in command and "held-out" not in command
