"""Read many image files in threads: their clean images, and their whole images for a cache."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simsiam.config.value_types import PixelConversion
from simsiam.data.files.image_notes import ImageNotes, describe_unidentified
from simsiam.data.files.images import LoadedImage, load_rgb, open_file
from simsiam.data.files.resizing import resize_clean, resize_whole
from simsiam.data.files.threads import count_threads, start_threads
from utils.text import printable

CHUNK_IMAGES = 512  # maximal number of images that are decoded together
CHUNK_BYTES = 2**26  # maximal size of these images after decoding
MAX_REASON_LENGTH = 100  # letters that are shown of Pillow's own messages


class DecodedImage(NamedTuple):
    """The content of an image file.

    Attributes:
        pixels: (3, S, S) uint8, the clean image.
        digest: SHA-256 of the file.
        original_size: height and width of the image in the file.
        whole: (h, w, 3) uint8, the whole image, perhaps smaller than in the file; None if it was
            not asked for.
    """

    pixels: Tensor
    digest: str
    notes: ImageNotes
    original_size: tuple[int, int]
    whole: Tensor | None


# What reading a file returns. A string is the reason why the file cannot be read.
ReadResult = DecodedImage | str
Name = TypeVar("Name", Path, str)


def read_images(
    root: Path,
    files: Sequence[Name],
    size: int,
    conversion: PixelConversion = PixelConversion(),
    shorter_side: int | None = None,
) -> Iterator[list[tuple[Name, ReadResult]]]:
    """Yield each file below `root` with the result of `try_to_read`, in chunks.

    Args:
        size, conversion, shorter_side: as for `try_to_read`.
    """
    bytes_per_image = 3 * size**2
    if shorter_side is not None:
        bytes_per_image += 4 * shorter_side**2  # most photographs are 4:3
    images_that_fit = CHUNK_BYTES // bytes_per_image
    chunk_size = max(1, min(CHUNK_IMAGES, images_that_fit))
    with start_threads(count_threads()) as pool:
        for start in range(0, len(files), chunk_size):
            chunk = files[start : start + chunk_size]
            # Do not yield inside this block: the caller's own warnings must not be silenced.
            with silence_pillow():
                results = list(
                    pool.map(
                        lambda file: try_to_read(root / file, size, conversion, shorter_side), chunk
                    )
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
    path: Path,
    size: int,
    conversion: PixelConversion = PixelConversion(),
    shorter_side: int | None = None,
) -> ReadResult:
    """Return the decoded image, or the reason why the file cannot be read.

    Args:
        size: S, the side of the clean image in pixels.
        conversion: how pixels become RGB of 8 bits.
        shorter_side: the whole image is returned too, and its shorter side has at most this number
            of pixels.
    """
    try:
        with open_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            loaded = load_rgb(file, conversion)
        image = to_tensor(loaded)
        whole = None
        if shorter_side is not None:
            whole = resize_whole(image, shorter_side)
        notes = loaded.notes
        smallest = min(loaded.original_size)
        if smallest < size:
            notes = notes._replace(small_side=smallest)
        return DecodedImage(resize_clean(image, size), digest, notes, loaded.original_size, whole)
    except Exception as error:  # noqa: BLE001  (for a damaged file Pillow raises any exception)
        return describe_failure(path, error)


def describe_failure(path: Path, error: Exception) -> str:
    """Return the reason why a file could not be read, for a message."""
    if isinstance(error, Image.UnidentifiedImageError):
        return describe_unidentified(path)
    reason = getattr(error, "strerror", None)
    if not reason:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
    return printable(reason) or type(error).__name__


def read_image(path: Path, size: int, conversion: PixelConversion = PixelConversion()) -> Tensor:
    """Return an image file as a clean image, RGB, (3, size, size) uint8: see `resize_clean`.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix.
        size: side of the result in pixels.
        conversion: how pixels become RGB of 8 bits.

    Raises:
        Exception: of any kind, if the file is damaged.
    """
    with open_file(path) as file:
        return resize_clean(to_tensor(load_rgb(file, conversion)), size)


def to_tensor(loaded: LoadedImage) -> Tensor:
    """Return the pixels (h, w, 3) uint8 of an image."""
    return torch.from_numpy(np.array(loaded.image))
