"""Scale pixels whose values use only a part of their bits (`--pixel-range`)."""

import numpy as np

PixelRange = tuple[float, float] | None  # the values that become black and white


def scale_pixels(values: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Map values linearly from `pixel_range` to 0 .. 255, as uint8.

    Values outside the range become black or white.
    """
    low, high = pixel_range
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)


def suggest_pixel_range(low: int, high: int) -> tuple[int, int] | None:
    """Return the --pixel-range for 16-bit values from `low` to `high`, or None to use all 16 bits.

    An ordinary picture uses at least a quarter of the range of 16 bits.
    """
    uses_a_quarter = high - low >= 2**14
    if uses_a_quarter or low == high:
        return None
    if low < high / 4:
        bits = max(8, high.bit_length())
        return 0, 2**bits - 1  # such as 4095 for 12 bits
    return low, high
