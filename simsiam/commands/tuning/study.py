"""The study of a search: Optuna's record of its trials, which several processes may share.

Each trial that is being trained has a lock file, which its worker holds. If a worker dies, its
trials are handed back: they wait in Optuna's queue, and the next worker resumes their runs.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import SuccessiveHalvingPruner
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning.sampler import SeededSampler, make_distributions
from simsiam.commands.tuning.space import Space
from simsiam.commands.tuning.storage import (
    SILENCE_SECONDS,
    name_run,
    open_storage,
    requeue,
)
from utils.errors import require
from utils.filesystem import is_locked, lock_folder

STUDY_LOCK = "study.lock"
MAX_WAIT_FOR_START = 10  # seconds until a study that another machine has created has a trial
LOCKS = "locks"  # folder with a file for each trial that has been started here

# There is one rung, at half of a trial, where the better half of the trials is trained further.
# At a quarter, their order says much less about that at their end: see docs/search.md.
MIN_RUNG = 2  # epochs, after which a collapsed run differs from one that learns slowly
REDUCTION_FACTOR = 2

Outcome = Literal["finished", "stopped", "collapsed", "diverged", "failed"]
STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "collapsed": TrialState.COMPLETE,  # with the lowest score, from which the sampler learns
    "diverged": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
}


def rung_of(trial_epochs: int) -> int:
    """Return the epoch after which a trial may be stopped."""
    return max(MIN_RUNG, math.ceil(trial_epochs / 2))


class Claim:
    """A trial that this process trains. No other process does while `release` is not called."""

    def __init__(
        self, trial: optuna.Trial, run_name: str, lock_file: Path, lock: ExitStack
    ) -> None:
        self.trial = trial
        self.run_name = run_name
        self.lock_file = lock_file
        self._lock = lock

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def is_start(self) -> bool:
        """Whether the trial has the settings of the flags."""
        return bool(self.trial.user_attrs.get("start"))

    def release(self) -> None:
        self._lock.close()


class Study:
    """A study in a folder.

    Args:
        folder: of the search.
        url: of a database; None for a journal in the folder.
        seed: of the sampler.

    Raises:
        UserError: the folder or the database cannot be used.
    """

    def __init__(self, folder: Path, url: str | None, seed: int) -> None:
        self.folder = folder
        is_free = not folder.exists() or not any(folder.iterdir())
        require(
            is_free or (folder / STUDY_LOCK).exists(),
            f"{folder} holds something that is not a search. Give another --exp-name.",
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCKS).mkdir(exist_ok=True)
        (folder / STUDY_LOCK).touch()
        with self.lock():
            self.storage = open_storage(folder, url)
            name = folder.name
            sampler = SeededSampler(seed)
            try:
                self.optuna = optuna.create_study(
                    study_name=name, storage=self.storage, sampler=sampler, direction="maximize"
                )
                self._is_new = True
            except DuplicatedStudyError:
                self.optuna = optuna.load_study(
                    study_name=name, storage=self.storage, sampler=sampler
                )
                self._is_new = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this folder from changing the study."""
        with lock_folder(self.folder / STUDY_LOCK, "", wait=True):
            yield

    # ------------------------------------------------------------ facts that all workers share

    def facts(self) -> dict[str, Any]:
        return self.optuna.user_attrs

    def set_fact(self, name: str, value: Any) -> None:
        self.optuna.set_user_attr(name, value)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials, without those that were handed on to another worker."""
        return [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL or "outcome" in trial.user_attrs
        ]

    def count_ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.trials())

    def count_started(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    # ------------------------------------------------------------ trials

    def enqueue_start(self, values: Mapping[str, Any]) -> None:
        """Let the first trial have the settings of the flags, unless there are trials already.

        The lock of the folder does not reach another machine that uses the same database. So the
        process that has created the study goes first, and others wait for it.
        """
        if isinstance(self.storage, RDBStorage) and not self._is_new:
            ends = time.monotonic() + MAX_WAIT_FOR_START
            while not self._has_trials() and time.monotonic() < ends:
                time.sleep(0.1)  # between two looks at the database
        if not self._has_trials():
            self.optuna.enqueue_trial(dict(values), user_attrs={"start": True})

    def _has_trials(self) -> bool:
        return bool(self.optuna.get_trials(deepcopy=False))

    def use_pruner(self, trial_epochs: int) -> None:
        self.optuna.pruner = SuccessiveHalvingPruner(
            min_resource=rung_of(trial_epochs), reduction_factor=REDUCTION_FACTOR
        )

    def claim(self, space: Space, max_trials: int | None) -> Claim | None:
        """Return the next trial: one that waits in the queue, or a new one.

        Returns:
            None if there are `max_trials` already that have ended or are being trained.
        """
        with self.lock():
            self._hand_back_abandoned()
            if max_trials is not None and self.count_started() >= max_trials:
                return None
            trial = self.optuna.ask(make_distributions(space))
            run_name = name_run(trial)
            trial.set_user_attr("run", run_name)
            lock_file = self._lock_file(trial.number)
            lock_file.write_text(socket.gethostname())
            lock = ExitStack()
            lock.enter_context(lock_folder(lock_file, f"trial {trial.number} is taken"))
            claim = Claim(trial, run_name, lock_file, lock)
            self.show_life(claim)
            return claim

    def show_life(self, claim: Claim) -> None:
        """Tell other machines that the worker of a trial is alive."""
        os.utime(claim.lock_file)
        if isinstance(self.storage, RDBStorage):
            study_id = self.storage.get_study_id_from_name(self.folder.name)
            self.storage.record_heartbeat(
                self.storage.get_trial_id_from_study_id_trial_number(study_id, claim.number)
            )

    def end(self, claim: Claim, outcome: Outcome, reason: str, score: float | None) -> None:
        """Record how a trial has ended.

        Args:
            reason: a sentence for the page.
            score: the last one; None for a trial without one.
        """
        claim.trial.set_user_attr("outcome", outcome)
        claim.trial.set_user_attr("reason", reason)
        state = STATES[outcome]
        value = score if state == TrialState.COMPLETE else None
        if outcome in ("collapsed", "diverged"):
            value = 0.0
        self.optuna.tell(claim.trial, value, state, skip_if_finished=True)
        claim.release()

    def hand_back(self, claim: Claim) -> None:
        """Let another worker, or the next start of the command, resume a trial."""
        with self.lock():
            for trial in self._running():
                if trial.number == claim.number:
                    self._requeue(trial)
        claim.release()

    def _lock_file(self, number: int) -> Path:
        return self.folder / LOCKS / f"trial_{number:04}"

    def _hand_back_abandoned(self) -> None:
        if isinstance(self.storage, RDBStorage):
            fail_stale_trials(self.optuna)
        abandoned = [trial for trial in self._running() if self._is_abandoned(trial)]
        # A worker records how its trial has ended before it releases the lock. So a trial that has
        # ended since the first look is not running at the second one.
        still_running = {trial.number for trial in self._running()}
        for trial in abandoned:
            if trial.number in still_running:
                self._requeue(trial)

    def _running(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        """Return whether the worker of a running trial has died."""
        lock_file = self._lock_file(trial.number)
        if not lock_file.exists():
            # With a database, the worker may have another folder, and Optuna's heartbeat decides.
            # Otherwise the worker, which held the study's lock, died before it made the file.
            return not isinstance(self.storage, RDBStorage)
        if is_locked(lock_file):
            return False
        if lock_file.read_text() == socket.gethostname():
            return True
        # A lock on a network file system may not reach another machine.
        return time.time() - lock_file.stat().st_mtime > SILENCE_SECONDS

    def _requeue(self, trial: FrozenTrial) -> None:
        self.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        requeue(self.optuna, trial)


def check_facts(study: Study, wanted: Mapping[str, Any]) -> None:
    """Write the facts that all workers must share, or compare them with those of an earlier start.

    Raises:
        UserError: the folder holds a search with other settings.
    """
    known = study.facts().get("settings")
    if known is None:
        study.set_fact("settings", dict(wanted))
        return
    names = sorted(known.keys() | wanted.keys())
    changed = [name for name in names if known.get(name) != wanted.get(name)]
    changes = ", ".join(f"{name} {known.get(name)}, now {wanted.get(name)}" for name in changed)
    require(
        not changed,
        f"{study.folder} holds a search with other settings ({changes}). Give another --exp-name.",
    )
