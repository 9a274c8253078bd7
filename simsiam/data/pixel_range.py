"""Scale pixels to 0 .. 255 from the range of values in `--pixel-range`."""

import numpy as np

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
