"""Crop, flip, colour, blur and rotate a batch of images, with separate parameters for each sample.

The tests compare each operation with torchvision's or PIL's operation on single images.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

# Columns of `op_order` and `factor`: torchvision's numbers of the operations of ColorJitter.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue in torchvision's rgb_to_grayscale
SOLARIZE_THRESHOLD = 0.5  # between 127 and 128 of 255; PIL inverts values from 128


def per_image(values: Tensor) -> Tensor:
    """Reshape a value for each sample to broadcast over its image: (B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def resized_crop(
    x: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Tensor,
    size: int | None = None,
    vertical_flip: Tensor | None = None,
) -> Tensor:
    """Crop each image to its own box, resize the crop, and flip it left to right where `flip`.

    Resizing is bilinear, and antialiased where it shrinks. It is separable: each sample has one
    small matrix for rows and one for columns, so the batch takes two batched matrix products.

    Args:
        x: (B, 3, C, C).
        top, left, height, width: The box in pixels, (B,) each.
        flip: (B,) bool.
        size: Side S of the result in pixels. None means C.
        vertical_flip: Where to flip upside down, (B,) bool. None means nowhere.

    Returns:
        (B, 3, S, S).
    """
    side = x.shape[-1]
    size = size or side
    if vertical_flip is None:
        vertical_flip = torch.zeros_like(flip)
    rows = _resize_matrix(top, height, vertical_flip, side, size)
    columns = _resize_matrix(left, width, flip, side, size)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def _resize_matrix(start: Tensor, length: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    """Return matrices (B, S, C) that crop, resize and flip along one axis.

    Row i holds the weights of the C input pixels in output pixel i. Pixels outside the crop have
    weight 0.
    """
    pixel = torch.arange(side, device=start.device)
    position = torch.arange(size, device=start.device)
    output = torch.where(flip[:, None], size - 1 - position, position)  # (B, S)
    scale = (length.float() / size)[:, None]  # (B, 1) input pixels per output pixel
    # Centre of each output pixel, in input pixels.
    center = start[:, None] + (output + 0.5) * scale  # (B, S)
    # Where the image shrinks, the filter is wider by `scale`. This is the antialiasing.
    filter_width = scale.clamp(min=1)[:, :, None]
    distance = (pixel + 0.5 - center[:, :, None]).abs() / filter_width  # (B, S, C)
    is_inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # (B, C)
    weight = (1 - distance).clamp(min=0) * is_inside[:, None]
    return weight / weight.sum(dim=2, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """Return the brightness of each pixel: (B, 3, S, S) -> (B, 1, S, S)."""
    r, g, b = x.unbind(1)
    return (LUMA_WEIGHTS[0] * r + LUMA_WEIGHTS[1] * g + LUMA_WEIGHTS[2] * b)[:, None]


def color_jitter(x: Tensor, op_order: Tensor, factor: Tensor, enabled: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in the order of each sample.

    Changing the hue costs the most, so it runs only once, for all samples together. The other
    operations run in three steps before it and in three steps after it, and each sample takes
    part in the steps of its own order. A sample that skips a step gets factor 1, which changes
    nothing.

    Args:
        x: (B, 3, S, S), from 0 to 1.
        op_order: Position, 0 to 3, of each operation, (B, 4).
        factor: Strength of each operation, (B, 4).
        enabled: Whether to change a sample, (B,) bool.
    """
    shift = torch.where(enabled, factor[:, HUE], 0.0)
    hue_position = op_order[:, HUE]
    for position in range(3):
        is_before_hue = enabled & (position < hue_position)
        x = _blend(x, op_order == position, factor, is_before_hue)
    x = torch.where(per_image(shift == 0), x, shift_hue(x, shift))
    for position in range(1, 4):
        is_after_hue = enabled & (position > hue_position)
        x = _blend(x, op_order == position, factor, is_after_hue)
    return x


def _blend(x: Tensor, operation: Tensor, factor: Tensor, enabled: Tensor) -> Tensor:
    """Change brightness, contrast or saturation: return f x + (1 - f) y, clamped to 0 to 1.

    For brightness, y is black. For contrast, y is the mean luma of the image. For saturation, y is
    the luma of each pixel.

    Args:
        x: (B, 3, S, S).
        operation: The operation of each sample, one-hot (B, 4) bool.
        factor: Strength of each operation, (B, 4); f is that of the sample's operation.
        enabled: Whether to change a sample, (B,) bool.
    """
    f = per_image(torch.where(enabled, (factor * operation).sum(dim=1), 1.0))
    gray = luma(x)
    mean_gray = gray.mean(dim=(2, 3), keepdim=True)
    y = torch.where(per_image(operation[:, CONTRAST]), mean_gray, gray)
    y = torch.where(per_image(operation[:, BRIGHTNESS]), 0.0, y)
    return (f * x + (1 - f) * y).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of each pixel in HSV; saturation and value stay.

    Args:
        x: (B, 3, S, S), from 0 to 1.
        shift: Rotation of each sample in turns of the colour wheel, (B,).
    """
    r, g, b = x.unbind(1)  # (B, S, S) each
    # From RGB to HSV.
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    # The hue of a gray pixel does not matter; 1 avoids a division by 0.
    span = torch.where(chroma == 0, 1.0, chroma)
    # The hue in sixths of a turn. Its formula depends on which channel is the largest.
    hue = torch.where(value == g, 2 + (b - r) / span, 4 + (r - g) / span)
    hue = torch.where(value == r, (g - b) / span, hue) + 6 * shift[:, None, None]

    # From HSV to RGB, with one formula for all channels.
    channels: list[Tensor] = []
    for offset in (5, 3, 1):  # red, green, blue
        k = torch.remainder(offset + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image as PIL's `GaussianBlur(radius=sigma)` does.

    PIL approximates the Gaussian by three box blurs in a row. The variance of the three together is
    exactly sigma squared. Edge pixels extend to infinity, as in PIL.
    Blurring is separable, and the matrix of three box blurs is the cube of the matrix of one.

    The values differ from PIL's by up to 3 of 255 levels, because PIL rounds after each of its six
    passes.
    torchvision's `gaussian_blur` differs from both in photographs: by up to 13 levels inside, where
    sigma is small, and by up to 33 at the edges, where it reflects the image.

    Args:
        x: (B, 3, S, S).
        sigma: Standard deviation in pixels, (B,). An image with 0 stays the same.
    """
    box = _box_matrix(_box_radius(sigma), x.shape[-1])
    matrix = (box @ box @ box)[:, None]  # (B, 1, S, S)
    return matrix @ x @ matrix.transpose(2, 3)


def _box_radius(sigma: Tensor) -> Tensor:
    """Return the radius (B,) of a box of which three have the variance sigma squared, (B,).

    The formulas are those of Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution
    by extended box filtering". PIL has them too.
    """
    variance = sigma.square() / 3  # of one box
    whole = torch.floor((torch.sqrt(12 * variance + 1) - 1) / 2)  # whole pixels of the radius
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    rest = rest / (6 * (variance - (whole + 1).square()))
    return whole + rest


def _box_matrix(radius: Tensor, size: int) -> Tensor:
    """Return matrices (B, S, S) that average each pixel and its neighbours within a radius (B,).

    Row i holds the weights of the S input pixels in output pixel i: how much of the box around the
    centre of pixel i each input pixel covers. Edge pixels extend to infinity.
    """
    center = torch.arange(size, device=radius.device)
    border = center[1:] - 0.5  # (S - 1,) between two pixels
    radius = radius[:, None, None]
    start = center[:, None] - radius - 0.5  # (B, S, 1) where the box of an output pixel begins
    # The part of the box left of each border. Its differences are the weights.
    cumulative = ((border - start) / (2 * radius + 1)).clamp(0, 1)  # (B, S, S - 1)
    cumulative = pad(pad(cumulative, (1, 0), value=0.0), (0, 1), value=1.0)  # (B, S, S + 1)
    return cumulative.diff(dim=2)


def solarize(x: Tensor) -> Tensor:
    """Invert the bright values of images from 0 to 1, which has the effect of overexposure."""
    return torch.where(x >= SOLARIZE_THRESHOLD, 1 - x, x)


def rotate(x: Tensor, quarter_turns: Tensor) -> Tensor:
    """Rotate each image (B, 3, S, S) anticlockwise by 0 to 3 quarter turns, (B,) int64."""
    x = torch.where(per_image(quarter_turns % 2 == 1), x.transpose(2, 3).flip(2), x)
    return torch.where(per_image(quarter_turns >= 2), x.flip((2, 3)), x)
