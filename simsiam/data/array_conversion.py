"""Check the arrays of a data set, and convert them to images, labels and class names."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from simsiam.config.value_types import Colour, PixelConversion, name_colour
from simsiam.data.dataset import name_class
from simsiam.data.pixel_range import scale_pixels, scales_8_bits
from utils import distributed
from utils.console import print_line
from utils.errors import require

CLASSES_ARRAY = "classes"  # name of the array with the names of the classes
MAX_CHANNELS = 4  # red, green, blue and opacity
IMAGES_PER_CHUNK = 1000  # images that are scaled together; they are float32 meanwhile


def convert_images(
    where: str, name: str, pixels: np.ndarray, conversion: PixelConversion
) -> torch.Tensor:
    """Return an array of images as (N, 3, S, S) uint8.

    Args:
        where: name of the file, for error messages.
        name: name of the array.
        pixels: (N, S, S, C), (N, C, S, S) or (N, S, S). C is 1 for grey, 2 for grey with opacity, 3
            for RGB, or 4 for RGB with opacity.
        conversion: values that become black and white, see `scale_pixels`, and the background.

    Raises:
        UserError: if the array has another type or shape.
    """
    _check_type(where, name, pixels.dtype, conversion.pixel_range)
    pixels = _move_channels_first(where, name, pixels)
    if pixels.shape[1] in (2, 4):
        colours = _to_8_bits(pixels[:, :-1], conversion.pixel_range)
        opacity = _to_8_bits(pixels[:, -1:], _find_opacity_range(where, name, pixels.dtype))
        images = _composite(where, name, colours, opacity, conversion.background)
    else:
        images = torch.from_numpy(_to_8_bits(pixels, conversion.pixel_range))
    return images.expand(-1, 3, -1, -1).contiguous()


def _check_type(
    where: str, name: str, dtype: np.dtype[Any], pixel_range: tuple[float, float] | None
) -> None:
    """Refuse an array of pixels without a known scale.

    Booleans are black and white, and uint8 has its scale. Other numbers need `--pixel-range`.
    """
    is_number = dtype.kind in "buif"  # booleans, unsigned and signed integers, floats
    require(is_number, f"{where}: {name} is {dtype}, but images are numbers.")
    has_scale = dtype in (np.uint8, np.bool_) or pixel_range is not None
    require(
        has_scale,
        f"{where}: {name} is {dtype}, but images are uint8, 0 to 255. "
        "Pass --pixel-range LOW:HIGH to scale them.",
    )


def _move_channels_first(where: str, name: str, pixels: np.ndarray) -> np.ndarray:
    """Return images as (N, C, S, S), where C is 1 to 4.

    Raises:
        UserError: if the array has another shape.
    """
    images = pixels
    if images.ndim == 3:
        images = images[:, None]  # (N, 1, S, S)
    elif images.ndim == 4 and _has_channels_last(images.shape):
        images = images.transpose(0, 3, 1, 2)
    is_square = images.ndim == 4 and images.shape[2] == images.shape[3] > 0
    require(
        is_square and 1 <= images.shape[1] <= MAX_CHANNELS,
        f"{where}: {name} has shape {pixels.shape}. Images have the shape (N, S, S, 3), "
        "(N, 3, S, S) or (N, S, S). Of images with more channels, save the three to use.",
    )
    return images


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the last of four axes has the channels. In tiny images both axes might."""
    if shape[1] > MAX_CHANNELS:
        return shape[3] <= MAX_CHANNELS
    return shape[3] in (1, 3)


def _to_8_bits(values: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return values as uint8, scaled from their range in chunks to save memory.

    Booleans become 0 and 255, whatever the range is. See `scales_8_bits` for uint8.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if value_range is None or (values.dtype == np.uint8 and not scales_8_bits(value_range)):
        return values
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), IMAGES_PER_CHUNK):
        chunk = slice(start, start + IMAGES_PER_CHUNK)
        scaled[chunk] = scale_pixels(values[chunk], value_range)
    return scaled


def _find_opacity_range(where: str, name: str, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Return the values of full transparency and of full opacity, or None if none is scaled.

    They follow from the type, because `--pixel-range` is that of the colours.

    Raises:
        UserError: the type has no usual range.
    """
    if dtype in (np.uint8, np.bool_):
        return None
    if dtype == np.uint16:
        return 0, 2**16 - 1
    require(
        dtype.kind == "f",
        f"{where}: the last channel of {name} would be opacity, which has no known scale as "
        f"{dtype}. Save uint8, uint16 or float images, or leave out this channel.",
    )
    return 0, 1


def _composite(
    where: str, name: str, colours: np.ndarray, opacity: np.ndarray, background: Colour
) -> torch.Tensor:
    """Return RGB images on a background, in chunks to save memory. Print how many are affected.

    Args:
        colours: (N, 1, S, S) or (N, 3, S, S) uint8.
        opacity: (N, 1, S, S) uint8.
    """
    behind = torch.tensor(background, dtype=torch.float32)[:, None, None]
    result = torch.empty(len(colours), 3, *colours.shape[2:], dtype=torch.uint8)
    num_transparent = 0
    for start in range(0, len(colours), IMAGES_PER_CHUNK):
        chunk = slice(start, start + IMAGES_PER_CHUNK)
        share = torch.from_numpy(opacity[chunk]).float() / 255
        mixed = torch.from_numpy(colours[chunk]) * share + behind * (1 - share)
        result[chunk] = mixed.round().to(torch.uint8)
        num_transparent += int((share < 1).flatten(1).any(dim=1).sum())
    if distributed.rank() == 0:
        print_line(
            f"{where}: the last of the {colours.shape[1] + 1} channels of {name} is taken as "
            f"opacity. {num_transparent:,} of {len(colours):,} images have transparency, which is "
            f"composited on {name_colour(background)}. --background sets another colour."
        )
    return result


def convert_labels(where: str, name: str, labels: np.ndarray, num_images: int) -> np.ndarray | None:
    """Return an array of labels as (N,) int64, or None if there are several labels for an image.

    Raises:
        UserError: if the array has another type or shape, or negative labels.
    """
    is_integer = labels.dtype.kind in "iu"
    require(is_integer, f"{where}: {name} is {labels.dtype}, but labels are whole numbers.")
    if labels.ndim == 2 and labels.shape[0] == num_images and labels.shape[1] > 1:
        if distributed.rank() == 0:
            print_line(
                f"{where}: {name} has {labels.shape[1]} labels for each image, but only one can "
                "be used. The images are used without labels."
            )
        return None
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras and MedMNIST have this shape.
        labels = labels[:, 0]
    has_one_label_per_image = labels.shape == (num_images,)
    require(
        has_one_label_per_image,
        f"{where}: {name} has shape {labels.shape}, for {num_images} images.",
    )
    lowest = int(labels.min(initial=0))
    highest = int(labels.max(initial=0))
    require(
        lowest >= 0 and highest < 2**63,
        f"{where}: {name} goes from {lowest} to {highest}, "
        "but labels count from 0, up to 2^63 - 1.",
    )
    return labels.astype(np.int64)


def name_classes(where: str, names: np.ndarray | None, occurring: np.ndarray) -> tuple[str, ...]:
    """Return the names of the classes, which are the labels that occur.

    Args:
        names: (C,) text, where names[label] is the name of a label. None means that the labels
            themselves are the names.
        occurring: the labels that occur, in ascending order.

    Raises:
        UserError: if `names` is not text, has too few names, or has a name twice.
    """
    if len(occurring) == 0:
        return ()
    if names is None:
        return tuple(str(label) for label in occurring)
    is_text = names.dtype.kind == "U" and names.ndim == 1
    require(
        is_text, f"{where}: {CLASSES_ARRAY} is {names.dtype}, but names are text, of shape (C,)."
    )
    highest = int(occurring[-1])
    require(
        highest < len(names),
        f"{where}: the labels go to {highest}, but {CLASSES_ARRAY} has {len(names)} names.",
    )
    classes = tuple(name_class(name) for name in names[occurring].tolist())
    for name, count in Counter(classes).items():
        require(count == 1, f"{where}: {CLASSES_ARRAY} has the name {name!r} more than once.")
    return classes
