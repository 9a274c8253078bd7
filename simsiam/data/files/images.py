"""Decode image files to uint8 tensors of one size, with Pillow."""

import math
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, features

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.image_notes import (
    ImageNotes,
    composite,
    describe_bands,
    has_several_frames,
    read_alpha,
)
from simsiam.data.files.sixteen_bits import is_16_bit_colour, read_16_bit_colour
from simsiam.data.pixel_range import PixelRange, scale_pixels, scales_8_bits

# The formats that Pillow decodes itself. EPS is excluded, because Pillow would run Ghostscript.
FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
}
OPTIONAL_DECODERS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}


def _has_decoder(format: str) -> bool:
    """Return whether the installed Pillow was built with the decoder of a format."""
    decoder = OPTIONAL_DECODERS.get(format)
    if decoder is None:
        return True
    # Pillow warns if it is asked for a decoder that it has never heard of.
    is_known = decoder in features.modules or decoder in features.codecs
    return is_known and bool(features.check(decoder))


FORMATS = tuple(filter(_has_decoder, FORMAT_SUFFIXES))
SUFFIXES = {suffix for format in FORMATS for suffix in FORMAT_SUFFIXES[format]}

# For each value of EXIF's orientation tag, the operation that turns the image upright.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Those of them that exchange height and width.
QUARTER_TURNS = {ORIENTATIONS[value] for value in (5, 6, 7, 8)}


class LoadedImage(NamedTuple):
    """An image of a file, RGB of 8 bits and upright."""

    image: Image.Image
    notes: ImageNotes  # without `small_side`
    original_size: tuple[int, int]  # height and width of the image in the file, upright


def open_file(path: Path) -> BufferedReader:
    """Open an image file for reading.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a file. To open a pipe, for example, would block.
    """
    if not path.is_file() and path.exists():
        raise ValueError("not a file")
    return open(path, "rb")


def load_rgb(file: BinaryIO, conversion: PixelConversion, reduction: float = 1.0) -> LoadedImage:
    """Load an image file as RGB of 8 bits, upright.

    Args:
        conversion: how pixels become RGB of 8 bits.
        reduction: a JPEG may be decoded at a half, a quarter or an eighth of its size, which takes
            less time, if its sides are divided by no more than this number.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with Image.open(file, formats=FORMATS) as opened:
        # Up to twice this limit Pillow itself prints only a warning.
        max_pixels = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            raise ValueError("too large")
        bands = describe_bands(opened)
        original_size = (opened.height, opened.width)
        if reduction >= 2:
            smallest = (math.ceil(opened.width / reduction), math.ceil(opened.height / reduction))
            opened.draft(opened.mode, smallest)
        loaded, range_16_bit = _load(file, opened, conversion.pixel_range)
        image: Image.Image = loaded
        if loaded.mode != "RGB":  # otherwise `convert` would copy the image
            image = loaded.convert("RGB")
        alpha = read_alpha(opened)
        if alpha is not None:
            image = composite(image, alpha, conversion.background)
        orientation = _read_orientation(opened)
        if orientation is not None:
            image = image.transpose(orientation)
            original_size = _turn_size(original_size, orientation)
        notes = ImageNotes(
            range_16_bit=range_16_bit,
            transparent=alpha is not None,
            several_frames=has_several_frames(opened),
            bands=bands,
        )
    return LoadedImage(image, notes, original_size)


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file, upright, from its header.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with open_file(path) as file, Image.open(file, formats=FORMATS) as opened:
        size = _read_stored_size(opened)
        orientation = _read_orientation(opened)
    return size if orientation is None else _turn_size(size, orientation)


def _read_stored_size(opened: ImageFile.ImageFile) -> tuple[int, int]:
    """Return height and width of an image as its file stores it, before any turn."""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        # When new versions of Pillow open a TIFF with a quarter turn, `size` is already turned.
        tags = opened.tag_v2
        return tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
    return opened.height, opened.width


def _turn_size(size: tuple[int, int], orientation: Image.Transpose) -> tuple[int, int]:
    """Return height and width of an image after an operation of `ORIENTATIONS`."""
    height, width = size
    return (width, height) if orientation in QUARTER_TURNS else (height, width)


def _load(
    file: BinaryIO,
    opened: ImageFile.ImageFile,
    pixel_range: PixelRange,
) -> tuple[Image.Image, tuple[int, int] | None]:
    """Load an opened image and reduce it to 8 bits a channel.

    Returns:
        The image, and the lowest and the highest value of its pixels. The two values are None
        unless the pixels have 16 bits and there is no `pixel_range`. They are for a warning that
        the pixels use only few of the 65536 values.

    Raises:
        ValueError: if the values have no known scale and there is no `pixel_range`.
    """
    has_16_bit_colour = is_16_bit_colour(opened)  # This cannot be found out after load().
    opened.load()

    # Grey images of 16 bits, and images of 32-bit integers and floats
    if opened.mode == "F" or opened.mode.startswith("I"):
        values = np.asarray(opened)
        if pixel_range is not None:
            return Image.fromarray(scale_pixels(values, pixel_range)), None
        low = values.min()
        high = values.max()
        if opened.mode == "F" or low < 0 or high >= 2**16:
            raise ValueError(
                f"values {low:g} to {high:g} have no known scale: pass --pixel-range LOW:HIGH"
            )
        scaled = (values // 257).astype(np.uint8)  # 65535 becomes 255
        return Image.fromarray(scaled), (int(low), int(high))

    # Colours of 16 bits. Pillow has loaded only the upper byte of each value.
    if has_16_bit_colour:
        if pixel_range is not None:
            return read_16_bit_colour(file, FORMATS, pixel_range), None
        upper_bytes = np.asarray(opened.convert("RGB"))
        low = int(upper_bytes.min()) * 256
        high = int(upper_bytes.max()) * 256 + 255
        return opened, (low, high)

    # All other images have 8 bits.
    if pixel_range is not None and scales_8_bits(pixel_range):
        pixels = np.asarray(opened.convert("RGB"))
        return Image.fromarray(scale_pixels(pixels, pixel_range)), None
    return opened, None


def _read_orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that turns a loaded image upright, if its EXIF data ask for one.

    `ImageOps.exif_transpose` is not used, because it also writes the other EXIF data. One wrong
    value among them would make the image unreadable.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        if isinstance(value, str):
            value = value.strip(" \0")
        return ORIENTATIONS.get(int(value))
    except Exception:  # noqa: BLE001  (for damaged EXIF data Pillow raises any exception)
        return None
