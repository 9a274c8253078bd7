"""Decode image files to uint8 tensors of one size, with Pillow."""

import hashlib
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

from utils.text import printable

# Formats that Pillow decodes by itself. EPS is not among them: Pillow would run Ghostscript.
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
    known = decoder in features.modules or decoder in features.codecs  # Pillow warns otherwise
    return known and bool(features.check(decoder))


FORMATS = tuple(filter(_has_decoder, FORMAT_SUFFIXES))
SUFFIXES = {suffix for format in FORMATS for suffix in FORMAT_SUFFIXES[format]}

CHUNK_IMAGES = 512  # most images that are decoded together
CHUNK_BYTES = 2**26  # largest size of the images that are decoded together
# Of the last letter of Pillow's raw modes: big-endian, little-endian, as this machine has it.
OTHER_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
ORIENTATIONS = {  # values of the EXIF tag, and what turns an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PixelRange = tuple[float, float] | None  # the values that become black and white


class DecodedImage(NamedTuple):
    """The pixels of an image file, and what else was learned from it."""

    pixels: Tensor  # (3, S, S) uint8
    digest: str  # SHA-256 of the file's content
    deep_range: tuple[int, int] | None  # lowest and highest value, if pixels have 16 bits


ReadResult = DecodedImage | str  # a string is the reason why a file cannot be read


def read_images(
    root: Path, files: Sequence[Path], size: int, pixel_range: PixelRange = None
) -> Iterator[list[tuple[Path, ReadResult]]]:
    """Yield each file below `root` with the result of `try_to_read`, in chunks."""
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (3 * size**2)))
    # Threads, because Pillow decodes and resizes without holding the GIL.
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), chunk):
            some = files[start : start + chunk]
            with silence_pillow():
                read = pool.map(lambda file: try_to_read(root / file, size, pixel_range), some)
                results = list(zip(some, read, strict=True))
            yield results


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings of broken metadata, of which a folder may cause thousands."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def try_to_read(path: Path, size: int, pixel_range: PixelRange = None) -> ReadResult:
    """Return the decoded image, or the reason why it cannot be read."""
    try:
        if not path.is_file() and path.exists():
            return "not a file"  # opening a pipe would block
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            pixels, deep_range = _decode(file, size, pixel_range)
            return DecodedImage(pixels, digest, deep_range)
    except Image.UnidentifiedImageError:
        return "a HEIC image: convert it" if _is_heic(path) else "not an image"
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        return printable(reason) or type(error).__name__


def _is_heic(path: Path) -> bool:
    """Return whether a file is as phones write it, often under the name of a JPEG."""
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")


def read_image(path: Path, size: int, pixel_range: PixelRange = None) -> Tensor:
    """Return the central square of an image file as RGB, resized to (3, size, size) uint8.

    Args:
        path: a file of one of `FORMATS`, whatever its suffix.
        size: side of the result in pixels.
        pixel_range: values that become black and white; None for 0 and the highest that the bits
            of the file can hold. Pixels of 8 bits are scaled only by a range that ends below 256.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with open(path, "rb") as file:
        return _decode(file, size, pixel_range)[0]


def _decode(
    file: BinaryIO,
    size: int,
    pixel_range: PixelRange,
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return the pixels as `read_image` does, and the range of 16-bit values (see `_load`)."""
    with Image.open(file, formats=FORMATS) as opened:
        # Pillow itself only warns of images of up to twice that size.
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise ValueError("too large")
        image, deep_range = _load(file, opened, pixel_range)
        orientation = _read_orientation(opened)
        if orientation is not None:
            image = image.transpose(orientation)
        image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), deep_range


def _load(
    file: BinaryIO,
    opened: ImageFile.ImageFile,
    pixel_range: PixelRange,
) -> tuple[Image.Image, tuple[int, int] | None]:
    """Load an opened image and reduce it to 8 bits a channel.

    Returns:
        The image, and the lowest and highest value of its pixels if they have 16 bits and no
        `pixel_range` says how much of these the file uses.
    """
    colour16 = _is_16_bit_colour(opened)  # must be asked before load()
    opened.load()
    if opened.mode == "F" or opened.mode.startswith("I"):
        values = np.asarray(opened)
        if pixel_range:
            return Image.fromarray(scale_pixels(values, pixel_range)), None
        low, high = values.min(), values.max()
        if opened.mode == "F" or low < 0 or high >= 2**16:
            reason = f"values {low:g} to {high:g} have no known scale"
            raise ValueError(f"{reason}: give --pixel-range LOW:HIGH")
        return Image.fromarray((values // 257).astype(np.uint8)), (int(low), int(high))
    if colour16 and pixel_range:
        return _read_16_bit_colour(file, pixel_range), None
    if colour16:
        upper = np.asarray(opened.convert("RGB"))  # Pillow has kept the upper 8 bits
        return opened, (int(upper.min()) * 256, int(upper.max()) * 256 + 255)
    if pixel_range and pixel_range[1] < 256:
        return Image.fromarray(scale_pixels(np.asarray(opened.convert("RGB")), pixel_range)), None
    return opened, None


def _is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    """Return whether Pillow will keep only the upper 8 bits of an image that is not loaded yet."""
    return ";16" in _rawmode(image) and not image.mode.startswith("I")


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Return how the pixels of an image that is not loaded yet are stored, such as "RGB;16B"."""
    if not image.tile:
        return ""
    return _rawmode_of(image.tile[0])


def _rawmode_of(tile: Any) -> str:
    args = tile[3]
    if isinstance(args, tuple) and args:  # further arguments of the decoder follow
        args = args[0]
    return args if isinstance(args, str) else ""


def _read_16_bit_colour(file: BinaryIO, pixel_range: tuple[float, float]) -> Image.Image:
    """Read all 16 bits of each colour, and scale them to 8. Transparency is dropped.

    Pillow keeps the upper byte of each value. If it is told that the two bytes come in the other
    order, it keeps the lower one.
    """
    upper = _read_bytes_of_colour(file, swapped=False)
    lower = _read_bytes_of_colour(file, swapped=True)
    return Image.fromarray(scale_pixels(upper * 256.0 + lower, pixel_range))


def _read_bytes_of_colour(file: BinaryIO, swapped: bool) -> np.ndarray:
    """Return the upper or, if `swapped`, the lower bytes (H, W, 3) of an image of 16-bit colours."""
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        if not _rawmode(image).startswith(("RGB;", "RGBA;", "RGBX;")):
            raise ValueError("--pixel-range scales colours of 16 bits only if they are RGB")
        if swapped:
            image.tile = [_swap_bytes(tile) for tile in image.tile]
        return np.asarray(image)[..., :3]


def _swap_bytes(tile: Any) -> Any:
    """Return Pillow's description of a part of an image with its bytes in the other order."""
    rawmode = _rawmode_of(tile)
    other = rawmode[:-1] + OTHER_BYTE_ORDER[rawmode[-1]]
    if isinstance(tile.args, tuple):
        return tile._replace(args=(other, *tile.args[1:]))
    return tile._replace(args=other)


def scale_pixels(values: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Map `pixel_range` linearly to 0 .. 255 as uint8; what lies outside becomes black or white."""
    low, high = pixel_range
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)


def _read_orientation(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn a loaded image upright, if its EXIF data say so.

    `ImageOps.exif_transpose` writes the other EXIF data again, so that a single wrong value among
    them would make the image unreadable.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        if isinstance(value, str):
            value = value.strip(" \0")
        return ORIENTATIONS.get(int(value))
    except Exception:
        return None


def suggest_pixel_range(low: int, high: int) -> tuple[int, int] | None:
    """Return a --pixel-range for 16-bit values from `low` to `high`; None if they need none."""
    if high - low >= 2**14 or low == high:  # a quarter of 16 bits or more is an ordinary picture
        return None
    if low < high / 4:
        return 0, 2 ** max(8, high.bit_length()) - 1  # such as 4095 for 12 bits
    return low, high
