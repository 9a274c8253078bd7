"""Scale pixels to 0 .. 255 from the range of values in `--pixel-range`, or advise one."""

import numpy as np
from torch import Tensor

from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.spread import evenly_spaced
from utils.console import print_line

# A warning is printed if the lowest and the highest of the values 0 to 255 are closer than this.
MIN_CONTRAST = 32
CONTRAST_IMAGES = 256  # images on which the contrast is measured

PixelRange = tuple[float, float] | None  # the values that become black and white


def scale_pixels(values: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Map values linearly from `pixel_range` to 0 .. 255, as uint8.

    Values outside the range become black or white.
    """
    low, high = pixel_range
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)


def scales_8_bits(pixel_range: tuple[float, float]) -> bool:
    """Return whether pixels of 8 bits are scaled, too.

    A range that ends at 256 or above is meant for other images, with more bits. Among these there
    may be ordinary images of 8 bits, which stay as they are.
    """
    return pixel_range[1] < 256


def suggest_pixel_range(low: int, high: int) -> tuple[int, int] | None:
    """Return the --pixel-range for 16-bit values from `low` to `high`, or None if none is needed.

    An ordinary picture uses at least a quarter of all values of 16 bits, and needs no range.
    """
    uses_a_quarter = high - low >= 2**14
    if uses_a_quarter or low == high:
        return None
    if low < high / 4:
        bits = max(8, high.bit_length())
        return 0, 2**bits - 1  # such as 4095 for 12 bits
    return low, high


def warn_of_low_contrast(
    images: Tensor | LazyImages,
    where: str,
    pixel_range: tuple[float, float] | None,
) -> None:
    """Print a warning if the images of a data set have hardly any contrast.

    Args:
        images: (N, 3, C, C) uint8.
        where: the name of the data set.
        pixel_range: the values that became black and white, if `--pixel-range` was given.
    """
    n = min(len(images), CONTRAST_IMAGES)
    if n == 0:
        return
    sample = images.index_select(0, evenly_spaced(n, len(images)))
    low = int(sample.min())
    high = int(sample.max())
    if high - low >= MIN_CONTRAST:
        return
    if low == high:
        return  # All pixels are equal, for which `channel_statistics` raises an error.
    if pixel_range is None:
        advice = f"Pass --pixel-range {low}:{high} to make {low} black and {high} white."
    else:
        given_low, given_high = pixel_range
        advice = f"Check whether --pixel-range {given_low:g}:{given_high:g} is right."
    print_line(
        f"warning: the images of {where} have hardly any contrast: of 0 to 255 they use only the "
        f"values {low} to {high}. {advice}"
    )
