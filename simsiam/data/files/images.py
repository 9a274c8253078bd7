"""Decode image files to uint8 tensors of one size, with Pillow."""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, features
from torch import Tensor

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.image_notes import (
    ImageNotes,
    composite,
    describe_bands,
    describe_unidentified,
    has_several_frames,
    read_alpha,
)
from simsiam.data.files.sixteen_bits import is_16_bit_colour, read_16_bit_colour
from simsiam.data.pixel_range import PixelRange, scale_pixels, scales_8_bits
from utils.text import printable

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

CHUNK_IMAGES = 512  # maximal number of images that are decoded together
CHUNK_BYTES = 2**26  # maximal size of these images after decoding
MAX_THREADS = 32
MAX_REASON_LENGTH = 100  # letters that are shown of Pillow's own messages

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


class DecodedImage(NamedTuple):
    """The content of an image file.

    Attributes:
        pixels: (3, S, S) uint8.
        digest: SHA-256 of the file.
    """

    pixels: Tensor
    digest: str
    notes: ImageNotes


# What reading a file returns. A string is the reason why the file cannot be read.
ReadResult = DecodedImage | str


def read_images(
    root: Path,
    files: Sequence[Path],
    size: int,
    conversion: PixelConversion = PixelConversion(),
) -> Iterator[list[tuple[Path, ReadResult]]]:
    """Yield each file below `root` with the result of `try_to_read`, in chunks."""
    bytes_per_image = 3 * size**2
    images_that_fit = CHUNK_BYTES // bytes_per_image
    chunk_size = max(1, min(CHUNK_IMAGES, images_that_fit))
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    # Threads are enough, because Pillow releases the GIL while it decodes and resizes.
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(files), chunk_size):
            chunk = files[start : start + chunk_size]
            # Do not yield inside this block: the caller's own warnings must not be silenced.
            with silence_pillow():
                results = list(
                    pool.map(lambda file: try_to_read(root / file, size, conversion), chunk)
                )
            yield list(zip(chunk, results, strict=True))


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings about broken metadata. A folder may cause thousands of them.

    Pillow also logs errors, which Python would print. `try_to_read` returns the reason of an error.
    """
    logger = logging.getLogger("PIL")
    level_before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        logger.setLevel(level_before)


def try_to_read(
    path: Path, size: int, conversion: PixelConversion = PixelConversion()
) -> ReadResult:
    """Return the decoded image, or the reason why the file cannot be read."""
    try:
        # To open a pipe, for example, would block. To open a missing file raises an error.
        if path.exists() and not path.is_file():
            return "not a file"
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            pixels, notes = _decode(file, size, conversion)
            return DecodedImage(pixels, digest, notes)
    except Image.UnidentifiedImageError:
        return describe_unidentified(path)
    except Exception as error:  # noqa: BLE001  (for a damaged file Pillow raises any exception)
        reason = getattr(error, "strerror", None)
        if not reason:
            reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        return printable(reason) or type(error).__name__


def read_image(path: Path, size: int, conversion: PixelConversion = PixelConversion()) -> Tensor:
    """Return the central square of an image file as RGB, resized to (3, size, size) uint8.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix.
        size: side of the result in pixels.
        conversion: how pixels become RGB of 8 bits.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with open(path, "rb") as file:
        pixels, _ = _decode(file, size, conversion)
    return pixels


def _decode(file: BinaryIO, size: int, conversion: PixelConversion) -> tuple[Tensor, ImageNotes]:
    """Return the pixels (3, size, size) uint8 of the central square, and notes about the file."""
    image, notes, _ = load_rgb(file, conversion)
    shorter_side = min(image.size)
    if shorter_side < size:
        notes = notes._replace(small_side=shorter_side)
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square))  # (size, size, 3)
    return pixels.permute(2, 0, 1).contiguous(), notes


class LoadedImage(NamedTuple):
    """An image of a file, RGB of 8 bits and upright."""

    image: Image.Image
    notes: ImageNotes  # without `small_side`
    original_size: tuple[int, int]  # height and width of the image in the file, upright


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
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as opened:
        size = (opened.height, opened.width)
        orientation = _read_orientation(opened)
    return size if orientation is None else _turn_size(size, orientation)


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
