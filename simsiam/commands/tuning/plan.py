"""What is the same for all trials of a search: images, objective, ranges and length."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simsiam.commands.fit import fit_to_data
from simsiam.commands.pretrain import load_data
from simsiam.commands.sweep import Slot, start_process
from simsiam.commands.tuning.judging import (
    Judge,
    choose_judge,
    describe_judge,
    hold_out_images,
)
from simsiam.commands.tuning.space import Space, check_space, choose_space
from simsiam.commands.tuning.values import apply_values, scale_schedule, start_values
from simsiam.config.commands import PRETRAIN_DEFAULTS, Pretrain, Search
from simsiam.config.search_options import DEFAULT_TRIALS, MIN_TRIAL_EPOCHS
from utils.console import print_line
from utils.device import choose_accelerator
from utils.errors import RunError
from utils.run_dir import RunDirectory
from utils.settings import flatten, from_settings

SHARE_OF_PLANNED_RUN = 0.1  # length of a trial without --minutes
MEAN_TRAINED_SHARE = 0.75  # of its epochs that an average trial trains: half of them stop early
PROBE = "probe"  # the run that measures how long an epoch takes
PROBE_EPOCHS = 2
DIGEST_LENGTH = 16  # characters


@dataclass(frozen=True)
class Plan:
    """What is the same for all trials.

    Attributes:
        config: with the images that are held out, and what fits them.
        given: the flags as they were given.
        images: digest of your own images; empty for another data set.
        base: the settings of the flags, with those that fit the images.
        start: what the flags stand for, by the name of each possible setting.
        view_size: side of a view in pixels.
        judge: by what the trials are compared.
    """

    config: Search
    given: Search
    images: str
    base: dict[str, Any]
    start: dict[str, Any]
    view_size: int
    space: Space
    judge: Judge
    train_images: int

    def trial_settings(self, values: dict[str, Any], epochs: int) -> dict[str, Any]:
        """Return the settings of a run of `epochs` epochs with the values of a trial."""
        planned = self.base["epochs"]
        schedule = scale_schedule(self.base["image_schedule"], epochs / planned)
        base = {**self.base, "epochs": epochs, "image_schedule": schedule}
        return apply_values(values, base, self.start, self.view_size)

    def make_trial(self, values: dict[str, Any], epochs: int, name: str) -> Pretrain:
        """Return the run of a trial."""
        settings = self.trial_settings(values, epochs)
        settings.update(save_dir=str(self.config.run_dir), exp_name=name, version=None)
        if settings["pictures_every"] is None:
            settings["pictures_every"] = 0
        return from_settings(Pretrain, settings)

    def start_of_space(self) -> dict[str, Any]:
        """Return the values of the first trial: those of the flags, as far as the ranges reach."""
        return {name: setting.nearest(self.start[name]) for name, setting in self.space.items()}

    def facts(self) -> dict[str, Any]:
        """Return what must not change between two starts of a search."""
        shared = {name: value for name, value in self.base.items() if name not in UNSHARED}
        shared["objective"] = self.judge.objective
        shared["images"] = self.images
        for name, setting in self.space.items():
            shared[f"range of {name}"] = setting.model_dump()
        return shared


# Options of a run that may differ between the workers of a search.
UNSHARED = (
    *("save_dir", "exp_name", "version", "data_dir", "data_url", "cache_dir", "data_memory"),
    *("accelerator", "devices", "num_nodes", "compile", "logger", "checkpoint_every", "dry_run"),
    *("pictures_every", "skip_bad_images", "config"),
)


def make_plan(config: Search) -> Plan:
    """Load the images, and choose how trials are judged, and the ranges.

    Raises:
        UserError: a flag or the file of ranges does not fit the images.
    """
    given = config
    accelerator = choose_accelerator(config.device.accelerator)
    config = hold_out_images(config)
    data = load_data(config, accelerator, config.data.image_cache)
    config = fit_to_data(config, data)  # pyright: ignore[reportAssignmentType]
    base, start, space = choose_ranges(config, data.size, len(data.train))
    return Plan(
        config=config,
        given=given,
        images=(data.dataset_digest or "")[:DIGEST_LENGTH],
        base=base,
        start=start,
        view_size=data.size,
        space=space,
        judge=choose_judge(config, data.train, data.test),
        train_images=len(data.train),
    )


def choose_ranges(
    config: Search, view_size: int, train_images: int
) -> tuple[dict[str, Any], dict[str, Any], Space]:
    """Return the attributes `base`, `start` and `space` of a plan.

    Args:
        config: with a batch size that fits the images.

    Raises:
        UserError: a run does not accept the ends of a range.
    """
    base = {name: value for name, value in flatten(config).items() if name in PRETRAIN_DEFAULTS}
    start = start_values(config, view_size)
    space = choose_space(config.search.space, config.search.vary, start, train_images)
    check_space(space, base, start, view_size)
    return base, start, space


def refit(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """Return the plan with other values of options that were fitted to the images."""
    settings = flatten(plan.config)
    config = from_settings(Search, {**settings, **values})
    base, start, space = choose_ranges(config, plan.view_size, plan.train_images)
    return replace(plan, config=config, base=base, start=start, space=space)


def describe_plan(plan: Plan) -> list[str]:
    """Return the lines at the start of a search."""
    return [
        f"Search on {plan.base['dataset']}: {plan.train_images:,} train images",
        f"  varies    {', '.join(plan.space)}",
        f"  judges    {describe_judge(plan.judge)}",
        f"  folder    {plan.config.run_dir}",
    ]


# ---------------------------------------------------------------- length of a trial


def choose_trial_epochs(plan: Plan, slots: Sequence[Slot], seconds: float | None) -> int:
    """Return how many epochs a trial has.

    Args:
        seconds: time for the search; None for no limit.

    Raises:
        RunError: the run that measures the time of an epoch fails.
    """
    options = plan.config.search
    planned = plan.base["epochs"]
    if options.trial_epochs is not None:
        return options.trial_epochs
    shortest = min(MIN_TRIAL_EPOCHS, planned)
    if seconds is None:
        return max(shortest, round(SHARE_OF_PLANNED_RUN * planned))

    startup, epoch_seconds = measure_epoch(plan, slots[0])
    trials = options.trials or DEFAULT_TRIALS
    seconds_per_trial = len(slots) * seconds / trials
    epochs = (seconds_per_trial - startup) / (MEAN_TRAINED_SHARE * epoch_seconds)
    if epochs < shortest:
        per_trial = startup + MEAN_TRAINED_SHARE * shortest * epoch_seconds
        fitting = max(1, int(len(slots) * seconds / per_trial))
        print_line(
            f"An epoch takes {epoch_seconds:.1f} s, so only about {fitting} trials of {shortest} "
            "epochs fit into the time. Give more --minutes, or fewer --train-images."
        )
    return min(planned, max(shortest, int(epochs)))


def measure_epoch(plan: Plan, slot: Slot) -> tuple[float, float]:
    """Train a short run with the settings of the flags, and return how long its parts take.

    Returns:
        Seconds of its start and its end, and seconds of an epoch.

    Raises:
        RunError: the run fails.
    """
    epochs = min(PROBE_EPOCHS, plan.base["epochs"])
    config = plan.make_trial(plan.start_of_space(), epochs, PROBE)
    run = RunDirectory(config.run_dir)
    shutil.rmtree(run.path, ignore_errors=True)  # of a measurement that was interrupted
    print_line(f"Measuring how long an epoch takes: {epochs} epochs of the first trial's settings")
    log = plan.config.run_dir / f"{PROBE}.log"
    started = time.monotonic()
    with log.open("w") as output:
        process = start_process(config, slot, output)
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status != 0:
        raise RunError(f"the run that measures the time failed: {last_line(log)}", max(1, status))
    elapsed = time.monotonic() - started
    rows = run.rows()
    shutil.rmtree(run.path, ignore_errors=True)  # a report on the search would show it as a trial
    trained = sum(row["seconds"] for row in rows)
    return max(0.0, elapsed - trained), rows[-1]["seconds"]


def last_line(log: Any) -> str:
    """Return the last line that a run has printed, which is the reason if it has failed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
