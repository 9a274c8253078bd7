"""What a page about a search shows: its trials, and what they have in common. Knows no Optuna."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Outcomes of a trial, in the order of the legend, with their names on the page.
OUTCOMES = {
    "finished": "trained to the end",
    "stopped": "stopped early, because others were better",
    "collapsed": "collapsed",
    "diverged": "diverged (the loss was not finite)",
    "failed": "failed with an error",
    "ended": "ended from outside of the search",
    "running": "not finished",
}
LOST = ("collapsed", "diverged")  # outcomes that settings bring about
TRAINED = ("finished", "stopped", *LOST)  # outcomes that tell whether settings are safe
MIN_LOST = 2  # trials that must have collapsed before the page names a region
MIN_SEPARATION = 0.5  # of a region: share of lost trials inside it minus that of the other trials


@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    Attributes:
        values: of the settings, by their names.
        reason: why it ended, as the end of a sentence.
        score: the last one; None for a trial without one.
        curve: (epoch, score) of the epochs that have one.
        is_start: whether it has the settings of the flags.
    """

    number: int
    run_name: str
    values: dict[str, Any]
    outcome: str
    reason: str
    score: float | None
    curve: list[tuple[int, float]] = field(default_factory=list)
    is_start: bool = False


@dataclass(frozen=True)
class StudyRecord:
    """A search.

    Attributes:
        unit: of the scores, such as "kNN accuracy in %".
        settings: names of the settings that are varied, with what each of them is.
        logarithmic: names of the settings that are drawn by their logarithm.
        trial_epochs: length of a trial.
        rung: epoch after which trials may be stopped.
    """

    unit: str
    settings: dict[str, str]
    logarithmic: frozenset[str]
    trial_epochs: int
    rung: int
    trials: list[TrialRecord]

    @property
    def best(self) -> TrialRecord | None:
        """The best of the trials that were trained to their end; the first of equal ones."""
        finished = [trial for trial in self.trials if trial.outcome == "finished"]
        return max(finished, key=score_of, default=None)

    @property
    def start(self) -> TrialRecord | None:
        """The trial with the settings of the flags."""
        return next((trial for trial in self.trials if trial.is_start), None)

    def count(self, outcome: str) -> int:
        return sum(trial.outcome == outcome for trial in self.trials)


def score_of(trial: TrialRecord) -> float:
    return -math.inf if trial.score is None else trial.score


class Region(NamedTuple):
    """Values of a setting with which trials are lost more often than with the others.

    Attributes:
        lost, inside: trials in the region that were lost, and all trials in it.
        lost_outside, outside: the same of the other trials.
    """

    setting: str
    values: str  # such as "of 0.004 and more"
    lost: int
    inside: int
    lost_outside: int
    outside: int

    @property
    def separation(self) -> float:
        all_lost = self.lost + self.lost_outside
        all_healthy = self.inside + self.outside - all_lost
        return self.lost / all_lost - (self.inside - self.lost) / all_healthy


def find_region(study: StudyRecord) -> Region | None:
    """Return the values of one setting that tell lost trials best from the others.

    Returns:
        None if hardly any trial was lost, if all were, or if no setting tells them apart.
    """
    ended = [trial for trial in study.trials if trial.outcome in TRAINED]
    num_lost = sum(trial.outcome in LOST for trial in ended)
    if num_lost < MIN_LOST or num_lost == len(ended):
        return None
    regions: list[Region] = []
    for name in study.settings:
        known = [trial for trial in ended if name in trial.values]
        regions += _split_by(name, known)
    best = max(regions, key=lambda region: region.separation, default=None)
    if best is None or best.separation < MIN_SEPARATION:
        return None
    return best


def _split_by(name: str, trials: Sequence[TrialRecord]) -> list[Region]:
    """Return the regions at, above and below each value of a setting."""
    values = sorted({trial.values[name] for trial in trials}, key=str)
    if all(isinstance(value, int | float) for value in values):
        values.sort()
        ranges = [(f"of {value:.3g} and more", values[i:]) for i, value in enumerate(values)]
        ranges += [(f"of {v:.3g} and less", values[: i + 1]) for i, v in enumerate(values)]
    else:
        ranges = [(f"{value}", [value]) for value in values]
    num_lost = sum(trial.outcome in LOST for trial in trials)
    regions: list[Region] = []
    for text, members in ranges:
        inside = [trial for trial in trials if trial.values[name] in members]
        lost = sum(trial.outcome in LOST for trial in inside)
        others = len(trials) - len(inside)
        if 0 < len(inside) < len(trials) and 0 < num_lost < len(trials):
            regions.append(Region(name, text, lost, len(inside), num_lost - lost, others))
    return regions


def describe_region(study: StudyRecord) -> str:
    """Return which trials collapsed and what they have in common, in sentences."""
    num_lost = sum(study.count(outcome) for outcome in LOST)
    if not any(trial.outcome in TRAINED for trial in study.trials):
        return "No trial has a result yet, so nothing is known about collapse."
    if num_lost == 0:
        return "No trial collapsed: all of these settings are safe in this respect."
    trials = "trial" if num_lost == 1 else "trials"
    text = f"{num_lost} of {len(study.trials)} {trials} collapsed or diverged."
    region = find_region(study)
    if region is None:
        return f"{text} No single setting tells them from the others."
    return (
        f"{text} With a {region.setting} {region.values}, {region.lost} of {region.inside} did; "
        f"of the other {region.outside} trials {region.lost_outside} did. Keep out of this region."
    )
