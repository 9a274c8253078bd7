"""Decode image files to uint8 tensors of one size, with Pillow."""

import hashlib
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, features
from torch import Tensor

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

# The last letter of Pillow's raw modes is the byte order: big, little, or native to the machine.
# This maps each order to the opposite one.
OPPOSITE_OF_NATIVE = "B" if sys.byteorder == "little" else "L"
OPPOSITE_BYTE_ORDER = {"B": "L", "L": "B", "N": OPPOSITE_OF_NATIVE}

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
        range_16_bit: the lowest and the highest value of 16-bit pixels. It is None if the pixels
            have 8 bits, or if a pixel range was given.
    """

    pixels: Tensor
    digest: str
    range_16_bit: tuple[int, int] | None


# What reading a file returns. A string is the reason why the file cannot be read.
ReadResult = DecodedImage | str


def read_images(
    root: Path, files: Sequence[Path], size: int, pixel_range: PixelRange = None
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
                    pool.map(lambda file: try_to_read(root / file, size, pixel_range), chunk)
                )
            yield list(zip(chunk, results, strict=True))


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings about broken metadata. A folder may cause thousands of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def try_to_read(path: Path, size: int, pixel_range: PixelRange = None) -> ReadResult:
    """Return the decoded image, or the reason why the file cannot be read."""
    try:
        # To open a pipe, for example, would block. To open a missing file raises an error.
        if path.exists() and not path.is_file():
            return "not a file"
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            pixels, range_16_bit = _decode(file, size, pixel_range)
            return DecodedImage(pixels, digest, range_16_bit)
    except Image.UnidentifiedImageError:
        return "a HEIC image: convert it" if _is_heic(path) else "not an image"
    except Exception as error:  # noqa: BLE001  (for a damaged file Pillow raises any exception)
        reason = getattr(error, "strerror", None)
        if not reason:
            reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        return printable(reason) or type(error).__name__


def _is_heic(path: Path) -> bool:
    """Return whether a file is HEIC, whatever its name. Phones often call it .jpg."""
    with open(path, "rb") as file:
        header = file.read(12)
    return header[4:8] == b"ftyp" and header[8:11] in (b"hei", b"hev", b"mif", b"msf")


def read_image(path: Path, size: int, pixel_range: PixelRange = None) -> Tensor:
    """Return the central square of an image file as RGB, resized to (3, size, size) uint8.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix.
        size: side of the result in pixels.
        pixel_range: the values that become black and white. None stands for 0 and the highest
            value of 8 bits (255) or of 16 bits (65535). See `scales_8_bits` for images of 8 bits.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with open(path, "rb") as file:
        pixels, _ = _decode(file, size, pixel_range)
    return pixels


def _decode(
    file: BinaryIO,
    size: int,
    pixel_range: PixelRange,
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return the pixels (3, size, size) uint8, and the range of 16-bit values (see `_load`)."""
    image, range_16_bit, _ = load_rgb(file, pixel_range)
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))  # (size, size, 3)
    return pixels.permute(2, 0, 1).contiguous(), range_16_bit


def load_rgb(
    file: BinaryIO, pixel_range: PixelRange, reduction: float = 1.0
) -> tuple[Image.Image, tuple[int, int] | None, tuple[int, int]]:
    """Load an image file as RGB of 8 bits, upright.

    Args:
        reduction: a JPEG may be decoded at a half, a quarter or an eighth of its size, if it is
            not made smaller by more than this factor. That takes less time.

    Returns:
        The image, the range of 16-bit values (see `_load`), and the original height and width.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with Image.open(file, formats=FORMATS) as opened:
        # Up to twice this limit Pillow itself prints only a warning.
        max_pixels = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            raise ValueError("too large")
        original_size = (opened.height, opened.width)
        if reduction >= 2:
            smallest = (math.ceil(opened.width / reduction), math.ceil(opened.height / reduction))
            opened.draft(opened.mode, smallest)
        image, range_16_bit = _load(file, opened, pixel_range)
        image = image.convert("RGB")
        orientation = _read_orientation(opened)
        if orientation is not None:
            image = image.transpose(orientation)
            original_size = _turn_size(original_size, orientation)
    return image, range_16_bit, original_size


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
    is_16_bit_colour = _is_16_bit_colour(opened)  # This cannot be found out after load().
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
    if is_16_bit_colour:
        if pixel_range is not None:
            return _read_16_bit_colour(file, pixel_range), None
        upper_bytes = np.asarray(opened.convert("RGB"))
        low = int(upper_bytes.min()) * 256
        high = int(upper_bytes.max()) * 256 + 255
        return opened, (low, high)

    # All other images have 8 bits.
    if pixel_range is not None and scales_8_bits(pixel_range):
        pixels = np.asarray(opened.convert("RGB"))
        return Image.fromarray(scale_pixels(pixels, pixel_range)), None
    return opened, None


def _is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
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


def _read_16_bit_colour(file: BinaryIO, pixel_range: tuple[float, float]) -> Image.Image:
    """Read all 16 bits of each colour, and scale them to 8 bits. Transparency is dropped.

    Pillow keeps only the upper byte of each value. To get the lower byte, the image is read a
    second time with a description that swaps the two bytes.
    """
    upper = _read_bytes_of_colour(file, swapped=False)
    lower = _read_bytes_of_colour(file, swapped=True)
    return Image.fromarray(scale_pixels(upper * 256.0 + lower, pixel_range))


def _read_bytes_of_colour(file: BinaryIO, swapped: bool) -> np.ndarray:
    """Return the upper bytes (H, W, 3) of 16-bit colours, or the lower ones if `swapped`."""
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
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
