"""Draw the boxes of random crops, distributed as in torchvision's RandomResizedCrop."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# torchvision also tries ten random crops, and then takes a central crop that fits.
CROP_TRIES = 10
BOX_NUMBERS = 2 * CROP_TRIES + 2  # random numbers that a box is drawn from
MAX_ASPECT_RATIO = 4 / 3  # of a crop: torchvision's default ratio is (3/4, 4/3)


class CropBoxes(NamedTuple):
    """A box in each of B images, in pixels, (B,) int64 each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_crop_boxes(
    numbers: Tensor, image_height: Tensor, image_width: Tensor, crop_scale: float
) -> CropBoxes:
    """Return the first of ten random boxes that fits into each image, at a random position.

    The area and the logarithm of the aspect ratio are uniform. If no box fits, the result is the
    largest central box of a permitted shape.

    Args:
        numbers: Uniform random numbers from 0 to 1, (B, BOX_NUMBERS).
        image_height, image_width: Size of each image in pixels, (B,) int64.
        crop_scale: The smallest area of a box, as a fraction of the image.
    """
    area_fraction = crop_scale + numbers[:, :CROP_TRIES] * (1 - crop_scale)  # (B, 10)
    log_ratio = 2 * numbers[:, CROP_TRIES : 2 * CROP_TRIES] - 1
    ratio = torch.exp(log_ratio * math.log(MAX_ASPECT_RATIO))  # (B, 10) width / height
    area = (image_height * image_width)[:, None] * area_fraction
    width = torch.round(torch.sqrt(area * ratio)).long()
    height = torch.round(torch.sqrt(area / ratio)).long()

    fits_width = (width > 0) & (width <= image_width[:, None])
    fits_height = (height > 0) & (height <= image_height[:, None])
    fits = fits_width & fits_height
    none_fits = ~fits.any(dim=1)
    first = fits.int().argmax(dim=1, keepdim=True)  # (B, 1): argmax returns the first maximum
    largest_height, largest_width = _largest_permitted_shape(image_height, image_width)
    height = torch.where(none_fits, largest_height, height.gather(1, first).squeeze(1))
    width = torch.where(none_fits, largest_width, width.gather(1, first).squeeze(1))

    spare_height = image_height - height
    spare_width = image_width - width
    random_top = (numbers[:, -2] * (spare_height + 1)).long()
    random_left = (numbers[:, -1] * (spare_width + 1)).long()
    top = torch.where(none_fits, spare_height // 2, random_top)
    left = torch.where(none_fits, spare_width // 2, random_left)
    return CropBoxes(top, left, height, width)


def _largest_permitted_shape(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width (B,) of the largest box of a permitted aspect ratio in each image."""
    permitted_width = torch.round(height * MAX_ASPECT_RATIO).long()
    permitted_height = torch.round(width * MAX_ASPECT_RATIO).long()
    return torch.minimum(height, permitted_height), torch.minimum(width, permitted_width)
