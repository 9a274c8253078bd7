"""The operations of RandAugment on a batch, at the strength that DSSL uses: 9 of 30.

The operations and their ranges are those of Cubuk et al. 2019 ("RandAugment") as DSSL (Bai et al.
2022, CVPR) has them for CIFAR. Its translation by 30 pixels is left out, because it leaves nearly
nothing of an image of 32 pixels.

Each operation takes images (B, 3, S, S) from 0 to 1, and `Choices`, the random choices that it may
have for each sample. The tests compare each operation with PIL's or torchvision's on single images,
whose pixels have 256 levels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

from simsiam.image_ops import luma, per_image, solarize

STRENGTH = 9 / 30  # of the largest change

# The factor of colour, contrast, brightness and sharpness; 1 changes nothing.
BLEND_FACTOR = 0.1 + STRENGTH * (1.9 - 0.1)
POSTERIZE_BITS = 1  # 4 bits x STRENGTH, rounded down
SOLARIZE_LEVEL = 77  # The smallest of 256 levels that is inverted: 256 x STRENGTH, rounded up.
SOLARIZE_ADDITION = 110 * STRENGTH / 255
ANGLE = math.radians(30 * STRENGTH)
SHEAR = 0.3 * STRENGTH  # columns per row, or rows per column
CUTOUT_SIDE = 40 * STRENGTH / 32  # of the square, as a share of the image's side
CUTOUT_COLOUR = (125 / 255, 123 / 255, 114 / 255)  # the mean of ImageNet, as in DSSL


class Choices(NamedTuple):
    """The random choices that an operation may have for each sample."""

    sign: Tensor  # (B,) float32: -1 or 1, the direction of a rotation or shear
    center: Tensor  # (B, 2) float32: row and column of the cutout's centre, from 0 to 1


# ---------------------------------------------------------------- values of pixels


def posterize(x: Tensor, choices: Choices) -> Tensor:
    """Keep the highest bits of each value."""
    step = 2 ** (8 - POSTERIZE_BITS)
    return torch.floor(_levels(x) / step) * step / 255


def solarize_below(x: Tensor, choices: Choices) -> Tensor:
    """Invert the values above a low threshold."""
    return torch.where(x >= (SOLARIZE_LEVEL - 0.5) / 255, 1 - x, x)


def solarize_brightened(x: Tensor, choices: Choices) -> Tensor:
    """Add a constant, then invert the bright values."""
    return solarize((x + SOLARIZE_ADDITION).clamp(max=1))


def invert(x: Tensor, choices: Choices) -> Tensor:
    """Invert all values."""
    return 1 - x


def autocontrast(x: Tensor, choices: Choices) -> Tensor:
    """Stretch each channel to the range from 0 to 1. A channel of one level stays the same."""
    low = x.amin(dim=(2, 3), keepdim=True)
    span = x.amax(dim=(2, 3), keepdim=True) - low
    is_flat = span < 0.5 / 255  # A gray view differs by rounding errors.
    return torch.where(is_flat, x, (x - low) / torch.where(is_flat, 1.0, span))


def equalize(x: Tensor, choices: Choices) -> Tensor:
    """Make the histogram of each channel flat, by the formula of PIL's `equalize`.

    PIL maps level i to (step // 2 + number of pixels below i) // step. Its step is a 255th of the
    number of all pixels but those of the highest level. A step of 0 changes nothing.
    """
    pixels = _levels(x).long().flatten(2)  # (B, 3, S * S)
    histogram = torch.zeros(*pixels.shape[:2], 256, device=x.device, dtype=torch.long)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    highest = pixels.amax(dim=2, keepdim=True)
    step = (pixels.shape[2] - histogram.gather(2, highest)) // 255  # (B, 3, 1)
    below = histogram.cumsum(dim=2) - histogram  # (B, 3, 256)
    table = (step // 2 + below) // step.clamp(min=1)
    equalized = table.clamp(max=255).gather(2, pixels).view_as(x) / 255
    return torch.where(step[..., None] == 0, x, equalized)


def _levels(x: Tensor) -> Tensor:
    """Return images from 0 to 1 as whole numbers from 0 to 255, in floating point."""
    return (x * 255).round().clamp(0, 255)


# ---------------------------------------------------------------- mixtures with another image


def reduce_colour(x: Tensor, choices: Choices) -> Tensor:
    """Mix each pixel with its luma."""
    return _blend(x, luma(x))


def reduce_contrast(x: Tensor, choices: Choices) -> Tensor:
    """Mix each pixel with the mean luma of its image."""
    return _blend(x, luma(x).mean(dim=(2, 3), keepdim=True))


def reduce_brightness(x: Tensor, choices: Choices) -> Tensor:
    """Mix each pixel with black."""
    return BLEND_FACTOR * x


def reduce_sharpness(x: Tensor, choices: Choices) -> Tensor:
    """Mix each pixel with a mean of its neighbourhood; those at the edges stay the same."""
    inside = x[:, :, 1:-1, 1:-1]
    # The neighbourhood is 3 x 3 pixels. Its centre has weight 5 of 13, each other pixel 1.
    smooth = (9 * avg_pool2d(x, 3, stride=1) + 4 * inside) / 13
    change = (1 - BLEND_FACTOR) * (smooth - inside)
    return x + pad(change, (1, 1, 1, 1))


def _blend(x: Tensor, other: Tensor) -> Tensor:
    return BLEND_FACTOR * x + (1 - BLEND_FACTOR) * other


# ---------------------------------------------------------------- places of pixels


def cutout(x: Tensor, choices: Choices) -> Tensor:
    """Cover a square with gray. Its centre is in the image, its edges may be outside."""
    size = x.shape[-1]
    pixel = torch.arange(size, device=x.device) + 0.5
    center = choices.center[:, :, None] * size  # (B, 2, 1)
    is_covered = (pixel - center).abs() <= CUTOUT_SIDE * size / 2  # (B, 2, S)
    is_covered_row = is_covered[:, 0, :, None]  # (B, S, 1)
    is_covered_column = is_covered[:, 1, None, :]  # (B, 1, S)
    is_inside = (is_covered_row & is_covered_column)[:, None]  # (B, 1, S, S)
    channels: list[Tensor] = []
    for channel, colour in enumerate(CUTOUT_COLOUR):
        channels.append(torch.where(is_inside, colour, x[:, channel : channel + 1]))
    return torch.cat(channels, dim=1)


def rotate(x: Tensor, choices: Choices) -> Tensor:
    """Rotate by a small angle, anticlockwise where the sign is 1."""
    cosine = torch.full_like(choices.sign, math.cos(ANGLE))
    sine = math.sin(ANGLE) * choices.sign
    zero = torch.zeros_like(sine)
    return _warp(x, [cosine, -sine, zero], [sine, cosine, zero])


def shear_x(x: Tensor, choices: Choices) -> Tensor:
    """Shift each row in proportion to its distance from the top."""
    shear = SHEAR * choices.sign
    zero = torch.zeros_like(shear)
    return _warp(x, [zero + 1, shear, shear], [zero, zero + 1, zero])


def shear_y(x: Tensor, choices: Choices) -> Tensor:
    """Shift each column in proportion to its distance from the left."""
    shear = SHEAR * choices.sign
    zero = torch.zeros_like(shear)
    return _warp(x, [zero + 1, zero, zero], [shear, zero + 1, shear])


def _warp(x: Tensor, x_row: list[Tensor], y_row: list[Tensor]) -> Tensor:
    """Resample each image at affine positions, bilinearly; what comes from outside is black.

    Args:
        x: (B, 3, S, S).
        x_row: The factors (B,) of x, y and 1, all from -1 to 1, that give the source's x.
        y_row: Those that give the source's y.
    """
    matrix = torch.stack([torch.stack(x_row, dim=1), torch.stack(y_row, dim=1)], dim=1)
    grid = affine_grid(matrix.to(x.dtype), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


# An operation is chosen by its place here. A new one changes which operations a seed chooses.
OPERATIONS = (
    autocontrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize_below,
    solarize_brightened,
    reduce_colour,
    reduce_contrast,
    reduce_brightness,
    reduce_sharpness,
    shear_x,
    shear_y,
    cutout,
)


def apply_chosen(x: Tensor, operation: Tensor, choices: Choices) -> Tensor:
    """Return each image after its own operation.

    Args:
        x: (B, 3, S, S), from 0 to 1.
        operation: The number of each sample's operation in OPERATIONS, (B,) int64.
        choices: Those of the samples.
    """
    # On a GPU, to compute each operation for all samples is faster than to wait for the number of
    # samples that have it. A compiled graph needs fixed shapes too.
    has_fixed_shapes = x.is_cuda or torch.compiler.is_compiling()
    result = x.clone()
    for number, operate in enumerate(OPERATIONS):
        is_chosen = operation == number
        if has_fixed_shapes:
            result = torch.where(per_image(is_chosen), operate(x, choices), result)
            continue
        rows = is_chosen.nonzero().flatten()
        if len(rows) > 0:
            result[rows] = operate(x[rows], Choices(choices.sign[rows], choices.center[rows]))
    return result
