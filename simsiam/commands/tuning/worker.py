"""Run the trials of a search in this process's slots: one on each GPU, or one at a time."""

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack

from optuna.exceptions import UpdateFinishedTrialError

from simsiam.commands import launch
from simsiam.commands.sweep import Slot, choose_slots
from simsiam.commands.tuning.endings import Outcome
from simsiam.commands.tuning.facts import check_facts, keep_fitted
from simsiam.commands.tuning.plan import Plan, choose_trial_epochs, describe_plan, make_plan
from simsiam.commands.tuning.result import describe_end, finish_search, format_minutes
from simsiam.commands.tuning.storage import HEARTBEAT_SECONDS
from simsiam.commands.tuning.study import Claim, Study, rung_of
from simsiam.commands.tuning.trial import TrialRun
from simsiam.config.commands import Search
from simsiam.config.search_options import DEFAULT_TRIALS
from utils.console import print_line
from utils.errors import RunError, StoppedBySignal, UserError, require
from utils.filesystem import check_writable

POLL_SECONDS = 0.2
MAX_SLOTS = 64
FAILURES_IN_A_ROW = 3  # that end the search: something is wrong with all trials


def run_search(config: Search) -> None:
    """Train trials until the time or their number is used up, then write the page.

    Raises:
        UserError: a flag does not fit the images, or the folder holds something else.
        RunError: several runs in a row have failed.
        StoppedBySignal: after the runs have saved themselves.
    """
    cluster = launch.cluster_environment()
    require(
        cluster is None or cluster.world_size() == 1,
        "search starts a process for each trial. Call it without torchrun or srun. "
        "Several calls of the same command share the trials.",
    )
    folder = config.run_dir
    check_writable(folder, "--save-dir")
    plan = make_plan(config)
    if config.run.dry_run:
        print_plan(plan)
        first = plan.start_of_space()
        for name, setting in plan.space.items():
            print_line(f"  {name}: {setting.describe()}; first {first[name]}")
        return

    study = Study(folder, config.search.storage, config.run.seed)
    plan = keep_fitted(plan, study.facts())
    print_plan(plan)
    worker = Worker(plan, study)
    worker.prepare()
    try:
        worker.work()
    except StoppedBySignal as stopped:
        worker.stop(stopped.number)
        finish_search(plan, study, worker.trial_epochs)
        raise StoppedBySignal(stopped.number, "; the same command continues the search") from None
    except BaseException:
        worker.stop(signal.SIGTERM)
        raise
    finish_search(plan, study, worker.trial_epochs)


def print_plan(plan: Plan) -> None:
    for line in describe_plan(plan):
        print_line(line)


class Worker:
    """Trains the trials that this process claims."""

    def __init__(self, plan: Plan, study: Study) -> None:
        self.plan = plan
        self.study = study
        self.options = plan.config.search
        self.slots: Sequence[Slot] = choose_slots(plan.config, MAX_SLOTS)
        self.running: dict[Slot, TrialRun] = {}
        self.trial_epochs = 0
        self.failures = 0
        self.max_trials = self.options.trials
        if self.max_trials is None and self.options.minutes is None:
            self.max_trials = DEFAULT_TRIALS
        self._cleanup = ExitStack()
        self._started = time.monotonic()
        self._used_before = 0.0  # seconds that earlier starts have used up
        self._ended_before = study.count_ended()  # trials
        self._last_sign = 0.0
        self._no_more = False  # whether `claim` has found all trials taken

    # ------------------------------------------------------------ time

    def used_seconds(self) -> float:
        return self._used_before + time.monotonic() - self._started

    def seconds_left(self) -> float | None:
        """Return the seconds that are left; None without --minutes."""
        if self.options.minutes is None:
            return None
        return 60 * self.options.minutes - self.used_seconds()

    def describe_time_left(self) -> str:
        """Return how long the search will go on, or "" if nothing is known about it.

        Without --minutes it is estimated from the trials of all workers that have ended since this
        one was started.
        """
        left = self.seconds_left()
        if left is not None:
            return f"; {format_minutes(left)} left"
        ended = self.study.count_ended()
        since_start = ended - self._ended_before
        if self.max_trials is None or since_start < 1 or ended >= self.max_trials:
            return ""
        seconds_per_trial = (time.monotonic() - self._started) / since_start
        return f"; about {format_minutes((self.max_trials - ended) * seconds_per_trial)} left"

    # ------------------------------------------------------------ the search

    def prepare(self) -> None:
        """Agree with other workers on the settings and the length of a trial."""
        study = self.study
        with study.lock():
            check_facts(study, self.plan)
            study.enqueue_start(self.plan.start_of_space())
            self._used_before = study.facts().get("seconds", 0.0)
            known = study.facts().get("trial_epochs")
            if known is None:
                known = choose_trial_epochs(self.plan, self.slots, self.seconds_left())
                # Another machine may have measured at the same time.
                known = study.facts().get("trial_epochs", known)
                study.set_fact("trial_epochs", known)
        wanted = self.options.trial_epochs
        require(
            wanted in (None, known),
            f"--trial-epochs {wanted}: this search has trials of {known} epochs. "
            "Drop the flag, or give another --exp-name.",
        )
        self.trial_epochs = known
        study.use_pruner(known)
        length = f"{known} of the planned {self.plan.base['epochs']} epochs"
        if rung_of(known) < known:
            length += f"; those that are behind after epoch {rung_of(known)} are stopped"
        print_line(f"  trials    {length}")

    def work(self) -> None:
        while True:
            self._fill_slots()
            if not self.running:
                return
            time.sleep(POLL_SECONDS)  # the handler of a signal raises StoppedBySignal here
            self._show_life()
            for trial in list(self.running.values()):
                self._look_after(trial)
            left = self.seconds_left()
            if left is not None and left <= 0:
                print_line("The time is used up.")
                self.stop(signal.SIGTERM)
                return

    def _fill_slots(self) -> None:
        for slot in self.slots:
            while slot not in self.running and self._may_start():
                self._start_trial(slot)

    def _may_start(self) -> bool:
        left = self.seconds_left()
        is_time_left = left is None or left > 0
        return is_time_left and not self._no_more

    def _start_trial(self, slot: Slot) -> None:
        """Start the next trial, if there is one and its values go together."""
        claim = self.study.claim(self.plan.space, self.max_trials)
        if claim is None:
            self._no_more = True
            return
        try:
            config = self.plan.make_trial(claim.trial.params, self.trial_epochs, claim.run_name)
        except UserError as error:
            # `check_space` has tried the ends of each range, but not all combinations of values.
            self._record_end(claim, "failed", str(error), None)
            self._count_failures("failed", str(error))
            return
        trial = TrialRun(claim, config, self.plan.judge.objective, slot)
        self.running[slot] = trial
        trial.start()

    def _look_after(self, trial: TrialRun) -> None:
        """Read what a run has written since the last look, and record its end if it has ended."""
        if trial.is_dropped:
            if not trial.is_training():
                del self.running[trial.slot]
            return
        try:
            trial.read_metrics()
            self._end_if_over(trial)
        except UpdateFinishedTrialError:
            self._drop(trial)

    def _drop(self, trial: TrialRun) -> None:
        """End the run of a trial that somebody else has ended."""
        trial.drop()
        print_line(
            f"trial {trial.claim.number} was ended from elsewhere: another worker took this one "
            "for dead, or somebody used Optuna. Its run stops here."
        )

    def _end_if_over(self, trial: TrialRun) -> None:
        end = trial.find_end()
        if end is None:
            return
        del self.running[trial.slot]
        outcome, reason = end
        self._record_end(trial.claim, outcome, reason, trial.score)
        self._count_failures(outcome, reason)

    def _record_end(self, claim: Claim, outcome: Outcome, reason: str, score: float | None) -> None:
        """Record how a trial has ended, and print a line about it."""
        self.study.end(claim, outcome, reason, score)
        line = describe_end(self.study, claim.number, self.plan, self.max_trials)
        print_line(line + self.describe_time_left())

    def _count_failures(self, outcome: Outcome, reason: str) -> None:
        """Raise RunError if the latest trials have all failed."""
        if outcome != "failed":
            self.failures = 0
            return
        self.failures += 1
        if self.failures == FAILURES_IN_A_ROW:
            raise RunError(f"{self.failures} runs in a row have failed. The last one: {reason}", 2)

    def _show_life(self) -> None:
        now = time.monotonic()
        if now - self._last_sign < HEARTBEAT_SECONDS:
            return
        self._last_sign = now
        self._note_time()
        for trial in self.running.values():
            if trial.is_dropped:
                continue
            if self.study.is_over(trial.claim):
                self._drop(trial)
            else:
                self.study.show_life(trial.claim)

    def _note_time(self) -> None:
        self.study.set_fact("seconds", round(self.used_seconds(), 1))

    def stop(self, number: int) -> None:
        """Let all runs save themselves and end.

        Trials that have ended by then are recorded, and the others are handed back.
        """
        for trial in self.running.values():
            trial.send_signal(number)
        for trial in self.running.values():
            try:
                end = trial.find_end_after_stop()
                if trial.is_dropped:
                    continue
                if end is None:
                    self.study.hand_back(trial.claim)
                else:
                    self._record_end(trial.claim, *end, trial.score)
            except UpdateFinishedTrialError:
                self._drop(trial)
        self.running.clear()
        self._note_time()
