"""What a search varies: the range of each setting, and the options of a run that it stands for.

A setting is an option of pre-training, or one of COMBINED, which changes several options at once.
The values of a trial have the names of settings; the settings of a run have those of options.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from simsiam.config.commands import PRETRAIN_DEFAULTS, Pretrain
from simsiam.config.value_types import MIN_VIEW_SIDE, parse_image_schedule
from utils.errors import UserError, require
from utils.settings import from_settings, iterate_options

Value = bool | int | float | str
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
SMALL_VIEWS = 0.5  # side of the small views, as a share of the full side
SMALLEST_BATCH = 8  # of the built-in range
MIN_STEPS_PER_EPOCH = 4  # with the largest batch of the built-in range


class Range(BaseModel):
    """Numbers from `low` to `high`, drawn by their logarithm if `log` is true."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)
    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def check(self) -> "Range":
        require(self.low < self.high, f"low {self.low} must be less than high {self.high}")
        require(self.low > 0 or not self.log, f"log needs a low above 0, got {self.low}")
        return self

    def ends(self) -> list[Value]:
        return [self.low, self.high]

    def nearest(self, value: Any) -> Any:
        """Return a start value, or the end of the range that is nearest to it."""
        return min(max(value, self.low), self.high)


class Choices(BaseModel):
    """Some values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)
    choices: Annotated[list[Value], Field(min_length=2)]

    def ends(self) -> list[Value]:
        return self.choices

    def nearest(self, value: Any) -> Any:
        """Return a start value if it is one of the choices; else the nearest, or the first."""
        if value in self.choices:
            return self.choices[self.choices.index(value)]
        numbers = [choice for choice in self.choices if isinstance(choice, int | float)]
        if isinstance(value, int | float) and len(numbers) == len(self.choices):
            return min(numbers, key=lambda number: abs(number - value))
        return self.choices[0]


Setting = Range | Choices
Space = dict[str, Setting]
PARSER = TypeAdapter(dict[str, Setting])


def built_in_space(start: Values, train_images: int) -> Space:
    """Return the ranges that are searched without `--space`. They contain the start values.

    Args:
        start: from `start_values`.
        train_images: number of images that a trial trains on.
    """
    batch_size = int(start["batch_size"])
    largest = max(batch_size, train_images // MIN_STEPS_PER_EPOCH)
    batches: list[Value] = []
    for size in (batch_size // 4, batch_size // 2, batch_size, 2 * batch_size):
        if SMALLEST_BATCH <= size <= largest or size == batch_size:
            batches.append(size)

    ranges = {
        "base_learning_rate": Range(low=0.005, high=1.0, log=True),
        "weight_decay": Range(low=1e-5, high=1e-2, log=True),
        "crop_scale": Range(low=0.05, high=0.6),
        "colour_jitter": Range(low=0.0, high=2.0),
        "warmup_share": Range(low=0.0, high=0.3),
    }
    space: Space = {name: widen(range, start[name]) for name, range in ranges.items()}
    if len(batches) > 1:
        space["batch_size"] = Choices(choices=batches)
    if "small_views_share" in start:
        space["small_views_share"] = Choices(choices=[0.0, 0.25, 0.5])
    space["heads_width"] = Choices(choices=[0.5, 1.0, 2.0])
    return space


def widen(setting: Range, value: float) -> Range:
    """Return the range with its nearest end moved to a value outside it, if it can be moved."""
    if setting.log and value <= 0:
        return setting
    low = min(setting.low, value)
    high = max(setting.high, value)
    return Range(low=low, high=high, log=setting.log)


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


def read_space(file: Path, start: Values) -> Space:
    """Return the ranges of a `--space` file.

    Raises:
        UserError: the file cannot be read, or has something else in it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"--space {file} cannot be read: {reason}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--space {file} is not YAML: {reason}") from None
    require(
        isinstance(content, dict) and len(content) > 0,
        f"--space {file}: must have lines such as `weight_decay: {{low: 1e-5, high: 1e-2}}`",
    )
    unknown = [str(name) for name in content if name not in start]
    require(
        not unknown,
        f"--space {file}: {', '.join(unknown)} cannot be varied. "
        f"There are {', '.join(sorted(start))}.",
    )
    try:
        return PARSER.validate_python(content)
    except ValidationError as error:
        mistake = error.errors()[0]
        name = mistake["loc"][0]
        cause = mistake.get("ctx", {}).get("error")
        reason = str(cause) if cause is not None else mistake["msg"]
        raise UserError(
            f"--space {file}: {name}: {content[name]}: {reason}. Give {{low: 0.01, high: 1}}, "
            "with `log: true` for factors, or {choices: [64, 128]}."
        ) from None


def choose_space(file: str | None, vary: Sequence[str], start: Values, train_images: int) -> Space:
    """Return the ranges of `--space`, or else the built-in ones, that `--vary` names.

    Raises:
        UserError: a name or a file is wrong, or two settings change the same option.
    """
    if file is None:
        space = built_in_space(start, train_images)
    else:
        space = read_space(Path(file).expanduser(), start)
    unknown = [name for name in vary if name not in space]
    require(
        not unknown,
        f"--vary {' '.join(unknown)}: not among the settings of this search, which are "
        f"{', '.join(space)}.",
    )
    if vary:
        space = {name: space[name] for name in vary}
    if "base_learning_rate" in space and "learning_rate" in space:
        raise UserError("base_learning_rate and learning_rate set the same rate. Vary one of them.")
    for name, options in COMBINED.items():
        doubled = [option for option in options if name in space and option in space]
        require(not doubled, f"{name} changes {', '.join(doubled)} too. Vary one of them.")
    return space


def check_space(space: Space, base: Mapping[str, Any], start: Values, view_size: int) -> None:
    """Check that a run accepts the ends of each range.

    Raises:
        UserError: with the message of the first option that does not.
    """
    for name, setting in space.items():
        for value in setting.ends():
            values = {name: value}
            try:
                from_settings(Pretrain, apply_values(values, base, start, view_size))
            except (UserError, TypeError) as error:
                raise UserError(f"the range of {name} has {value}: {error}") from None


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

    if "colour_jitter" in values:
        for name in ("brightness", "contrast", "saturation"):
            settings[name] = base[name] * values["colour_jitter"]
        settings["hue"] = min(MAX_HUE, base["hue"] * values["colour_jitter"])
    if "heads_width" in values:
        for name in COMBINED["heads_width"]:
            if base[name] is not None:
                settings[name] = max(1, round(base[name] * values["heads_width"]))
    # Also if it is not varied: a trial has the same share of warm-up as the planned run.
    settings["warmup_epochs"] = epochs * values.get("warmup_share", start["warmup_share"])
    if "small_views_share" in values:
        settings["image_schedule"] = []
        small_epochs = round(epochs * values["small_views_share"])
        if small_epochs:
            side = round(SMALL_VIEWS * view_size)
            settings["image_schedule"] = [f"{side}:{small_epochs}"]
    return settings


def scale_schedule(texts: Sequence[str], factor: float) -> list[str]:
    """Return an `--image-schedule` whose phases are longer or shorter by a factor."""
    scaled: list[str] = []
    for phase in parse_image_schedule(texts):
        epochs = round(factor * phase.epochs)
        if epochs:
            scaled.append(f"{phase.size}:{epochs}")
    return scaled


def is_whole(name: str, setting: Setting) -> bool:
    """Return whether a range has whole numbers only, as those of `--out-dim`."""
    return isinstance(setting, Range) and type(PRETRAIN_DEFAULTS.get(name)) is int
