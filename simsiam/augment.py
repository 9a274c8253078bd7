"""SimSiam's augmentation of a batch on its device, with random parameters for each sample.

The pipeline is the paper's (section 3): random resized crop, colour jitter in a random order of
its operations, grayscale, blur, left-right flip, normalisation. There is no blur for CIFAR (App.
D). A policy can also solarise after the blur, and flip upside down and rotate at the end.

`draw` computes random parameters from (seed, epoch, sample index, view). `apply` computes images
from parameters, with the operations of simsiam/image_ops.py. The tests compare the distributions of
the parameters with torchvision's.
"""

from dataclasses import replace
from typing import NamedTuple, get_type_hints

import torch
from torch import Tensor

from simsiam.config.augment_options import AugmentOptions
from simsiam.config.value_types import Probability
from simsiam.crop_boxes import BOX_NUMBERS, CropBoxes, draw_crop_boxes
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
    cropped: bool = False,
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
        cropped: The images are the views' crops already, and S is C. `draw_boxes` has drawn their
            boxes.

    Returns:
        (B, 3, S, S) float32, normalised.
    """
    params = draw(indices, images.shape[-1], seed=seed, epoch=epoch, view=view, policy=policy)
    return normalize(apply(images, params, size, cropped), mean, std)


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
    count = BOX_NUMBERS + (17 if has_optional else 11)
    numbers = uniform(indices, epoch, view, count, seed=seed)  # (B, 33 or 39), 0 to 1
    # The columns after those of the box are: 0 flip, 1 jitter, 2 to 5 order of the colour
    # operations, 6 to 9 their strengths, 10 grayscale, 11 blur, 12 its sigma, 13 solarise,
    # 14 vertical flip, 15 rotation, 16 its angle. A new augmentation must draw from further
    # columns, so that runs without it stay the same.
    other_numbers = numbers[:, BOX_NUMBERS:]

    side = torch.full_like(indices, size)
    box = draw_crop_boxes(numbers[:, :BOX_NUMBERS], side, side, policy.crop_scale)

    factors: list[Tensor] = []
    for operation, (low, high) in enumerate(_factor_ranges(policy)):
        factors.append(low + other_numbers[:, 6 + operation] * (high - low))

    return ViewParams(
        top=box.top,
        left=box.left,
        height=box.height,
        width=box.width,
        flip=other_numbers[:, 0] < policy.flip,
        jitter=other_numbers[:, 1] < policy.jitter,
        op_order=_ranks(other_numbers[:, 2:6]),  # All 24 orders are equally likely.
        factor=torch.stack(factors, dim=1),
        grayscale=other_numbers[:, 10] < policy.grayscale,
        **_draw_optional(other_numbers, policy),
    )


def _draw_optional(numbers: Tensor, policy: Policy) -> dict[str, Tensor]:
    """Return the parameters of the operations that are off by default and on in this policy.

    Args:
        numbers: Uniform random numbers (B, 17) if any of the operations is on.
        policy: As for `augment`.
    """
    params: dict[str, Tensor] = {}
    if policy.blur > 0:
        low, high = policy.blur_sigma
        sigma = low + numbers[:, 12] * (high - low)
        params["blur_sigma"] = torch.where(numbers[:, 11] < policy.blur, sigma, 0.0)
    if policy.solarize > 0:
        params["solarize"] = numbers[:, 13] < policy.solarize
    if policy.vertical_flip > 0:
        params["vertical_flip"] = numbers[:, 14] < policy.vertical_flip
    if policy.rotate > 0:
        quarter_turns = 1 + (3 * numbers[:, 16]).long()  # 1, 2 or 3
        params["quarter_turns"] = torch.where(numbers[:, 15] < policy.rotate, quarter_turns, 0)
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


def draw_boxes(
    indices: Tensor,
    heights: Tensor,
    widths: Tensor,
    *,
    seed: int,
    epoch: int,
    view: int | Tensor,
    policy: Policy,
) -> CropBoxes:
    """Draw the boxes of one view of images of any shape, which are cropped before `augment`.

    Args:
        indices: Index of each sample in the data set, (B,) int64.
        heights, widths: Size of each image in pixels, (B,) int64.
        seed, epoch, view, policy: As for `augment`.
    """
    numbers = uniform(indices, epoch, view, BOX_NUMBERS, seed=seed)
    return draw_crop_boxes(numbers, heights, widths, policy.crop_scale)


# ---------------------------------------------------------------- apply parameters


def apply(
    images: Tensor, params: ViewParams, size: int | None = None, cropped: bool = False
) -> Tensor:
    """Crop, resize, jitter, convert to grayscale, blur, solarise, flip and rotate each sample.

    In other programs the flips come last. Here they are a part of the crop, where they cost
    nothing. The result is the same, because the operations in between treat all directions alike.

    Args:
        images: (B, 3, C, C) uint8.
        params: Parameters from `draw`.
        size: Side S of the views in pixels. None means C.
        cropped: The images are the views' crops already, and S is C.

    Returns:
        (B, 3, S, S) float32, from 0 to 1.
    """
    x = images.float() / 255
    x = flip(x, params) if cropped else crop_and_flip(x, params, size)
    return change_appearance(x, params)


def crop_and_flip(x: Tensor, params: ViewParams, size: int | None) -> Tensor:
    """Crop, resize and flip images (B, 3, C, C) from 0 to 1; return (B, 3, S, S)."""
    return resized_crop(
        x,
        params.top,
        params.left,
        params.height,
        params.width,
        params.flip,
        size,
        params.vertical_flip,
    )


def flip(x: Tensor, params: ViewParams) -> Tensor:
    """Flip views (B, 3, S, S) that are cropped already."""
    x = torch.where(per_image(params.flip), x.flip(3), x)
    if params.vertical_flip is not None:
        x = torch.where(per_image(params.vertical_flip), x.flip(2), x)
    return x


def change_appearance(x: Tensor, params: ViewParams) -> Tensor:
    """Jitter, convert to grayscale, blur, solarise and rotate views (B, 3, S, S) from 0 to 1."""
    x = color_jitter(x, params.op_order, params.factor, params.jitter)
    x = torch.where(per_image(params.grayscale), luma(x).expand_as(x), x)
    if params.blur_sigma is not None:
        x = gaussian_blur(x, params.blur_sigma)
    if params.solarize is not None:
        x = torch.where(per_image(params.solarize), solarize(x), x)
    if params.quarter_turns is not None:
        x = rotate(x, params.quarter_turns)
    return x
