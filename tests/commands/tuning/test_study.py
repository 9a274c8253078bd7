"""Workers that share a study, at moments that a test with processes rarely meets."""

import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning import handover
from simsiam.commands.tuning.endings import Outcome
from simsiam.commands.tuning.result import read_trial
from simsiam.commands.tuning.space import Range, Space
from simsiam.commands.tuning.study import Claim, Study

# The program hides what Optuna says about its heartbeat.
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),
]
SPACE: Space = {"weight_decay": Range(low=1e-5, high=1e-2, log=True)}


@pytest.mark.parametrize("database", [False, True])
def test_a_trial_that_ends_while_another_worker_looks_is_not_trained_again(
    database: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db" if database else None
    first, second = (Study(tmp_path / "study", url, seed) for seed in (0, 1))
    claim = first.claim(SPACE, None)
    assert claim is not None
    is_locked = handover.is_locked

    def end_and_look(path: Path) -> bool:
        first.end(claim, "finished", "", 50.0)
        return is_locked(path)

    monkeypatch.setattr(handover, "is_locked", end_and_look)
    another = second.claim(SPACE, None)
    assert another is not None and another.run_name != claim.run_name
    assert [outcome(trial) for trial in second.trials()] == ["finished", None]


def outcome(trial: FrozenTrial) -> str | None:
    return trial.user_attrs.get("outcome")


def test_two_machines_that_ask_at_once_do_not_exceed_the_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    first, second = (Study(tmp_path / name / "study", url, 0) for name in ("a", "b"))
    ask = first.optuna.ask
    claims: list[Claim | None] = []

    def ask_after_the_other(space: dict[str, BaseDistribution]) -> optuna.Trial:
        claims.append(second.claim(SPACE, max_trials=1))
        return ask(space)

    monkeypatch.setattr(first.optuna, "ask", ask_after_the_other)
    claims.append(first.claim(SPACE, max_trials=1))
    assert [claim is None for claim in claims] == [False, True]
    assert first.count_started() == second.count_started() == 1


def start_study(folder: Path) -> tuple[Study, Claim]:
    """Return a study with a trial that this process trains."""
    study = Study(folder, None, 0)
    claim = study.claim(SPACE, None)
    assert claim is not None
    return study, claim


def test_clock_of_another_machine_that_is_ahead_takes_no_trial_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, claim = start_study(tmp_path / "study")
    claim.lock_file.write_text("another-machine")
    claim.release()  # its lock does not reach this machine
    study.show_life(claim)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    another = study.claim(SPACE, None)
    assert another is not None and another.run_name != claim.run_name


def test_trial_that_ends_while_it_is_handed_back_is_not_queued(tmp_path: Path) -> None:
    study, claim = start_study(tmp_path / "study")
    (trial,) = study.trials()  # as it was before the end
    study.optuna.tell(claim.number, 50.0)
    handover.Handover(study.optuna, study.storage, tmp_path).hand_back(trial)
    study.hand_back(claim)
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE]


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_trial_that_a_user_has_ended_is_shown_as_stopped(state: TrialState, tmp_path: Path) -> None:
    study, claim = start_study(tmp_path / "study")
    assert not study.is_over(claim)
    value = 50.0 if state == TrialState.COMPLETE else None
    study.optuna.tell(claim.number, value, state)
    assert study.is_over(claim)
    with pytest.raises(UpdateFinishedTrialError):
        study.end(claim, "finished", "", 60.0)
    (record,) = [read_trial(trial) for trial in study.trials()]
    assert (record.outcome, record.score) == ("ended", value)


class Killed(BaseException):
    """Stands for a kill of this process."""


def test_trial_of_a_worker_that_died_before_its_first_sign_of_life_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    study = Study(tmp_path / "study", url, 0)
    trial = study.optuna.ask()  # here the worker was killed
    monkeypatch.setattr(handover, "SILENCE_SECONDS", 1000)
    assert study.claim(SPACE, 1) is None
    monkeypatch.setattr(handover, "SILENCE_SECONDS", 0)
    claim = study.claim(SPACE, 1)
    assert claim is not None and claim.run_name == f"trial_{trial.number:04}"
    # This trial has shown a sign of life, which a machine without a shared folder sees too.
    assert Study(tmp_path / "another machine" / "study", url, 0).claim(SPACE, 1) is None


def test_worker_that_is_taken_for_dead_as_it_asks_for_a_trial_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path / "study", None, 0)
    ask = study.optuna.ask

    def ask_and_lose(distributions: dict[str, BaseDistribution]) -> optuna.Trial:
        trial = ask(distributions)
        if trial.number == 0:
            study.optuna.tell(trial.number, state=TrialState.FAIL)
        return trial

    monkeypatch.setattr(study.optuna, "ask", ask_and_lose)
    claim = study.claim(SPACE, None)
    assert claim is not None and claim.number == 1


@pytest.mark.parametrize("database", [False, True])
@pytest.mark.parametrize(
    ("outcome", "state", "value"),
    [
        ("finished", TrialState.COMPLETE, 50.0),
        ("stopped", TrialState.PRUNED, 50.0),
        ("collapsed", TrialState.COMPLETE, 0.0),
        ("failed", TrialState.FAIL, None),
    ],
)
def test_end_that_a_killed_worker_has_begun_to_record_is_completed(
    outcome: Outcome,
    state: TrialState,
    value: float | None,
    database: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path}/search.db" if database else None
    study = Study(tmp_path / "study", url, 0)
    claim = study.claim(SPACE, None)
    assert claim is not None
    claim.trial.report(50.0, 4)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(study.optuna, "tell", kill)
        with pytest.raises(Killed):
            study.end(claim, outcome, "the reason", 50.0)
    claim.release()

    another = study.claim(SPACE, None)
    assert another is not None and another.run_name != claim.run_name
    ended, running = study.trials()
    assert (ended.state, ended.value) == (state, value)
    assert read_trial(ended).outcome == outcome and read_trial(ended).reason == "the reason"
    assert running.state == TrialState.RUNNING
