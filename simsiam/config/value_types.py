"""Types of option values that are given in several forms and held as plain strings."""

import math
import os
from typing import Annotated, Any

from pydantic import BeforeValidator

from utils.errors import require


def path_to_text(value: Any) -> Any:
    """Return a path of any kind as a string; other values as they are, for pydantic to judge."""
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    return value


def pair_to_text(value: Any) -> Any:
    """Return a pair of numbers as "LOW:HIGH"; other values as they are, for pydantic to judge."""
    if isinstance(value, tuple | list):
        return ":".join(map(str, value))
    return value


PathText = Annotated[str, BeforeValidator(path_to_text)]
PairText = Annotated[str, BeforeValidator(pair_to_text)]


def parse_pixel_range(text: str) -> tuple[float, float]:
    """Return the two values of a `--pixel-range`.

    Raises:
        UserError: if the text is not "LOW:HIGH".
    """
    low, _, high = text.partition(":")
    try:
        limits = float(low), float(high)
    except ValueError:
        limits = math.nan, math.nan
    right = -math.inf < limits[0] < limits[1] < math.inf
    require(right, f"--pixel-range {text}: LOW:HIGH, two numbers, as 0:4095 for 12 bits")
    return limits
