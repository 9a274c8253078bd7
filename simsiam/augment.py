"""SimSiam's augmentation of a batch on its device, with random parameters for each sample.

The pipeline is the paper's (section 3): random resized crop, colour jitter in a random order of
its operations, grayscale, blur, left-right flip, normalisation. There is no blur for CIFAR (App.
D). A policy can also solarise after the blur, and flip upside down and rotate at the end.

`draw` computes random parameters from (seed, epoch, sample index, view). `apply` computes images
from parameters, with the operations of simsiam/image_ops.py. The tests compare the distributions of
the parameters with torchvision's.
"""

import math
from dataclasses import replace
from typing import NamedTuple, get_type_hints

import torch
from torch import Tensor

from simsiam.config.augment_options import AugmentOptions
from simsiam.config.value_types import Probability
from simsiam.image_ops import (
    color_jitter,
    gaussian_blur,
    luma,
    per_image,
    resized_crop,
    rotate,
    solarize,
)
from utils.philox import uniform

# torchvision also tries ten random crops, and then takes the largest central crop that fits.
CROP_TRIES = 10
MAX_ASPECT_RATIO = 4 / 3  # of a crop: torchvision's default ratio is (3/4, 4/3)
Policy = AugmentOptions  # The ranges and probabilities that parameters are drawn from.
POLICY_TYPES = get_type_hints(Policy, include_extras=True)
PROBABILITIES = [name for name in POLICY_TYPES if POLICY_TYPES[name] == Probability]


def crop_and_flip_policy(crop_scale: float) -> Policy:
    """Return a policy of crops and left-right flips alone.

    Every other probability is 0, also one that is added to `AugmentOptions` later.
    """
    probabilities = dict.fromkeys(PROBABILITIES, 0.0)
    probabilities["flip"] = Policy.flip
    return replace(Policy(crop_scale=crop_scale), **probabilities)


class ViewParams(NamedTuple):
    """The random parameters of one view of B samples, with torchvision's names and ranges."""

    top: Tensor  # (B,) int64: the crop in pixels of the image
    left: Tensor  # (B,)
    height: Tensor  # (B,)
    width: Tensor  # (B,)
    flip: Tensor  # (B,) bool: flip left to right
    jitter: Tensor  # (B,) bool: apply the colour jitter
    op_order: Tensor  # (B, 4) int64: position, 0 to 3, of brightness, contrast, saturation, hue
    factor: Tensor  # (B, 4) float32: strength of brightness, contrast, saturation, hue
    grayscale: Tensor  # (B,) bool: convert to grayscale
    # The next ones are None if the policy never applies the operation.
    blur_sigma: Tensor | None = None  # (B,) float32: of the Gaussian blur, in pixels of the view
    solarize: Tensor | None = None  # (B,) bool: invert bright values
    vertical_flip: Tensor | None = None  # (B,) bool: flip upside down
    quarter_turns: Tensor | None = None  # (B,) int64: rotate by 0 to 3 times 90 degrees


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
    """Return one random view of each image, a pure function of (seed, epoch, index, view).

    Args:
        images: (B, 3, C, C) uint8.
        indices: Index of each sample in the data set, (B,) int64.
        seed: Seed of the run.
        epoch: Number of the epoch.
        view: Number of the view, for all samples or (B, 1) for each.
        policy: Ranges and probabilities of the augmentation.
        mean: Mean of each channel of the data set, (3,), on the scale of 0 to 1.
        std: Standard deviation of each channel, (3,), on the same scale.
        size: Side S of the views in pixels. None means C.

    Returns:
        (B, 3, S, S) float32, normalised.
    """
    params = draw(indices, images.shape[-1], seed=seed, epoch=epoch, view=view, policy=policy)
    return normalize(apply(images, params, size), mean, std)


def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract mean (3,) and divide by std (3,) of the data set: (B, 3, S, S) -> (B, 3, S, S)."""
    return (x - mean[:, None, None]) / std[:, None, None]


# ---------------------------------------------------------------- draw parameters


def draw(
    indices: Tensor,
    size: int,
    *,
    seed: int,
    epoch: int | Tensor,
    view: int | Tensor,
    policy: Policy,
) -> ViewParams:
    """Draw the parameters of one view of each sample, distributed as in torchvision's transforms.

    Args:
        indices: Index of each sample in the data set, (B,) int64.
        size: Side of the images that are cropped, in pixels.
        seed, epoch, view, policy: As for `augment`.
    """
    has_optional = max(policy.blur, policy.solarize, policy.vertical_flip, policy.rotate) > 0
    # The first columns are the same, however many columns are drawn.
    count = 2 * CROP_TRIES + (19 if has_optional else 13)
    numbers = uniform(indices, epoch, view, count, seed=seed)  # (B, 33 or 39), 0 to 1
    crop_numbers = numbers[:, : 2 * CROP_TRIES]
    # The columns of the others are: 0 top, 1 left, 2 flip, 3 jitter, 4 to 7 order of the colour
    # operations, 8 to 11 their strengths, 12 grayscale, 13 blur, 14 its sigma, 15 solarise,
    # 16 vertical flip, 17 rotation, 18 its angle. A new augmentation must draw from further
    # columns, so that runs without it stay the same.
    other_numbers = numbers[:, 2 * CROP_TRIES :]

    height, width = _draw_crop_shape(crop_numbers, size, policy)

    factors: list[Tensor] = []
    for operation, (low, high) in enumerate(_factor_ranges(policy)):
        factors.append(low + other_numbers[:, 8 + operation] * (high - low))

    return ViewParams(
        top=(other_numbers[:, 0] * (size - height + 1)).long(),
        left=(other_numbers[:, 1] * (size - width + 1)).long(),
        height=height,
        width=width,
        flip=other_numbers[:, 2] < policy.flip,
        jitter=other_numbers[:, 3] < policy.jitter,
        op_order=_ranks(other_numbers[:, 4:8]),  # All 24 orders are equally likely.
        factor=torch.stack(factors, dim=1),
        grayscale=other_numbers[:, 12] < policy.grayscale,
        **_draw_optional(other_numbers, policy),
    )


def _draw_optional(numbers: Tensor, policy: Policy) -> dict[str, Tensor]:
    """Return the parameters of the operations that are off by default and on in this policy.

    Args:
        numbers: Uniform random numbers (B, 19) if any of the operations is on.
        policy: As for `augment`.
    """
    params: dict[str, Tensor] = {}
    if policy.blur > 0:
        low, high = policy.blur_sigma
        sigma = low + numbers[:, 14] * (high - low)
        params["blur_sigma"] = torch.where(numbers[:, 13] < policy.blur, sigma, 0.0)
    if policy.solarize > 0:
        params["solarize"] = numbers[:, 15] < policy.solarize
    if policy.vertical_flip > 0:
        params["vertical_flip"] = numbers[:, 16] < policy.vertical_flip
    if policy.rotate > 0:
        quarter_turns = 1 + (3 * numbers[:, 18]).long()  # 1, 2 or 3
        params["quarter_turns"] = torch.where(numbers[:, 17] < policy.rotate, quarter_turns, 0)
    return params


def _factor_ranges(policy: Policy) -> list[tuple[float, float]]:
    """Return the range of the strength of brightness, contrast, saturation and hue."""
    ranges: list[tuple[float, float]] = []
    for strength in (policy.brightness, policy.contrast, policy.saturation):
        ranges.append((max(0.0, 1 - strength), 1 + strength))
    ranges.append((-policy.hue, policy.hue))
    return ranges


def _ranks(numbers: Tensor) -> Tensor:
    """Return the ranks, 0 to 3, of four numbers: (B, 4) -> (B, 4). The first of equals comes first.

    A rank is the count of the numbers that come before.
    """
    column = torch.arange(4, device=numbers.device)
    number = numbers[:, :, None]  # (B, 4, 1)
    number_column = column[:, None]  # (4, 1)
    other = numbers[:, None, :]  # (B, 1, 4)
    other_column = column
    is_first_of_equals = (other == number) & (other_column < number_column)
    is_before = (other < number) | is_first_of_equals  # (B, 4, 4)
    return is_before.sum(dim=2)


def _draw_crop_shape(numbers: Tensor, size: int, policy: Policy) -> tuple[Tensor, Tensor]:
    """Return height and width (B,) of the first of ten random crops that fits into the image.

    The area and the logarithm of the aspect ratio are uniform. If no crop fits, torchvision takes
    the largest central crop of a permitted shape. This is the whole image, since it is square.

    Args:
        numbers: Uniform random numbers (B, 20).
        size: Side of the images in pixels.
        policy: Its `crop_scale` is the smallest area, as a fraction of the image.
    """
    area_fraction = policy.crop_scale + numbers[:, :CROP_TRIES] * (1 - policy.crop_scale)
    area = size * size * area_fraction  # (B, 10)
    log_ratio = (2 * numbers[:, CROP_TRIES:] - 1) * math.log(MAX_ASPECT_RATIO)
    ratio = torch.exp(log_ratio)  # (B, 10) width / height
    width = torch.round(torch.sqrt(area * ratio)).long()
    height = torch.round(torch.sqrt(area / ratio)).long()

    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)  # (B, 1): argmax returns the first maximum
    none_fits = ~fits.any(dim=1)
    height = height.gather(1, first).squeeze(1).masked_fill(none_fits, size)
    width = width.gather(1, first).squeeze(1).masked_fill(none_fits, size)
    return height, width


# ---------------------------------------------------------------- apply parameters


def apply(images: Tensor, params: ViewParams, size: int | None = None) -> Tensor:
    """Crop, resize, jitter, convert to grayscale, blur, solarise, flip and rotate each sample.

    In other programs the flips come last. Here they are a part of the crop, where they cost
    nothing. The result is the same, because the operations in between treat all directions alike.

    Args:
        images: (B, 3, C, C) uint8.
        params: Parameters from `draw`.
        size: Side S of the views in pixels. None means C.

    Returns:
        (B, 3, S, S) float32, from 0 to 1.
    """
    x = resized_crop(
        images.float() / 255,
        params.top,
        params.left,
        params.height,
        params.width,
        params.flip,
        size,
        params.vertical_flip,
    )
    x = color_jitter(x, params.op_order, params.factor, params.jitter)
    x = torch.where(per_image(params.grayscale), luma(x).expand_as(x), x)
    if params.blur_sigma is not None:
        x = gaussian_blur(x, params.blur_sigma)
    if params.solarize is not None:
        x = torch.where(per_image(params.solarize), solarize(x), x)
    if params.quarter_turns is not None:
        x = rotate(x, params.quarter_turns)
    return x
