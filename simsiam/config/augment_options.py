"""Options of the augmentation, which are also the policy of `simsiam.augment`."""

from typing import Annotated, Literal

from pydantic import Field

from simsiam.config.value_types import BlurSigma, NotNegative, Probability, Share
from utils.errors import require
from utils.option_group import Hint, option_group

Normalize = Literal["dataset", "imagenet"]


@option_group()
class AugmentOptions:
    """Augmentation: the paper's pipeline for CIFAR, and operations for other images.

    A strength s draws its factor from 1 - s to 1 + s.
    """

    crop_scale: Share = 0.2
    """Smallest area of a crop, as a share of the image."""
    flip: Probability = 0.5
    """Probability of a left-right flip."""
    jitter: Probability = 0.8
    """Probability of the colour jitter; its four operations come in a random order per sample."""
    brightness: NotNegative = 0.4
    """Strength of the brightness jitter."""
    contrast: NotNegative = 0.4
    """Strength of the contrast jitter."""
    saturation: NotNegative = 0.4
    """Strength of the saturation jitter."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest hue shift, in turns of the colour wheel."""
    grayscale: Probability = 0.2
    """Probability of a grayscale view."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur; the paper has 0.5 for ImageNet."""
    blur_sigma: Annotated[tuple[BlurSigma, BlurSigma], Hint("LOW HIGH")] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize: Probability = 0.0
    """Probability of a solarised view: values of 128 and more, of 255, are inverted."""
    vertical_flip: Probability = 0.0
    """Probability of an upside-down flip."""
    rotate: Probability = 0.0
    """Probability of a rotation by 90, 180 or 270 degrees, each equally often."""
    normalize: Normalize = "dataset"
    """Mean and std that are removed from the views: those of the train images, or of ImageNet
    for weights that expect them."""

    def __post_init__(self) -> None:
        low, high = self.blur_sigma
        require(low <= high, f"--blur-sigma {low:g} {high:g}: LOW must not be more than HIGH")
