"""SimSiam's augmentation of a whole batch on its device, with own parameters for each sample.

The paper's pipeline for CIFAR (section 3; App. D: without blur): random resized crop, flip, colour jitter in a random
order, grayscale, normalisation. `draw` makes parameters from counters (seed, epoch, sample index, view); `apply` makes
images from parameters. torchvision is the oracle of both: the same distribution, the same operations.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simsiam.config.options import AugmentOptions
from utils.philox import uniform

CROP_TRIES = 10  # as in torchvision: then the largest central crop of a fitting shape
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbers for them
LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
Policy = AugmentOptions  # the distribution of views


class Views(NamedTuple):
    """The parameters of B samples; torchvision's names and ranges."""

    top: Tensor  # (B,) crop box, in pixels
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # (B,) bool
    jitter: Tensor  # (B,) bool
    turn: Tensor  # (B, 4) when brightness, contrast, saturation and hue have their turn, 0 to 3
    factor: Tensor  # (B, 4) strength of brightness, contrast, saturation, hue
    grayscale: Tensor  # (B,) bool


def augment(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    view: int | Tensor,
    policy: Policy = Policy(),
    mean: Tensor,
    std: Tensor,
    size: int | None = None,
) -> Tensor:
    """One view of each image, a pure function of (seed, epoch, index, view).

    Args:
        images: (B, 3, C, C) uint8.
        indices: (B,) int64, each sample's place in the data set.
        view: of all samples, or (B, 1) of each.
        mean, std: (3,) of the data set, on the scale of 0 to 1.
        size: S, the side of a view; None for C.

    Returns:
        (B, 3, S, S) float32, normalised.
    """
    views = draw(indices, images.shape[-1], seed=seed, epoch=epoch, view=view, policy=policy)
    return normalize(apply(images, views, size), mean, std)


def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, S, S) float32 in 0 to 1 -> mean 0 and deviation 1 over the data set."""
    return (x - mean[:, None, None]) / std[:, None, None]


# ---------------------------------------------------------------- drawing


def draw(
    indices: Tensor,
    size: int,
    *,
    seed: int,
    epoch: int | Tensor,
    view: int | Tensor,
    policy: Policy,
) -> Views:
    """The parameters of one view of each sample, distributed as torchvision's transforms draw theirs.

    Args:
        size: side of the images, of which crops are taken.
    """
    u = uniform(indices, epoch, view, 2 * CROP_TRIES + 13, seed=seed)  # (B, 33)
    crop, rest = u[:, : 2 * CROP_TRIES], u[:, 2 * CROP_TRIES :]
    height, width = _crop_shape(crop, size, policy)
    ranges = [
        (max(0.0, 1 - s), 1 + s) for s in (policy.brightness, policy.contrast, policy.saturation)
    ]
    ranges.append((-policy.hue, policy.hue))
    factors = [low + rest[:, 8 + i] * (high - low) for i, (low, high) in enumerate(ranges)]
    return Views(
        top=(rest[:, 0] * (size - height + 1)).long(),
        left=(rest[:, 1] * (size - width + 1)).long(),
        height=height,
        width=width,
        flip=rest[:, 2] < policy.flip,
        jitter=rest[:, 3] < policy.jitter,
        turn=_ranks(rest[:, 4:8]),  # each order with equal chance
        factor=torch.stack(factors, dim=1),
        grayscale=rest[:, 12] < policy.grayscale,
    )


def _ranks(numbers: Tensor) -> Tensor:
    """(B, 4) numbers -> (B, 4) their ranks, 0 to 3; of equal ones the first comes first."""
    column = torch.arange(4, device=numbers.device)
    this, other = numbers[:, :, None], numbers[:, None, :]
    return ((other < this) | ((other == this) & (column < column[:, None]))).sum(dim=2)


def _crop_shape(u: Tensor, size: int, policy: Policy) -> tuple[Tensor, Tensor]:
    """Height and width (B,) of the first of ten random crops that fits; area and log of the aspect ratio are uniform.

    A square image always holds itself, so torchvision's central fall-back is the whole image.
    """
    area = (
        size * size * (policy.crop_scale + u[:, :CROP_TRIES] * (1 - policy.crop_scale))
    )  # (B, 10)
    ratio = torch.exp((2 * u[:, CROP_TRIES:] - 1) * math.log(4 / 3))
    width = torch.round(torch.sqrt(area * ratio)).long()
    height = torch.round(torch.sqrt(area / ratio)).long()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)  # (B, 1): argmax returns the first of equals
    none = ~fits.any(dim=1)
    height = height.gather(1, first).squeeze(1).masked_fill(none, size)
    width = width.gather(1, first).squeeze(1).masked_fill(none, size)
    return height, width


# ---------------------------------------------------------------- applying


def apply(images: Tensor, v: Views, size: int | None = None) -> Tensor:
    """(B, 3, C, C) uint8 -> (B, 3, S, S) float32 in 0 to 1: crop, resize to `size` S, flip, jitter, grayscale."""
    x = resized_crop(images.float() / 255, v.top, v.left, v.height, v.width, v.flip, size)
    x = color_jitter(x, v.turn, v.factor, v.jitter)
    return torch.where(_column(v.grayscale), luma(x).expand_as(x), x)


def _column(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


def resized_crop(
    x: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Tensor,
    size: int | None = None,
) -> Tensor:
    """Crop each image to its box, resize to S x S bilinearly (antialiased where that shrinks), flip left to right.

    Resizing is separable: two small matrices for each sample, two batched matrix products for the batch.
    """
    side = x.shape[-1]
    rows = _resize_matrix(top, height, torch.zeros_like(flip), side, size or side)
    columns = _resize_matrix(left, width, flip, side, size or side)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def _resize_matrix(start: Tensor, length: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    """(B, S, C): row o holds the weights of the C input pixels in output pixel o, none of them outside the crop."""
    pixel, place = torch.arange(side, device=start.device), torch.arange(size, device=start.device)
    output = torch.where(flip[:, None], size - 1 - place, place)  # (B, S)
    scale = (length.float() / size)[:, None]  # input pixels per output pixel
    center = start[:, None] + (output + 0.5) * scale  # (B, S)
    distance = (pixel + 0.5 - center[:, :, None]).abs() / scale.clamp(min=1)[
        :, :, None
    ]  # (B, S, C)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # (B, C)
    weight = (1 - distance).clamp(min=0) * inside[:, None]
    return weight / weight.sum(dim=2, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, 1, S, S)"""
    r, g, b = x.unbind(1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)[:, None]


def color_jitter(x: Tensor, turn: Tensor, factor: Tensor, on: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order, where `on` (B,).

    Hue costs the most, so it runs once: each sample's operations before its hue, the hue, then those after it. A sample
    whose turn it is not is blended with factor 1, which changes nothing.
    """
    shift = torch.where(on, factor[:, HUE], 0.0)
    turn_of_hue = turn[:, HUE]
    for t in range(3):
        x = _blend(x, turn == t, factor, on & (t < turn_of_hue))
    x = torch.where(_column(shift == 0), x, shift_hue(x, shift))
    for t in range(1, 4):
        x = _blend(x, turn == t, factor, on & (t > turn_of_hue))
    return x


def _blend(x: Tensor, operation: Tensor, factor: Tensor, on: Tensor) -> Tensor:
    """f x + (1 - f) y, clamped: y is black for brightness, the mean luma for contrast, each pixel's for saturation."""
    f = _column(torch.where(on, (factor * operation).sum(dim=1), 1.0))
    gray = luma(x)
    y = torch.where(_column(operation[:, CONTRAST]), gray.mean(dim=(2, 3), keepdim=True), gray)
    y = torch.where(_column(operation[:, BRIGHTNESS]), 0.0, y)
    return (f * x + (1 - f) * y).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn each pixel's hue by `shift` (B,), in turns; lightness and saturation of HSV stay."""
    r, g, b = x.unbind(1)  # (B, S, S) each
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    span = torch.where(chroma == 0, 1.0, chroma)  # of a gray pixel any hue will do
    hue = torch.where(value == g, 2 + (b - r) / span, 4 + (r - g) / span)  # in sixths of a turn
    hue = torch.where(value == r, (g - b) / span, hue) + 6 * shift[:, None, None]
    channels = []
    for n in (5, 3, 1):  # red, green, blue
        k = torch.remainder(n + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
