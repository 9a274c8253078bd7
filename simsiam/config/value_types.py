"""Types of option values: numbers within a range, and values that have several forms."""

import math
import os
import re
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from utils.errors import UserError, require

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
BlurSigma = Annotated[float, Field(ge=0, le=1024)]  # pixels; no view is wider than 1024
Momentum = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2)]  # BN needs a batch
MIN_VIEW_SIDE = 8  # pixels
ImageSize = Annotated[int, Field(ge=MIN_VIEW_SIDE, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def path_to_text(value: Any) -> Any:
    """Return a path of any kind as a string, and other values unchanged for pydantic to judge."""
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    return value


def pair_to_text(value: Any) -> Any:
    """Return a pair of numbers as "LOW:HIGH", and other values unchanged for pydantic to judge."""
    if isinstance(value, tuple | list):
        return ":".join(str(number) for number in value)
    return value


PathText = Annotated[str, BeforeValidator(path_to_text)]
PairText = Annotated[str, BeforeValidator(pair_to_text)]


def parse_pixel_range(text: str) -> tuple[float, float]:
    """Return the two values of a `--pixel-range`.

    Raises:
        UserError: if the text is not "LOW:HIGH" with LOW < HIGH, both finite.
    """
    message = f"--pixel-range {text}: must be LOW:HIGH, two numbers, as 0:4095 for 12 bits"
    low_text, _, high_text = text.partition(":")
    try:
        low = float(low_text)
        high = float(high_text)
    except ValueError:
        raise UserError(message) from None
    require(-math.inf < low < high < math.inf, message)  # nan is refused too
    return low, high


class ImagePhase(NamedTuple):
    """A part of a run in which the views have one size."""

    size: int  # side of the views in pixels
    epochs: int


def parse_image_schedule(texts: Iterable[str]) -> list[ImagePhase]:
    """Return the phases of an `--image-schedule`, whose texts are "PIXELS:EPOCHS".

    Raises:
        UserError: if a text has another form.
    """
    phases: list[ImagePhase] = []
    for text in texts:
        match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,5})", text)
        if match is None:
            raise UserError(
                f"--image-schedule {text}: must be PIXELS:EPOCHS, "
                "as 16:12 for views of 16 pixels in the first 12 epochs"
            )
        phases.append(ImagePhase(size=int(match[1]), epochs=int(match[2])))
    return phases
