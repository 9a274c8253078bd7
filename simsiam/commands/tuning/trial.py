"""A trial that is being trained: its process, and the score that its metrics.jsonl gives."""

import signal
import subprocess
from pathlib import Path
from typing import Any

from simsiam.commands.sweep import Slot, start_process
from simsiam.commands.tuning.objective import Kind, has_collapsed, score_rows
from simsiam.commands.tuning.plan import last_line
from simsiam.commands.tuning.study import Claim, Outcome
from simsiam.config.commands import Pretrain
from utils.console import format_count
from utils.errors import COLLAPSED_STATUS, NOT_FINITE_STATUS
from utils.filesystem import is_locked
from utils.run_dir import RunDirectory

MAX_RESTARTS = 2  # of a run that something else has killed


class TrialRun:
    """The run of a trial, in a process of its own.

    Attributes:
        score: after the latest epoch that has one; None before.
        epoch: the latest one.
        ending: why this process has sent SIGTERM to the run; None while the run may go on.
        is_dropped: whether somebody else has ended the trial. Then the run is only to end.
    """

    def __init__(self, claim: Claim, config: Pretrain, kind: Kind, slot: Slot) -> None:
        self.claim = claim
        self.config = config
        self.kind: Kind = kind
        self.slot = slot
        self.run = RunDirectory(config.run_dir)
        self.log = Path(config.run.save_dir) / f"{claim.run_name}.log"
        self.score: float | None = None
        self.epoch = 0
        self.ending: tuple[Outcome, str] | None = None
        self.is_dropped = False
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def epochs(self) -> int:
        return self.config.optimizer.epochs

    def start(self) -> None:
        """Start the process, unless that of a worker that has died is still saving the run.

        `find_end` tries again then.
        """
        if self.run.path.exists() and is_locked(self.run.path):
            return
        with self.log.open("a") as output:
            self.process = start_process(self.config, self.slot, output)

    def read_metrics(self) -> None:
        """Report the scores of new epochs to the study, and stop the run if it falls behind.

        Raises:
            UpdateFinishedTrialError: somebody else has ended the trial.
        """
        rows: list[dict[str, Any]] = self.run.rows()
        for count in range(self.epoch + 1, len(rows) + 1):
            self.epoch = count
            score = score_rows(rows[:count], self.kind)
            if score is not None:
                self.score = score
                self.claim.trial.report(score, count)
            if has_collapsed(rows[:count]):  # also while a run that was stopped saves itself
                self.stop("collapsed", f"the representation collapsed in epoch {count}")
            # The first trial is what the others are compared with, so it runs to the end.
            may_stop = self.ending is None and count < self.epochs and not self.claim.is_start
            if may_stop and score is not None and self.claim.trial.should_prune():
                epochs = format_count(count, "epoch")
                self.stop("stopped", f"behind the better half of the trials after {epochs}")

    def stop(self, outcome: Outcome, reason: str) -> None:
        """Ask the run to save itself and end."""
        if self.ending is None:
            self.send_signal(signal.SIGTERM)
        self.ending = (outcome, reason)

    def drop(self) -> None:
        """Ask the run to end, whose trial somebody else has ended."""
        self.is_dropped = True
        self.send_signal(signal.SIGTERM)
        self.claim.release()

    def is_training(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send_signal(self, number: int) -> None:
        if self.process is not None:  # a process that has ended gets no signal
            self.process.send_signal(number)

    def find_end(self) -> tuple[Outcome, str] | None:
        """Return how the trial has ended and why; None if it is still training, or again.

        Raises:
            UpdateFinishedTrialError: somebody else has ended the trial.
        """
        if self.process is None:
            self.start()
            return None
        status = self.process.poll()
        if status is None:
            return None
        self.read_metrics()  # the rows since the last look
        if self.ending is not None:
            return self.ending
        if status == 0 and self.score is not None:
            return "finished", f"trained for all {self.epoch} epochs"
        if status == COLLAPSED_STATUS:
            return "collapsed", f"the representation collapsed in epoch {self.epoch + 1}"
        if status == NOT_FINITE_STATUS:
            return "diverged", f"the loss was not finite in epoch {self.epoch + 1}"
        was_killed = status < 0 or status > 128
        if was_killed and self.restarts < MAX_RESTARTS:
            self.restarts += 1
            self.process = None
            return None
        return "failed", f"the run failed: {last_line(self.log)}"

    def find_end_after_stop(self) -> tuple[Outcome, str] | None:
        """Wait, and return how the trial had ended before a signal ended it; None if it had not.

        Raises:
            UpdateFinishedTrialError: somebody else has ended the trial.
        """
        if self.process is None:
            return None
        has_ended_by_itself = self.process.wait() in (0, COLLAPSED_STATUS, NOT_FINITE_STATUS)
        if self.is_dropped:
            return None
        if has_ended_by_itself or self.ending is not None:
            return self.find_end()
        return None
