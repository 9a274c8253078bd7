"""What a search has found: lines for the terminal, and the page about it."""

import math
import shlex
from datetime import datetime
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from simsiam.commands.tuning.answer import (
    describe_answer,
    describe_doubts,
    format_score,
    shows_no_clear_gain,
)
from simsiam.commands.tuning.objective import UNITS
from simsiam.commands.tuning.plan import Plan
from simsiam.commands.tuning.space import Choices
from simsiam.commands.tuning.storage import JOURNAL, hide_password
from simsiam.commands.tuning.study import Study, rung_of
from simsiam.commands.tuning.values import DESCRIPTIONS
from simsiam.config.commands import pretrain_command
from simsiam.report.page import render_page
from simsiam.report.study import StudyRecord, TrialRecord, describe_region, score_of
from simsiam.report.study_charts import describe_outcomes, render_study
from utils.console import format_count, print_line
from utils.filesystem import write_text

PAGE = "study.html"
GENERATOR = "SimSiam search"
FIGURES = "figures"
MIN_TRIALS_FOR_IMPORTANCE = 10


def format_minutes(seconds: float) -> str:
    minutes = max(0.0, seconds) / 60
    return f"{minutes:.0f} min" if minutes >= 2 else f"{60 * minutes:.0f} s"


# ---------------------------------------------------------------- records


def read_study(plan: Plan, study: Study, trial_epochs: int) -> StudyRecord:
    """Return what the page shows of a study."""
    names = list(plan.space)
    logarithmic: list[str] = []
    for name, setting in plan.space.items():
        if not isinstance(setting, Choices) and setting.log:
            logarithmic.append(name)
    return StudyRecord(
        unit=UNITS[plan.judge.objective],
        settings={name: DESCRIPTIONS.get(name, "") for name in names},
        logarithmic=frozenset(logarithmic),
        trial_epochs=trial_epochs,
        rung=rung_of(trial_epochs),
        trials=[read_trial(trial) for trial in study.trials() if trial.params],
    )


def read_trial(trial: FrozenTrial) -> TrialRecord:
    curve = sorted(trial.intermediate_values.items())
    score = trial.value
    if score is None and curve:
        score = curve[-1][1]
    outcome = "running"
    if trial.state.is_finished():
        outcome = trial.user_attrs.get("outcome", "ended")  # by Optuna's tools, without an outcome
    return TrialRecord(
        number=trial.number,
        run_name=trial.user_attrs.get("run", ""),
        values=trial.params,
        outcome=outcome,
        reason=trial.user_attrs.get("reason", ""),
        score=score,
        curve=curve,
        is_start=bool(trial.user_attrs.get("start")),
    )


def find_importances(study: Study) -> dict[str, float]:
    """Return how much each setting tells the best trials from all; empty for too few trials.

    Trials that were stopped count with their last score, so that none of them is ignored.
    """
    ended = create_scored_study(study)
    if len(ended.trials) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    importances = get_param_importances(ended, evaluator=PedAnovaImportanceEvaluator())
    return {name: value for name, value in importances.items() if math.isfinite(value)}


def create_scored_study(study: Study) -> optuna.Study:
    """Return a copy of a study in memory, in which all trials with a score are complete."""
    copy = optuna.create_study(direction="maximize")
    for trial in study.trials():
        score = read_trial(trial).score
        if trial.state.is_finished() and score is not None:
            copy.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=score,
                    params=trial.params,
                    distributions=trial.distributions,
                )
            )
    return copy


# ---------------------------------------------------------------- text


def describe_end(study: Study, number: int, plan: Plan, max_trials: int | None) -> str:
    """Return the line about a trial that has ended."""
    trials = {trial.number: read_trial(trial) for trial in study.trials()}
    trial = trials[number]
    ended = study.count_ended()
    progress = f"{ended} trials" if max_trials is None else f"{ended} of {max_trials} trials"
    score = "no score"
    if trial.score is not None:
        score = format_score(trial.score, plan)
    line = f"{progress}: trial {number} {score}, {trial.outcome}"
    if trial.outcome != "finished":
        line += f" ({trial.reason})"
    finished = [other for other in trials.values() if other.outcome == "finished"]
    if finished:
        best = max(finished, key=score_of)
        line += f"; best {score_of(best):.2f} (trial {best.number})"
    return line


def choose_commands(record: StudyRecord, plan: Plan) -> dict[str, str]:
    """Return command lines of the planned run, the advised one first, by what they stand for.

    Where the search has found no clear gain, the first one has the settings that were given: they
    may do as well, and they were not chosen for the luck of a single run.
    """
    best = record.best
    start = record.start
    if best is None:
        return {}
    advised = {"the best settings": best}
    if start is not None and shows_no_clear_gain(record, plan):
        advised = {"the settings that you gave": start, "the settings of the best trial": best}
    commands: dict[str, str] = {}
    for name, trial in advised.items():
        commands[name] = pretrain_command(final_settings(trial, plan), " \\\n    ")
    return commands


def final_settings(trial: TrialRecord, plan: Plan) -> dict[str, Any]:
    """Return the settings of the planned run with the values of a trial, on all images."""
    settings = dict(plan.base)
    if trial.values != {name: plan.start[name] for name in trial.values}:
        settings = plan.trial_settings(trial.values, plan.base["epochs"])
    given = plan.given
    suffix = "given" if trial.is_start else "best"
    settings.update(
        held_out_images=given.data.held_out_images,
        test_images=given.data.test_images,
        knn_k=given.monitor.knn_k,
        exp_name=f"{plan.config.run_dir.name}_{suffix}",
        version=None,
    )
    return settings


# ---------------------------------------------------------------- the end


def finish_search(plan: Plan, study: Study, trial_epochs: int) -> None:
    """Print what the search has found, and write the page."""
    record = read_study(plan, study, trial_epochs)
    answer = describe_answer(record, plan)
    commands = choose_commands(record, plan)
    importances = find_importances(study)
    folder = plan.config.run_dir
    page = render_page(
        "study.html.j2",
        title=f"SimSiam: search {folder.name}",
        generator=GENERATOR,
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        outcomes=describe_outcomes(record),
        answer=answer,
        commands=commands,
        region=describe_region(record),
        study=record,
        charts=render_study(record, importances, folder / FIGURES),
        doubts=describe_doubts(record, plan),
        folder=folder,
        heads=[record.unit, "epochs", *record.settings, "how it ended"],
        rows=make_rows(record),
    )
    write_text(folder / PAGE, page)

    print_line("")
    for sentence in answer:
        print_line(sentence)
    print_line(describe_region(record))
    if importances:
        listing = ", ".join(f"{name} {100 * value:.0f} %" for name, value in importances.items())
        print_line(f"Importance: {listing}")
    for name, command in commands.items():
        print_line(f"\nThe planned run with {name}:\n\n{command}")
    print_line("")
    running = sum(trial.state == TrialState.RUNNING for trial in study.trials())
    if running:
        print_line(
            f"Other processes still train {format_count(running, 'trial')}. If one of them has "
            "died, the same command takes up its trial: at once, or after 5 minutes if it ran on "
            "another machine."
        )
    print_line(f"page      {folder / PAGE}")
    url = plan.config.search.storage
    storage = str(folder / JOURNAL) if url is None else hide_password(url)
    command = f"optuna-dashboard {shlex.quote(storage)}"
    print_line(f"more      pip install optuna-dashboard; {command}")


def make_rows(record: StudyRecord) -> dict[str, list[str]]:
    """Return the table of all trials, the best one first."""
    rows: dict[str, list[str]] = {}
    for trial in sorted(record.trials, key=order_of_trials):
        name = f"trial {trial.number}"
        if trial.is_start:
            name += " (your settings)"
        score = "-" if trial.score is None else f"{trial.score:.2f}"
        epochs = str(trial.curve[-1][0]) if trial.curve else "0"
        values = [format_value(trial.values.get(setting, "-")) for setting in record.settings]
        rows[name] = [score, epochs, *values, trial.outcome]
    return rows


def order_of_trials(trial: TrialRecord) -> tuple[bool, float]:
    return trial.outcome != "finished", -score_of(trial)


def format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
