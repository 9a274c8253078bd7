"""The study of a search: Optuna's record of its trials, which several processes may share.

Each trial that is being trained has a lock file, which its worker holds. If a worker dies, its
trials are handed back: they wait in Optuna's queue, and the next worker resumes their runs.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import SuccessiveHalvingPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning.endings import Outcome, record_end
from simsiam.commands.tuning.handover import Handover
from simsiam.commands.tuning.sampler import SeededSampler, make_distributions
from simsiam.commands.tuning.space import Space
from simsiam.commands.tuning.storage import find_trial_id, name_run, open_storage
from utils.errors import require
from utils.filesystem import lock_folder

STUDY_LOCK = "study.lock"
MAX_WAIT_FOR_START = 10  # seconds until a study that another machine has created has a trial
LOCKS = "locks"  # folder with a file for each trial that has been started here

# There is one rung, at half of a trial, where the better half of the trials is trained further.
# At a quarter, their order says much less about that at their end: see docs/search.md.
MIN_RUNG = 2  # epochs, after which a collapsed run differs from one that learns slowly
REDUCTION_FACTOR = 2


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
        self._handover = Handover(self.optuna, self.storage, folder / LOCKS)

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
            self._handover.hand_back_abandoned()
            if max_trials is not None and self.count_started() >= max_trials:
                return None
            trial = self._ask(space)
            if max_trials is not None and self._is_surplus(trial, max_trials):
                self.optuna.tell(trial, state=TrialState.FAIL)  # without outcome: it does not count
                return None
            run_name = name_run(trial)
            lock_file = self._handover.lock_file(trial.number)
            lock_file.write_text(socket.gethostname())
            lock = ExitStack()
            lock.enter_context(lock_folder(lock_file, f"trial {trial.number} is taken"))
            claim = Claim(trial, run_name, lock_file, lock)
            self.show_life(claim)
            return claim

    def _is_surplus(self, trial: optuna.Trial, max_trials: int) -> bool:
        """Return whether another machine has started the last one of `max_trials` meanwhile.

        The lock of the folder does not reach a machine that shares only the database.
        """
        up_to_it = [other for other in self.trials() if other.number <= trial.number]
        started = sum(other.state != TrialState.WAITING for other in up_to_it)
        return started > max_trials

    def _ask(self, space: Space) -> optuna.Trial:
        """Return the next trial, whose run has a name."""
        while True:
            # If the clock of another machine that uses the database is ahead, it may take this
            # process for dead before the first sign of life, and hand the trial back.
            with suppress(UpdateFinishedTrialError):
                trial = self.optuna.ask(make_distributions(space))
                trial.set_user_attr("run", name_run(trial))
                return trial

    def show_life(self, claim: Claim) -> None:
        """Tell other machines that the worker of a trial is alive."""
        os.utime(claim.lock_file)
        if isinstance(self.storage, RDBStorage):
            self.storage.record_heartbeat(self._find_id(claim))

    def is_over(self, claim: Claim) -> bool:
        """Return whether a trial has ended, although its worker has not called `end`.

        Another worker took this one for dead, or somebody has ended the trial by Optuna's tools.
        """
        return self.storage.get_trial(self._find_id(claim)).state.is_finished()

    def _find_id(self, claim: Claim) -> int:
        return find_trial_id(self.optuna, self.storage, claim.number)

    def end(self, claim: Claim, outcome: Outcome, reason: str, score: float | None) -> None:
        """Record how a trial has ended.

        Args:
            reason: a sentence for the page.
            score: the last one that was reported; None for a trial without one.

        Raises:
            UpdateFinishedTrialError: somebody else has ended the trial.
        """
        record_end(self.optuna, claim.trial, outcome, reason, score)
        claim.release()

    def hand_back(self, claim: Claim) -> None:
        """Let another worker, or the next start of the command, resume a trial."""
        with self.lock():
            for trial in self._handover.running():
                if trial.number == claim.number:
                    self._handover.hand_back(trial)
        claim.release()
