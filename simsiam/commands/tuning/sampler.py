"""Optuna's TPE, with random numbers that depend on the seed and the number of the trial alone.

A search that was killed and continued would otherwise draw its first trials again, and so would
the second of two processes.
"""

from collections.abc import Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from simsiam.commands.tuning.space import Choices, Space
from simsiam.config.commands import PRETRAIN_DEFAULTS

RANDOM_TRIALS = 8  # before the sampler makes use of what it has seen
TRIAL_NUMBERS = 2**16  # a seed has random numbers of its own for each trial


class SeededSampler(BaseSampler):
    """See the top of this file."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._inner = self._make(0)

    def _make(self, number: int) -> TPESampler:
        seed = (self.seed * TRIAL_NUMBERS + number) % 2**32
        return TPESampler(multivariate=True, n_startup_trials=RANDOM_TRIALS, seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner = self._make(trial.number)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._inner.after_trial(study, trial, state, values)


def make_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's form of the ranges."""
    distributions: dict[str, BaseDistribution] = {}
    for name, setting in space.items():
        if isinstance(setting, Choices):
            distributions[name] = CategoricalDistribution(setting.choices)
        elif type(PRETRAIN_DEFAULTS.get(name)) is int:  # whole numbers, as those of --out-dim
            distributions[name] = IntDistribution(
                int(setting.low), int(setting.high), log=setting.log
            )
        else:
            distributions[name] = FloatDistribution(setting.low, setting.high, log=setting.log)
    return distributions
