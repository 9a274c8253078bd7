"""What a search has found: lines for the terminal while it runs and at its end, and the page."""

from simsiam.commands.tuning.plan import Plan
from simsiam.commands.tuning.study import Study


def format_minutes(seconds: float) -> str:
    return f"{max(0.0, seconds) / 60:.0f} min"


def describe_end(study: Study, number: int, plan: Plan, max_trials: int | None) -> str:
    return f"trial {number}: {study.optuna.trials[number].user_attrs}"


def finish_search(plan: Plan, study: Study, trial_epochs: int) -> None:
    pass
