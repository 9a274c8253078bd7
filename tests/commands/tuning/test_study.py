"""Workers that share a study, at moments that a test with processes rarely meets."""

from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from simsiam.commands.tuning import study as study_module
from simsiam.commands.tuning.space import Range, Space
from simsiam.commands.tuning.study import Study

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
    is_locked = study_module.is_locked

    def end_and_look(path: Path) -> bool:
        first.end(claim, "finished", "", 50.0)
        return is_locked(path)

    monkeypatch.setattr(study_module, "is_locked", end_and_look)
    another = second.claim(SPACE, None)
    assert another is not None and another.run_name != claim.run_name
    assert [outcome(trial) for trial in second.trials()] == ["finished", None]


def outcome(trial: FrozenTrial) -> str | None:
    return trial.user_attrs.get("outcome")
