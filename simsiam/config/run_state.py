"""Check the folder of a run, and announce the run, before torch is imported."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

from models.choices import is_library_backbone
from simsiam.config.commands import (
    FITTED_DEFAULTS,
    Pretrain,
    batch_may_be_fitted,
    describe_differences,
    find_differences,
    settings_to_keep,
)
from simsiam.config.options import CUSTOM_DATASETS, DataOptions, ImageCache
from simsiam.config.recipe_files import DEFAULT_RECIPE
from simsiam.config.split_names import choose_splits
from utils import slurm
from utils.console import format_count
from utils.errors import UserError, require
from utils.run_dir import RunDirectory
from utils.settings import flatten, from_settings

SQUARE_IMAGES = "which saw only the central squares of its images, and cannot be resumed exactly."


def check_folder(config: Pretrain, run: RunDirectory) -> str:
    """Return the state of the run's folder.

    Returns:
        "new", "unfinished" or "finished"; or "discarded", if it holds a run that --overwrite
        deletes.

    Raises:
        UserError: if the folder cannot be used, or holds another run.
    """
    name = str(run.path)
    is_utf8 = name.encode(errors="replace").decode() == name
    require(
        is_utf8,
        f"{name!a} is not UTF-8. Give another --save-dir, --exp-name or --version.",
    )
    state = run.state()
    if state != "new" and config.run.overwrite and not is_of_requeued_job(run):
        state = "discarded"
    elif state != "new":
        _check_settings(config, run)
        if state == "finished" and config.data.dataset in CUSTOM_DATASETS:
            _check_images(config.data, run)
        if state == "unfinished":
            require(
                not has_square_images(run.settings()),
                f"{run.path} holds an unfinished run of an earlier version, {SQUARE_IMAGES} Give "
                f"--model-path {run.path} --exp-name NAME to start a new run from its weights, or "
                "--overwrite to start again.",
            )
    if config.data.dataset == "folder":
        _check_outside_images(config.data, run)
    return state


def is_of_requeued_job(run: RunDirectory) -> bool:
    """Return whether this process belongs to a SLURM job that was requeued and has trained `run`.

    The script of the job then runs again. If it has --overwrite, it must not delete its own work.
    """
    try:
        return slurm.is_restart_of(run.settings("resolved"))
    except UserError:  # config.yaml is damaged
        return False


def has_square_images(settings: Mapping[str, Any]) -> bool:
    """Return whether a run is of a version that cropped the views of a folder from squares."""
    return settings.get("dataset") == "folder" and "image_cache" not in settings


def find_image_cache(config: Pretrain, run: RunDirectory, state: str) -> ImageCache:
    """Return how a run makes its views: as it did before if it is resumed.

    By now there may be more or less space for a cache than when the run was started.

    Args:
        state: of the run's folder, as `check_folder` returns it.
    """
    wanted = config.data.image_cache
    if state in ("new", "discarded") or wanted != "auto":
        return wanted
    before = run.settings("resolved").get("image_cache")
    for mode in get_args(ImageCache):
        if mode == before:
            return mode
    return wanted


def _check_settings(config: Pretrain, run: RunDirectory) -> None:
    """Refuse to resume a run with settings that would compute something else."""
    old = run.settings()
    new = settings_to_keep(keep_fitted(config, run))
    differences = find_differences(old, new)
    if differences == ["epochs"]:
        raise UserError(
            f"{run.path} holds a run of {old.get('epochs')} epochs. Its learning rate was planned "
            "to fall to 0 at their end, so the run cannot be made longer or shorter. To start a "
            f"new run from its weights, give --model-path {run.path} --exp-name NAME."
        )
    if differences:
        descriptions = "; ".join(describe_differences(old, new))
        raise UserError(
            f"{run.path} holds a run with other settings ({descriptions}). "
            "Give another --exp-name, or --overwrite to start again."
        )


def keep_fitted(config: Pretrain, run: RunDirectory) -> Pretrain:
    """Return the settings with the values that an earlier start has fitted to the data set.

    Without a flag, a resumed run keeps its batch size and its k, whatever this version would
    choose. If a flag gave that run another value than the default, the result has the default, so
    that `_check_settings` refuses to resume without this flag.

    Raises:
        UserError: config.yaml is damaged.
    """
    settings = flatten(config)
    unset = find_unset(config)
    if not unset:
        return config
    old = run.settings()
    fitted = find_fitted(run)
    for name in unset:
        settings[name] = FITTED_DEFAULTS[name]
        if name in fitted and old.get(name) is not None:
            settings[name] = old[name]
    return from_settings(type(config), settings)


def find_unset(config: Pretrain) -> list[str]:
    """Return the names of the options that were not given and are fitted to the data set."""
    settings = flatten(config)
    return [name for name in FITTED_DEFAULTS if settings[name] is None]


def find_fitted(run: RunDirectory) -> list[str]:
    """Return the names of the options that an earlier start of a run has fitted to the data set."""
    names = run.settings("resolved").get("fitted")
    if not isinstance(names, list):  # the run is of an earlier version
        return []
    return [name for name in names if name in FITTED_DEFAULTS]


def _check_images(data: DataOptions, run: RunDirectory) -> None:
    """Refuse other images for a finished run; an unfinished run compares the images themselves."""
    old_path = run.settings().get("data_dir") or ""
    require(
        os.path.realpath(old_path) == os.path.realpath(data.path),
        f"{run.path} holds a finished run on the images in {old_path}. "
        "Give another --exp-name, or --overwrite to start again.",
    )


def _check_outside_images(data: DataOptions, run: RunDirectory) -> None:
    """Refuse a run below the folder of its images, since its pictures would become images too."""
    root = data.path.resolve()
    run_folder = run.path.resolve()
    folders: list[str] = []
    with suppress(OSError):  # `find_split_folders` will raise the error that describes the problem
        folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    if root in run_folder.parents:
        # The run itself may make a folder that will be the one of a split, such as val/.
        folders.append(run_folder.relative_to(root).parts[0])

    train, test = choose_splits(sorted(set(folders)), with_test=data.held_out_images == 0)
    used = [root if train is None else root / train]
    if test is not None:
        used.append(root / test)
    require(
        all(folder.resolve() not in run_folder.parents for folder in used),
        f"{run.path} is inside --data-dir {data.data_dir}, where its pictures would be taken for "
        "images. Give another --save-dir.",
    )


def announce(config: Pretrain) -> bool:
    """Print in the first process of a run what is asked for; return whether anything is to do."""
    run = RunDirectory(config.run_dir)
    state = check_folder(config, run)
    is_finished = state == "finished"
    keeps_run = config.run.overwrite and state in ("unfinished", "finished")

    # This process prints if it is the first one of torchrun or SLURM, or if it is the only one.
    # A process that will start others leaves the announcement of a run to the first of them.
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    devices = config.device.devices or 1
    starts_others = rank is None and devices > 1 and not config.run.dry_run
    is_first = rank is None or rank == "0"
    if keeps_run and is_first and not starts_others:
        print(f"--overwrite is ignored: SLURM has requeued the job that trains {run.path}.")
    if is_finished and is_first:
        print(f"{run.path} is finished already. Give --overwrite to start again.", flush=True)
    elif is_first and not starts_others:
        print(_describe_run(config, run), flush=True)
    return not is_finished


def _describe_run(config: Pretrain, run: RunDirectory) -> str:
    """Return what is asked for, in four lines."""
    network = config.network
    optimizer = config.optimizer
    epochs = format_count(optimizer.epochs, "epoch")
    rate = f"{optimizer.peak_rate:g} after {optimizer.warmup:g} epochs of warm-up"
    batch = f"{optimizer.images_per_step} images"
    if optimizer.batch_size is None and batch_may_be_fitted(settings_to_keep(config)):
        batch = f"up to {batch}"
    if optimizer.accumulate > 1:
        batch += f" in {optimizer.accumulate} parts"
    recipe = ""
    if config.run.recipe != DEFAULT_RECIPE:
        recipe = f", recipe {config.run.recipe}"
    name = network.backbone
    if not is_library_backbone(name):
        name += f" of width {network.width}"
    views = str(config.method.views)
    if config.method.heavy_views > 0:
        views += f" + {config.method.heavy_views} heavy"
    lines = [
        f"SimSiam on {config.data.dataset}: {name}, {epochs}" + recipe,
        f"  training  {batch} x {views} views in a step",
        f"            learning rate {rate}",
        f"  run       {run.path}",
    ]
    return "\n".join(lines)
