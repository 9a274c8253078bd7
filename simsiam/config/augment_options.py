"""Options of the augmentation, which are also the policy of `simsiam.augment`."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from simsiam.config.value_types import BlurSigma, NotNegative, Probability, Share
from utils.errors import require
from utils.option_group import Hint, option_group, to_flag
from utils.settings import to_flags

Normalize = Literal["dataset", "imagenet"]

# The probability of an operation, and its strengths. They have no effect if the probability is 0.
STRENGTHS = {
    "jitter": ("brightness", "contrast", "saturation", "hue"),
    "blur": ("blur_sigma",),
}


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

    def describe(self) -> list[str]:
        """Return lines about the options that differ from their defaults, as flags.

        Strengths without effect have a line of their own. They are not refused, because a run of an
        earlier version may have them.
        """
        changes: dict[str, Any] = {}
        for field in fields(AugmentOptions):
            value = getattr(self, field.name)
            if value != getattr(AugmentOptions, field.name):
                changes[field.name] = list(value) if isinstance(value, tuple) else value

        unused_lines: list[str] = []
        for probability, strengths in STRENGTHS.items():
            if getattr(self, probability) > 0:
                continue
            unused = {name: changes.pop(name) for name in strengths if name in changes}
            if unused:
                flags = " ".join(to_flags(unused))
                unused_lines.append(f"not used, because {to_flag(probability)} is 0: {flags}")
        if not changes:
            return unused_lines
        return [f"augmented with {' '.join(to_flags(changes))}", *unused_lines]
