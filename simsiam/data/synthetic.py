"""The embedded data set: grey textures of ten kinds, generated from a seed. A demonstration, not a benchmark.

A class is a local texture, which every crop shows. Within a class varies what the views of an image vary too (place and
size), or what no two places of an image share (warp, noise). All images have one mean and deviation and no colour: what
both views of an image show and other images do not, SimSiam would learn instead of the class.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from simsiam.config.options import DataOptions
from simsiam.data.dataset import ImageDataset, Splits
from utils.philox import uniform

SIZE = 32
CHUNK = 100  # images made at once: small enough for caches, and memory stays flat
PERIOD = (5.0, 9.0)  # of a texture, in pixels
TILT = math.radians(
    10
)  # largest rotation either way: a texture keeps its direction, as a flip does
WARP, WARP_LENGTH = (
    2.0,
    28.0,
)  # largest displacement of a pixel and the shortest wavelength of displacements, in pixels
DEVIATION, NOISE = 0.22, 0.06  # of an image, and of its pixel noise: both on the scale of 0 to 1
TAU, HALF = 2 * math.pi, math.sqrt(0.5)
Texture = Callable[[Tensor, Tensor, Tensor], Tensor]
GEOMETRY, WAVES, PIXELS = range(3)  # streams of random numbers

# Ten textures: x (to the right) and y (down) are (n, S, S) in periods; w is (n, 24, 1, 1) random numbers, which only
# `maze` needs. Each returns (n, S, S), about 1 in the figure and -1 in the ground; tanh smooths the edges.


def _line(distance: Tensor, width: float) -> Tensor:
    """1 where a distance, in periods, is less than `width`, else -1."""
    return torch.tanh(14 * (width - distance))


def _to_integer(x: Tensor) -> Tensor:
    return (x - x.round()).abs()  # 0 to 0.5


def _bricks(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    joint = 2 * _to_integer(
        x / 2 + y.floor() / 2
    )  # a brick is two rows long; every other row is shifted by half
    return _line(torch.minimum(_to_integer(y), joint), 0.16)


def _dots(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    half, height = (
        0.45 * y,
        math.sqrt(0.75) * 0.9 * x,
    )  # three plane waves at 120 degrees: a triangular lattice
    return torch.tanh(
        3 * (torch.cos(2 * TAU * half) + 2 * torch.cos(TAU * half) * torch.cos(TAU * height) - 0.2)
    )


def _rings(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    radius = torch.hypot(*(0.7 * t - (0.7 * t).round() for t in (x, y))) / 0.7
    return _line((radius - 0.45).abs(), 0.15)


def _maze(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    waves = torch.zeros_like(x)
    for k in range(12):
        turn, phase = w[:, 2 * k], w[:, 2 * k + 1]
        angle = TAU * (k + turn) / 12
        waves += torch.cos(TAU * (x * angle.cos() + y * angle.sin() + phase))
    return torch.tanh(1.2 * waves)


TEXTURES: dict[str, Texture] = {
    "horizontal": lambda x, y, w: _line(_to_integer(y), 0.25),
    "vertical": lambda x, y, w: _line(_to_integer(x), 0.25),
    "diagonal": lambda x, y, w: _line(_to_integer((x + y) * HALF), 0.25),
    "checks": lambda x, y, w: torch.tanh(6 * torch.sin(TAU * x / 1.4) * torch.sin(TAU * y / 1.4)),
    "net": lambda x, y, w: _line(
        torch.minimum(_to_integer((x + y) * HALF), _to_integer((x - y) * HALF)), 0.13
    ),
    "bricks": _bricks,
    "zigzag": lambda x, y, w: _line(_to_integer(y + 1.2 * _to_integer(0.7 * x)), 0.25),
    "dots": _dots,
    "rings": _rings,
    "maze": _maze,
}
CLASSES: tuple[str, ...] = tuple(TEXTURES)


def make_patterns(count: int, split: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The first `count` images of a split, (count, 3, 32, 32) uint8 with equal channels, and labels (count,) int64.

    Image i is a pure function of (seed, split, i), and its label is i modulo 10.
    """
    index = torch.arange(count)
    images = torch.empty(count, SIZE, SIZE, dtype=torch.uint8)
    for label, texture in enumerate(TEXTURES.values()):
        mine = index[label :: len(TEXTURES)]
        for start in range(0, len(mine), CHUNK):  # not split, which makes of no images one chunk
            chunk = mine[start : start + CHUNK]
            images[chunk] = _images(texture, chunk, split, seed)
    return images[:, None].repeat(1, 3, 1, 1), index % len(TEXTURES)


def _images(texture: Texture, index: Tensor, split: int, seed: int) -> Tensor:
    """(n,) indices -> (n, S, S) uint8.

    In float64: which last bits come out depends on the number of threads, and in float64 that is far from any rounding.
    """
    u = uniform(index, split, GEOMETRY, 10, seed=seed).double()[:, :, None, None]  # (n, 10, 1, 1)
    w = uniform(index, split, WAVES, 24, seed=seed).double()[:, :, None, None]
    noise = (
        uniform(index, split, PIXELS, SIZE * SIZE, seed=seed).double().unflatten(1, (SIZE, SIZE))
        - 0.5
    )

    pixel = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    x, y = pixel[None, :], pixel[:, None]
    dx, dy = (  # two plane waves of random direction, length and phase
        WARP * torch.sin(TAU * (((2 * a - 1) * x + (2 * b - 1) * y) / WARP_LENGTH + phase))
        for a, b, phase in (u[:, 0:3].unbind(1), u[:, 3:6].unbind(1))
    )
    x, y = x + dx, y + dy  # (n, S, S)
    period = PERIOD[0] * (PERIOD[1] / PERIOD[0]) ** u[:, 6]
    tilt = TILT * (2 * u[:, 7] - 1)
    right = (x * tilt.cos() - y * tilt.sin()) / period + 100 * u[
        :, 8
    ]  # 100 periods: a random phase for every texture
    down = (x * tilt.sin() + y * tilt.cos()) / period + 100 * u[:, 9]

    image = texture(right, down, w)
    image = (image - image.mean(dim=(1, 2), keepdim=True)) / image.std(dim=(1, 2), keepdim=True)
    image = (
        0.5 + DEVIATION * image + NOISE * math.sqrt(12) * noise
    )  # uniform noise: its deviation is 1 / sqrt(12)
    return (255 * image.clamp(0, 1)).round().to(torch.uint8)


def load_patterns(options: DataOptions) -> Splits:
    """10,000 train and 2,000 test images, or as many as are asked for."""
    counts = (options.train_images or 10_000, options.test_images or 2_000)
    train, test = (
        ImageDataset(*make_patterns(n, split), classes=CLASSES) for split, n in enumerate(counts)
    )
    return train, test
