"""How a trial ends, and how Optuna's record says so.

Optuna needs several writes for it. If a worker dies between them, another one does the rest.
"""

from contextlib import suppress
from typing import Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from simsiam.commands.tuning.objective import COLLAPSED_SCORE

Outcome = Literal["finished", "stopped", "collapsed", "diverged", "failed"]
STATES: dict[str, TrialState] = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "collapsed": TrialState.COMPLETE,  # with the lowest score, from which the sampler learns
    "diverged": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
}
LOST = ("collapsed", "diverged")


def record_end(
    study: optuna.Study, trial: optuna.Trial, outcome: Outcome, reason: str, score: float | None
) -> None:
    """Record how a trial has ended.

    Args:
        reason: a sentence for the page.
        score: the last one that was reported; None for a trial without one.

    Raises:
        UpdateFinishedTrialError: somebody else has ended the trial.
    """
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("outcome", outcome)
    _tell(study, trial.number, outcome, score)


def complete_ends(study: optuna.Study) -> None:
    """Do the rest for workers that died in `record_end`."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        outcome = trial.user_attrs.get("outcome")
        if outcome is None:
            continue
        score = None
        if trial.last_step is not None:
            score = trial.intermediate_values[trial.last_step]
        _tell(study, trial.number, outcome, score)


def _tell(study: optuna.Study, number: int, outcome: str, score: float | None) -> None:
    """Tell Optuna the end of a trial whose outcome is recorded."""
    state = STATES[outcome]
    value = None
    if outcome in LOST:
        value = COLLAPSED_SCORE
    elif state == TrialState.COMPLETE:
        value = score
    # Another worker may do the same at this moment, in `complete_ends`.
    with suppress(UpdateFinishedTrialError):
        study.tell(number, value, state, skip_if_finished=True)
