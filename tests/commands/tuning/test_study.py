"""Workers that share a study, at moments that a test with processes rarely meets."""

import time
from pathlib import Path

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning import handover
from simsiam.commands.tuning.result import read_trial
from simsiam.commands.tuning.space import Range, Space
from simsiam.commands.tuning.study import Claim, Study

SPACE: Space = {"weight_decay": Range(low=1e-5, high=1e-2, log=True)}


# The program hides what Optuna says about its heartbeat.
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
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
    assert (record.outcome, record.score) == ("stopped", value)
