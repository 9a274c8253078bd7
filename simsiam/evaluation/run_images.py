"""Choose the images of an evaluation: those of its flags, or else those of the checkpoint's run."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from models.eval_mode import eval_mode
from simsiam.config.evaluation_commands import Evaluation
from simsiam.config.options import CUSTOM_DATASETS, DataOptions
from simsiam.config.value_types import PixelConversion
from simsiam.data.dataset import ImageDataset, make_options
from simsiam.evaluation.checkpoint import LoadedCheckpoint
from utils.errors import UserError, require
from utils.text import printable

# Options of the data set that have the run's values, unless a flag sets them.
INHERITED_OPTIONS = (
    "data_dir",
    "cache_dir",
    "image_cache",
    "stored_side",
    "train_images",
    "test_images",
    "held_out_images",
    "skip_bad_images",
    "pixel_range",
    "background",
)

# Options of the data set that say which of its images are train images.
SELECTING_OPTIONS = ("dataset", "train_images", "test_images", "held_out_images")


def choose_dataset(config: Evaluation, checkpoint: LoadedCheckpoint) -> DataOptions:
    """Return the options of the data set: the flags, completed by the options of the run.

    The run's options are used only if it had the same data set.

    Raises:
        UserError: there is no data set, it is not where the run had it, or an option is invalid.
    """
    # None and False are the defaults of these options: their flags were not given.
    flags: dict[str, Any] = {}
    for name, value in asdict(config.data).items():
        if value is not None and value is not False:
            flags[name] = value
    run_settings = checkpoint.metadata.settings
    dataset = flags.get("dataset") or run_settings.get("dataset")
    require(
        dataset is not None,
        f"{checkpoint.file} does not say what it was trained on. Choose a data set with --dataset",
    )

    inherited: dict[str, Any] = {}
    if run_settings.get("dataset") == dataset:
        for name in INHERITED_OPTIONS:
            if run_settings.get(name) is not None:
                inherited[name] = run_settings[name]
    # Held-out images take the place of the test images, so one excludes the other.
    if flags.get("held_out_images"):
        inherited.pop("test_images", None)
    if "test_images" in flags:
        inherited.pop("held_out_images", None)

    values = {"image_size": checkpoint.metadata.image_size}
    values.update(inherited)
    values.update(flags)
    values["dataset"] = dataset
    options = make_valid_options(checkpoint.file, values)
    return replace_missing_folders(options, flags)


def describe_changed_images(
    checkpoint: LoadedCheckpoint, options: DataOptions, train: ImageDataset, test: ImageDataset
) -> str | None:
    """Return a warning if the run's folder or file of images has other images now.

    Images are held out by their number and order, so with one image more or less others are.

    Args:
        options: of the images that were loaded.

    Returns:
        None if they are the same, or if flags chose other images than those of the run.
    """
    metadata = checkpoint.metadata
    settings = metadata.settings
    same_choice = all(
        getattr(options, name) == settings.get(name, getattr(options, name))
        for name in SELECTING_OPTIONS
    )
    same_kind_of_digest = metadata.image_cache == train.image_cache
    if metadata.images in (None, train.digest) or not same_choice or not same_kind_of_digest:
        return None
    path = printable(options.path)
    if test.held_out:
        return (
            f"warning: {path} does not hold the images that the run had. The images that are held "
            "out now may have been trained on, so this accuracy may be too high."
        )
    if options.data_dir != settings.get("data_dir"):
        return None  # another folder was chosen, and no image of it was trained on
    return f"warning: {path} does not hold the images that the run had: it was changed since."


def use_image_size(checkpoint: LoadedCheckpoint, size: int | None) -> LoadedCheckpoint:
    """Return the checkpoint for images of the side of `--image-size`, if the flag is given.

    Raises:
        UserError: the backbone cannot take images of this size.
    """
    if size is None or size == checkpoint.metadata.image_size:
        return checkpoint
    backbone = checkpoint.backbone
    parameter = next(backbone.parameters())
    try:
        with torch.no_grad(), eval_mode(backbone):
            backbone(parameter.new_zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--image-size {size}: {checkpoint.metadata.backbone} cannot take images of this size "
            f"({reason}). Drop the flag"
        ) from None
    metadata = checkpoint.metadata.model_copy(update={"image_size": size})
    return replace(checkpoint, metadata=metadata)


def replace_missing_folders(options: DataOptions, flags: dict[str, Any]) -> DataOptions:
    """Replace folders of the run that do not exist here by the default folders.

    The run may have been on another machine.

    Args:
        options: the run's options, unless flags set them.
        flags: a folder that was chosen by a flag is not replaced.

    Returns:
        The options with folders that exist, or with defaults.

    Raises:
        UserError: the folder of custom images is missing, which has no default.
    """
    if "data_dir" not in flags and not options.path.exists():
        require(
            options.dataset not in CUSTOM_DATASETS,
            f"{printable(options.path)}, where the run had its images, does not exist. Say where "
            "they are with --data-dir",
        )
        options = replace(options, data_dir=DataOptions.data_dir)

    cache_dir = options.cache_dir
    if "cache_dir" not in flags and cache_dir and not Path(cache_dir).expanduser().is_dir():
        options = replace(options, cache_dir=None)
    return options


def make_valid_options(file: Path, values: dict[str, Any]) -> DataOptions:
    """Return options for values that come from a checkpoint.

    Raises:
        UserError: a value is invalid; the message names the file.
    """
    try:
        return make_options(**values)
    except UserError as error:
        raise UserError(f"{file}: its settings are invalid: {error}") from None


def find_conversion(config: Evaluation, checkpoint: LoadedCheckpoint) -> PixelConversion:
    """Return how to read images of another folder: by the flags, or else as the run did."""
    run_settings = checkpoint.metadata.settings
    values: dict[str, Any] = {"dataset": "folder"}
    for name in ("pixel_range", "background"):
        value = getattr(config.data, name)
        # The range of arrays, such as -1:1 of floats, is none of files: all would be white.
        is_of_arrays = name == "pixel_range" and run_settings.get("dataset") == "arrays"
        if value is None and not is_of_arrays:
            value = run_settings.get(name)
        if value is not None:
            values[name] = value
    return make_valid_options(checkpoint.file, values).conversion
