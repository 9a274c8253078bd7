"""The zoomed protocol of an evaluation: images are magnified and cropped to their centre.

Random crops magnify training images, so features may be better if the clean images are magnified
too. Part of the literature on CIFAR measures so (Resize(36) and CenterCrop(32), a zoom of 9/8); the
other part takes the whole image.
"""

from torch import Tensor
from torch.nn.functional import interpolate

from simsiam.config.evaluation_options import DEFAULT_ZOOM
from simsiam.config.options import SMALL_IMAGE
from utils.console import print_line
from utils.errors import require


def zoomed_side(side: int, zoom: float) -> int:
    """Return to how many pixels images of a side are resized for a zoom."""
    return round(side * zoom)


def zoom_in(images: Tensor, zoom: float) -> Tensor:
    """Return the central squares (B, 3, S, S) of images that were magnified.

    This is torchvision's `Resize(zoomed_side(S, zoom))` and `CenterCrop(S)`. A zoom of 1 returns
    the images as they are.

    Args:
        images: (B, 3, S, S), floats.
        zoom: at least 1.
    """
    side = images.shape[-1]
    resized_side = zoomed_side(side, zoom)
    if resized_side == side:
        return images
    resized = interpolate(images, (resized_side, resized_side), mode="bilinear", antialias=True)
    start = round((resized_side - side) / 2)
    return resized[..., start : start + side, start : start + side]


def choose_zoom(flag: float | None, side: int) -> float:
    """Return the zoom of `--test-zoom`, or the default for images of a side.

    Larger images than SMALL_IMAGE are magnified by their usual preparation, which resizes them with
    a margin, so their default is 1: no zoomed measurement.

    Raises:
        UserError: the images have the same size after this zoom.
    """
    if flag is None:
        return DEFAULT_ZOOM if side <= SMALL_IMAGE else 1.0
    require(
        flag == 1 or zoomed_side(side, flag) > side,
        f"--test-zoom {flag:g}: {side} pixels times {flag:g} are {side} pixels again. Use 1, or at "
        f"least {(side + 1) / side:.3f}",
    )
    return flag


def describe_zoom(side: int, zoom: float) -> str:
    """Return how rows of tables name a zoom, such as "zoom 36"."""
    return f"zoom {zoomed_side(side, zoom)}"


def announce_zoom(side: int, zoom: float, images: str) -> None:
    """Print that images are measured a second time, and how to leave that out."""
    resized_side = zoomed_side(side, zoom)
    print_line(
        f"zoom {resized_side}: {images} are encoded twice, as they are and resized to "
        f"{resized_side} pixels with the central {side} taken (--test-zoom 1: only as they are)"
    )
