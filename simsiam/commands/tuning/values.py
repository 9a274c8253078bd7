"""The options of a run that the values of a trial stand for.

A setting is an option of pre-training, or one of COMBINED, which changes several options at once.
The values of a trial have the names of settings; the settings of a run have those of options.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from simsiam.config.commands import Pretrain
from simsiam.config.value_types import MIN_VIEW_SIDE, parse_image_schedule
from utils.settings import iterate_options

Values = Mapping[str, Any]  # the value of each setting in a trial

# A setting that is not an option -> the options that it changes.
COMBINED: dict[str, tuple[str, ...]] = {
    "colour_jitter": ("brightness", "contrast", "saturation", "hue"),
    "heads_width": ("out_dim", "h_dim", "proj_hidden"),
    "small_views_share": ("image_schedule",),
    "warmup_share": ("warmup_epochs",),
}
# What each setting is, for people who have never tuned anything.
DESCRIPTIONS = {
    "base_learning_rate": "how far each step changes the network, for a batch of 256 images",
    "batch_size": "images that the network compares in a step",
    "colour_jitter": "strength of the colour changes, as a multiple of your own",
    "crop_scale": "area of the smallest crop, as a share of the image",
    "heads_width": "width of the two heads, as a multiple of your own",
    "small_views_share": "share of the epochs, at the beginning, with views of half the size",
    "warmup_share": "share of the epochs in which the learning rate rises to its peak",
    "weight_decay": "how strongly weights are pulled towards zero",
}

VARIED_GROUPS = ("optimizer", "network", "method", "augmentation")
# Options of these groups that are no settings: the search itself sets them, or they have no range.
NO_SETTINGS = ("epochs", "accumulate", "image_schedule", "warmup_epochs", "blur_sigma", "in_dim")
MAX_HUE = 0.5
DIGITS = 4
SMALL_VIEWS = 0.5  # side of the small views, as a share of the full side


def start_values(config: Pretrain, view_size: int) -> dict[str, Any]:
    """Return the value of each setting that stands for the flags: those of the first trial.

    Args:
        config: with a batch size that fits the images.
        view_size: side of a view in pixels.
    """
    optimizer = config.optimizer
    start: dict[str, Any] = {}
    for option in iterate_options(Pretrain):
        name = option.field.name
        value = getattr(getattr(config, option.group), name)
        is_setting = option.group in VARIED_GROUPS and name not in NO_SETTINGS
        if is_setting and isinstance(value, bool | int | float | str):
            start[name] = value
    start["batch_size"] = optimizer.images_per_step
    start["learning_rate"] = optimizer.peak_rate
    start["base_learning_rate"] = optimizer.peak_rate * 256 / optimizer.images_per_step
    start["colour_jitter"] = 1.0
    start["heads_width"] = 1.0
    start["warmup_share"] = optimizer.warmup / optimizer.epochs
    has_room = round(SMALL_VIEWS * view_size) >= MIN_VIEW_SIDE
    if has_room and not config.method.image_schedule:
        start["small_views_share"] = 0.0
    return start


def apply_values(
    values: Values, base: Mapping[str, Any], start: Values, view_size: int
) -> dict[str, Any]:
    """Return the settings of a run with the values of a trial.

    Args:
        values: the value of each setting that is varied.
        base: the settings of the flags, with the length of the run in question.
        start: what the flags stand for, from `start_values`.
        view_size: side of a view in pixels.
    """
    values = {name: _round(value, start.get(name)) for name, value in values.items()}
    settings = dict(base)
    epochs = settings["epochs"]
    for name, value in values.items():
        if name not in COMBINED:
            settings[name] = value
    if "learning_rate" not in values and ("batch_size" in values or "base_learning_rate" in values):
        # The peak rate is proportional to the batch size, as in the paper.
        settings["learning_rate"] = "auto"
        if "base_learning_rate" not in values:
            settings["base_learning_rate"] = start["base_learning_rate"]
    if "learning_rate" in values:
        settings.pop("base_learning_rate", None)  # it goes with the rate `auto` alone

    if "colour_jitter" in values:
        for name in COMBINED["colour_jitter"]:
            settings[name] = _round(base[name] * values["colour_jitter"], base[name])
        settings["hue"] = min(MAX_HUE, settings["hue"])
    if "heads_width" in values:
        for name in COMBINED["heads_width"]:
            if base[name] is not None:
                settings[name] = max(1, round(base[name] * values["heads_width"]))
    # Also if it is not varied: a trial has the same share of warm-up as the planned run.
    warmup_share = values.get("warmup_share", start["warmup_share"])
    settings["warmup_epochs"] = _round(epochs * warmup_share)
    if "small_views_share" in values:
        settings["image_schedule"] = []
        small_epochs = round(epochs * values["small_views_share"])
        if small_epochs:
            side = round(SMALL_VIEWS * view_size)
            settings["image_schedule"] = [f"{side}:{small_epochs}"]
    return settings


def _round(value: Any, exact: Any = None) -> Any:
    """Return a number with DIGITS significant digits, which is enough and easier to read.

    Args:
        exact: the value that is not rounded: that of the flags.
    """
    if isinstance(value, float) and value != exact:
        return float(f"{value:.{DIGITS}g}")
    return value


def scale_schedule(texts: Sequence[str], factor: float) -> list[str]:
    """Return an `--image-schedule` whose phases are longer or shorter by a factor."""
    scaled: list[str] = []
    for phase in parse_image_schedule(texts):
        epochs = round(factor * phase.epochs)
        if epochs:
            scaled.append(f"{phase.size}:{epochs}")
    return scaled
