"""Trials whose worker has died: how others notice, and put them into Optuna's queue again."""

import socket
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning.storage import SILENCE_SECONDS, find_trial_id, requeue
from utils.filesystem import is_locked

CLOCK = "clock"  # a file without content, whose time is that of the file system


class Handover:
    """Hands trials back, so that another worker or the next start of the command resumes them.

    Args:
        study: of Optuna.
        storage: of the study.
        locks: folder with a file for each trial that has been started here.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, locks: Path) -> None:
        self.study = study
        self.storage = storage
        self.locks = locks

    def lock_file(self, number: int) -> Path:
        return self.locks / f"trial_{number:04}"

    def hand_back(self, trial: FrozenTrial) -> None:
        """Put a running trial into the queue again, unless somebody has ended it meanwhile."""
        try:
            trial_id = find_trial_id(self.study, self.storage, trial.number)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return
        requeue(self.study, trial)

    def hand_back_abandoned(self) -> None:
        """Hand back all trials whose workers have died."""
        if isinstance(self.storage, RDBStorage):
            fail_stale_trials(self.study)
        for trial in self.running():
            if self._is_abandoned(trial):
                self.hand_back(trial)

    def running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        """Return whether the worker of a running trial has died."""
        lock_file = self.lock_file(trial.number)
        if not lock_file.exists():
            # With a database, the worker may have another folder, and Optuna's heartbeat decides.
            # Otherwise the worker, which held the study's lock, died before it made the file.
            return not isinstance(self.storage, RDBStorage)
        if is_locked(lock_file):
            return False
        if lock_file.read_text() == socket.gethostname():
            return True
        # A lock on a network file system may not reach another machine.
        return self._now() - lock_file.stat().st_mtime > SILENCE_SECONDS

    def _now(self) -> float:
        """Return the time of the file system, from which the clock of this machine may differ."""
        clock = self.locks / CLOCK
        clock.touch()
        return clock.stat().st_mtime
