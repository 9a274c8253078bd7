"""Compare two samples of views: simple statistics of each view, and how they are distributed."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from simsiam.image_ops import luma

# Levels of 255. The sharpness of the smoothest images comes from rounding, and PIL rounds after
# each operation. Sharpness below this is therefore not compared.
MIN_SHARPNESS = 4
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def view_statistics(x: Tensor) -> dict[str, Tensor]:
    """Return simple statistics of each image (N, 3, S, S) from 0 to 1: (N,) each."""
    gray = luma(x)
    sharpness = conv2d(gray, LAPLACIAN[None, None]).std((1, 2, 3))
    return {
        "brightness": x.mean((1, 2, 3)),
        "bright pixels": (gray > 0.6).float().mean((1, 2, 3)),
        "contrast": gray.std((1, 2, 3)),
        "saturation": (x.amax(1) - x.amin(1)).mean((1, 2)),
        "red against blue": (x[:, 0] - x[:, 2]).mean((1, 2)),
        "differences of neighbours": (gray[..., 1:] - gray[..., :-1]).abs().mean((1, 2, 3)),
        "sharpness": sharpness.clamp(min=MIN_SHARPNESS / 255),
        "top against bottom": _half_difference(gray.transpose(2, 3)),
        "left against right": _half_difference(gray),
    }


def _half_difference(gray: Tensor) -> Tensor:
    """Return how much brighter the left halves of images (N, 1, S, S) are than the right ones."""
    left, right = gray.chunk(2, dim=3)
    return left.mean((1, 2, 3)) - right.mean((1, 2, 3))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of the distribution functions of two samples (N,)."""
    points = torch.cat([a, b]).sort().values
    functions = [
        torch.searchsorted(sample.sort().values, points, right=True) / len(sample)
        for sample in (a, b)
    ]
    return (functions[0] - functions[1]).abs().max().item()


def find_differing(ours: Tensor, theirs: Tensor, noise: float = 0.0) -> list[str]:
    """Return the names of the statistics whose distributions differ between two samples of views.

    This is the two-sample Kolmogorov-Smirnov test: the distance is compared with 1.95 sqrt(2/N),
    which two samples of one distribution exceed with a probability of .001.

    Args:
        ours, theirs: (N, 3, S, S) from 0 to 1.
        noise: standard deviation of the noise that is added to each statistic, in levels of 255.
            It is needed if many views are the same one. Then the distribution function has a step,
            which rounding alone moves, and the distance is the height of the step.
    """
    n = len(ours)
    assert len(theirs) == n
    generator = torch.Generator().manual_seed(0)

    def add_noise(values: Tensor) -> Tensor:
        return values + torch.randn(n, generator=generator) * noise / 255

    a = view_statistics(ours)
    b = view_statistics(theirs)
    limit = 1.95 * (2 / n) ** 0.5
    return [name for name in a if distance(add_noise(a[name]), add_noise(b[name])) >= limit]
