"""What a search varies: the range of each setting. See `values` for what a setting is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from simsiam.commands.tuning.values import COMBINED, Values, apply_values
from simsiam.config.commands import Pretrain
from utils.errors import UserError, require
from utils.settings import from_settings

Value = bool | int | float | str

SMALLEST_BATCH = 8  # of the built-in range
MIN_STEPS_OF_LARGEST = 4  # in an epoch of the largest batch of the built-in range


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

    def describe(self) -> str:
        text = f"{self.low:g} to {self.high:g}"
        return f"{text}, by its logarithm" if self.log else text

    def nearest(self, value: Any) -> Any:
        """Return a start value, or the end of the range that is nearest to it."""
        return min(max(value, self.low), self.high)


class Choices(BaseModel):
    """Some values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)
    choices: Annotated[list[Value], Field(min_length=2)]

    def ends(self) -> list[Value]:
        return self.choices

    def describe(self) -> str:
        return ", ".join(str(choice) for choice in self.choices)

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
    largest = max(batch_size, train_images // MIN_STEPS_OF_LARGEST)
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
