"""Check the arrays of a data set, and convert them to images, labels and class names."""

from collections import Counter

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
    pixel_range = conversion.pixel_range
    if pixel_range is not None and _needs_scaling(pixels, pixel_range):
        pixels = _scale_images(pixels, pixel_range)
    require(
        pixels.dtype == np.uint8,
        f"{where}: {name} is {pixels.dtype}, but images are uint8, 0 to 255. "
        "Pass --pixel-range LOW:HIGH to scale them.",
    )
    images = torch.from_numpy(pixels)
    if images.ndim == 3:
        images = images[:, None]  # (N, 1, S, S)
    elif images.ndim == 4 and _has_channels_last(images.shape):
        images = images.permute(0, 3, 1, 2)
    is_square = images.ndim == 4 and images.shape[2] == images.shape[3] > 0
    require(
        is_square and 1 <= images.shape[1] <= MAX_CHANNELS,
        f"{where}: {name} has shape {pixels.shape}. Images have the shape (N, S, S, 3), "
        "(N, 3, S, S) or (N, S, S). Of images with more channels, save the three to use.",
    )
    if images.shape[1] in (2, 4):
        images = _composite(where, name, images, conversion.background)
    return images.expand(-1, 3, -1, -1).contiguous()


def _has_channels_last(shape: torch.Size) -> bool:
    """Return whether the last of four axes has the channels. In tiny images both axes might."""
    if shape[1] > MAX_CHANNELS:
        return shape[3] <= MAX_CHANNELS
    return shape[3] in (1, 3)


def _composite(where: str, name: str, images: torch.Tensor, background: Colour) -> torch.Tensor:
    """Return RGB images on a background, in chunks to save memory. Print how many are affected.

    Args:
        images: (N, 2, S, S) or (N, 4, S, S) uint8. The last channel is the opacity.
    """
    colour = torch.tensor(background, dtype=torch.float32)[:, None, None]
    result = torch.empty(len(images), 3, *images.shape[2:], dtype=torch.uint8)
    num_transparent = 0
    for start in range(0, len(images), IMAGES_PER_CHUNK):
        chunk = images[start : start + IMAGES_PER_CHUNK]
        opacity = chunk[:, -1:].float() / 255
        mixed = chunk[:, :-1] * opacity + colour * (1 - opacity)
        result[start : start + IMAGES_PER_CHUNK] = mixed.round().to(torch.uint8)
        num_transparent += int((chunk[:, -1] < 255).flatten(1).any(dim=1).sum())
    if distributed.rank() == 0:
        print_line(
            f"{where}: the last of the {images.shape[1]} channels of {name} is taken as opacity. "
            f"{num_transparent:,} of {len(images):,} images have transparency, which is composited "
            f"on {name_colour(background)}. --background sets another colour."
        )
    return result


def _needs_scaling(pixels: np.ndarray, pixel_range: tuple[float, float]) -> bool:
    """Return whether to scale an array: any numbers, but see `scales_8_bits` for uint8."""
    if pixels.dtype == np.uint8:
        return scales_8_bits(pixel_range)
    return pixels.dtype.kind in "uif"  # unsigned integers, signed integers, floats


def _scale_images(pixels: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Scale pixels as `scale_pixels` does, in chunks to save memory."""
    scaled = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), IMAGES_PER_CHUNK):
        chunk = slice(start, start + IMAGES_PER_CHUNK)
        scaled[chunk] = scale_pixels(pixels[chunk], pixel_range)
    return scaled


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
