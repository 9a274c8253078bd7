"""Read all 16 bits of colours, of which Pillow itself keeps only the upper 8."""

import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from simsiam.data.pixel_range import scale_pixels

# The last letter of Pillow's raw modes is the byte order: big, little, or native to the machine.
# This maps each order to the opposite one.
OPPOSITE_OF_NATIVE = "B" if sys.byteorder == "little" else "L"
OPPOSITE_BYTE_ORDER = {"B": "L", "L": "B", "N": OPPOSITE_OF_NATIVE}


def is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    """Return whether Pillow will keep only the upper 8 bits of an image that is not loaded yet."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how a file stores its pixels, such as "RGB;16B". The image must not be loaded yet."""
    if not image.tile:
        return ""
    return _raw_mode_of_tile(image.tile[0])


def _raw_mode_of_tile(tile: Any) -> str:
    """Return the raw mode of a tile, which is Pillow's description of a part of a file."""
    args = tile[3]  # by index, because older versions of Pillow do not name the parts
    if isinstance(args, tuple) and args:
        args = args[0]  # The other elements are further arguments of the decoder.
    return args if isinstance(args, str) else ""


def read_16_bit_colour(
    file: BinaryIO, formats: tuple[str, ...], pixel_range: tuple[float, float]
) -> Image.Image:
    """Read all 16 bits of each colour, and scale them to 8 bits. Transparency is not read.

    Pillow keeps only the upper byte of each value. To get the lower byte, the image is read a
    second time with a description that swaps the two bytes.
    """
    upper = _read_bytes_of_colour(file, formats, swapped=False)
    lower = _read_bytes_of_colour(file, formats, swapped=True)
    return Image.fromarray(scale_pixels(upper * 256.0 + lower, pixel_range))


def _read_bytes_of_colour(file: BinaryIO, formats: tuple[str, ...], swapped: bool) -> np.ndarray:
    """Return the upper bytes (H, W, 3) of 16-bit colours, or the lower ones if `swapped`."""
    file.seek(0)
    with Image.open(file, formats=formats) as image:
        if not _raw_mode(image).startswith(("RGB;", "RGBA;", "RGBX;")):
            raise ValueError("--pixel-range scales colours of 16 bits only if they are RGB")
        if swapped:
            image.tile = [_swap_bytes(tile) for tile in image.tile]
        return np.asarray(image)[..., :3]


def _swap_bytes(tile: Any) -> Any:
    """Return a tile with the two bytes of each value in the opposite order."""
    raw_mode = _raw_mode_of_tile(tile)
    opposite = raw_mode[:-1] + OPPOSITE_BYTE_ORDER[raw_mode[-1]]
    codec, extents, offset, args = tile
    new_args = opposite
    if isinstance(args, tuple):
        new_args = (opposite, *args[1:])
    return codec, extents, offset, new_args
