"""Resize decoded images: whole, to their clean square, or crops of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from simsiam.config.options import SMALL_IMAGE

CLEAN_MARGIN = 8 / 7  # torchvision's usual evaluation resizes to 256 pixels and crops 224


class Box(NamedTuple):
    """A part of an image, in pixels of the original image."""

    top: int
    left: int
    height: int
    width: int


def resized_side(size: int) -> int:
    """Return to how many pixels the shorter side is resized for a clean square of side `size`.

    Above 64 pixels there is ImageNet's usual margin: 256 pixels for 224. Smaller squares have none,
    as those of CIFAR.
    """
    if size <= SMALL_IMAGE:
        return size
    return round(size * CLEAN_MARGIN)


def resize_clean(image: Tensor, size: int) -> Tensor:
    """Return the central square of an image as torchvision's usual evaluation takes it.

    The shorter side is resized to `resized_side(size)`, and the square is cut from the middle.

    Args:
        image: (h, w, 3) uint8.
        size: S, the side of the square in pixels.

    Returns:
        (3, S, S) uint8.
    """
    height, width = image.shape[:2]
    shorter_side = resized_side(size)
    # torchvision's Resize rounds the longer side down.
    if height <= width:
        new_height = shorter_side
        new_width = shorter_side * width // height
    else:
        new_height = shorter_side * height // width
        new_width = shorter_side
    resized = _resize(image, new_height, new_width)
    top = round((new_height - size) / 2)
    left = round((new_width - size) / 2)
    return resized[:, top : top + size, left : left + size].contiguous()


def resize_whole(image: Tensor, shorter_side: int) -> Tensor:
    """Return an image (h, w, 3), made smaller if its shorter side has more pixels than this.

    The crops of the result are resized once more, which blurs them a little. Lanczos makes up for
    it: at twice the side of a view, sharpness is distributed as that of crops of the file.
    """
    height, width = image.shape[:2]
    ratio = shorter_side / min(height, width)
    if ratio >= 1:
        return image
    new_height = max(1, math.floor(height * ratio + 0.5))
    new_width = max(1, math.floor(width * ratio + 0.5))
    resized = Image.fromarray(image.numpy()).resize(
        (new_width, new_height), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(resized))


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image (h, w, 3) uint8 to (3, height, width).

    torch resizes uint8 images bilinearly and with antialiasing, as Pillow does, in a third of the
    time.
    """
    channels_first = image.permute(2, 0, 1)[None]
    return interpolate(channels_first, (height, width), mode="bilinear", antialias=True)[0]


def cut_boxes(
    image: Tensor, original_size: Sequence[int], boxes: Sequence[Box], crops: Tensor
) -> None:
    """Cut crops out of an image, resized as torchvision resizes them.

    Args:
        image: (h, w, 3) uint8, perhaps smaller than the original.
        original_size: height and width of the original, to which the boxes refer.
        boxes: V boxes.
        crops: (V, 3, S, S) uint8, which is overwritten.
    """
    size = crops.shape[-1]
    for crop, box in zip(crops, boxes, strict=True):
        rows = _scale(box.top, box.height, original_size[0], image.shape[0])
        columns = _scale(box.left, box.width, original_size[1], image.shape[1])
        crop.copy_(_resize(image[rows, columns], size, size))


def _scale(start: int, length: int, original_side: int, side: int) -> slice:
    """Return the pixels of a side that a part of the original side covers, at least one."""
    ratio = side / original_side
    first = min(round(start * ratio), side - 1)
    end = max(first + 1, min(side, round((start + length) * ratio)))
    return slice(first, end)
