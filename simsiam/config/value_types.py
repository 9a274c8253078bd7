"""Types of option values: numbers within a range, and values that have several forms."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from models.choices import LIBRARIES, BackboneName, is_library_backbone
from utils.errors import UserError, require

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Zoom = Annotated[float, Field(ge=1, le=2)]
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


def check_backbone(name: str) -> str:
    """Return the name of a backbone if it has a valid form. torch checks later if it is known.

    Raises:
        UserError: it is neither a ResNet of this program nor "LIBRARY/NAME".
    """
    resnets = get_args(BackboneName)
    if name in resnets or is_library_backbone(name):
        return name
    names = [*resnets, *(f"{library}/NAME" for library in LIBRARIES)]
    nearest = difflib.get_close_matches(name.lower(), resnets, 1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise UserError(f"--backbone {name}: {hint}There are {', '.join(names)}")


Backbone = Annotated[str, AfterValidator(check_backbone)]


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


Colour = tuple[int, int, int]  # red, green and blue, 0 to 255
COLOUR_NAMES: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}


def parse_background(text: str) -> Colour:
    """Return the colour of a `--background`.

    Raises:
        UserError: if the text is not white, black, R,G,B or #rrggbb.
    """
    if text in COLOUR_NAMES:
        return COLOUR_NAMES[text]
    hexadecimal = re.fullmatch(r"#([0-9a-fA-F]{6})", text)
    if hexadecimal is not None:
        red, green, blue = bytes.fromhex(hexadecimal[1])
        return red, green, blue
    decimal = re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3})", text)
    is_colour = decimal is not None and all(int(number) <= 255 for number in decimal.groups())
    if decimal is None or not is_colour:
        raise UserError(
            f"--background {text}: must be white, black, R,G,B with numbers from 0 to 255, or "
            "#rrggbb"
        )
    return int(decimal[1]), int(decimal[2]), int(decimal[3])


def name_colour(colour: Colour) -> str:
    """Return the name of a colour, or its numbers such as "255,0,0"."""
    for name, value in COLOUR_NAMES.items():
        if value == colour:
            return name
    return ",".join(str(number) for number in colour)


class PixelConversion(NamedTuple):
    """How the pixels of an image file become RGB of 8 bits.

    Attributes:
        pixel_range: the values that become black and white. None stands for 0 and the highest
            value of 8 bits (255) or of 16 bits (65535). See `scales_8_bits` for images of 8 bits.
        background: the colour on which images with transparency are composited.
    """

    pixel_range: tuple[float, float] | None = None
    background: Colour = COLOUR_NAMES["white"]


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
