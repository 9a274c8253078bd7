"""The generated data set: grey textures of ten kinds, made from a seed. It is for demonstrations.

It is no benchmark. A class is a local texture, which every crop shows. The images of a class differ
in what the views of one image differ in too (position and scale), and in what differs between two
positions in one image (warp and noise). All images have the same mean and deviation and no colour,
because SimSiam learns whatever the views of one image share and other images do not have, and that
should be the class.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from simsiam.config.options import DataOptions
from simsiam.data.dataset import ImageDataset, Splits
from utils.philox import uniform

SIZE = 32  # S, the side of the images in pixels
NUM_TRAIN = 10_000  # images, unless --train-images sets another number
NUM_TEST = 2_000
CHUNK = 100  # images made at once: few enough for the processor's cache

# Geometry of a texture
MIN_PERIOD = 5.0  # pixels
MAX_PERIOD = 9.0
MAX_TILT = math.radians(10)  # in both directions: a texture keeps its direction, even flipped
RANDOM_PHASE_PERIODS = 100  # a random shift by up to this many periods

# A warp displaces each pixel by the sum of two plane waves.
MAX_DISPLACEMENT = 2.0  # pixels, of a wave
MIN_WARP_LENGTH = 28.0  # pixels, the shortest wavelength

# Grey values, on the scale of 0 to 1
MEAN = 0.5
TEXTURE_STD = 0.22
NOISE_STD = 0.06
UNIFORM_TO_STD_1 = math.sqrt(12)  # uniform numbers have the deviation 1 / sqrt(12)

# Streams of random numbers, and how many numbers of each stream an image takes
GEOMETRY_STREAM = 0
GEOMETRY_NUMBERS = 10
MAZE_STREAM = 1
MAZE_NUMBERS = 24
NOISE_STREAM = 2

TAU = 2 * math.pi
Texture = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---------------------------------------------------------------- textures
#
# A texture takes coordinates x (to the right) and y (down), both (n, S, S) in periods, and random
# numbers w (n, 24, 1, 1), which only `maze` needs. It returns (n, S, S): about 1 in the figure and
# about -1 in the background. tanh smooths the edges between them.


def _line(distance: Tensor, width: float) -> Tensor:
    """Return 1 where a distance (in periods) is less than `width`, else -1, with smooth edges."""
    return torch.tanh(14 * (width - distance))


def _distance_to_integer(x: Tensor) -> Tensor:
    return (x - x.round()).abs()  # 0 to 0.5


def _horizontal(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return _line(_distance_to_integer(y), 0.25)


def _vertical(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return _line(_distance_to_integer(x), 0.25)


def _diagonal(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return _line(_distance_to_integer((x + y) * math.sqrt(0.5)), 0.25)


def _checks(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(6 * torch.sin(TAU * x / 1.4) * torch.sin(TAU * y / 1.4))


def _net(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    falling = _distance_to_integer((x + y) * math.sqrt(0.5))
    rising = _distance_to_integer((x - y) * math.sqrt(0.5))
    return _line(torch.minimum(falling, rising), 0.13)


def _bricks(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # A brick is two rows long. Every other row is shifted by half a brick.
    to_joint = 2 * _distance_to_integer(x / 2 + y.floor() / 2)
    return _line(torch.minimum(_distance_to_integer(y), to_joint), 0.16)


def _zigzag(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return _line(_distance_to_integer(y + 1.2 * _distance_to_integer(0.7 * x)), 0.25)


def _dots(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # The sum of three plane waves at 120 degrees to each other is a triangular lattice.
    half = 0.45 * y
    height = math.sqrt(0.75) * 0.9 * x
    waves = torch.cos(2 * TAU * half) + 2 * torch.cos(TAU * half) * torch.cos(TAU * height)
    return torch.tanh(3 * (waves - 0.2))


def _rings(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # Each ring has its own cell of a square lattice.
    from_center_x = 0.7 * x - (0.7 * x).round()
    from_center_y = 0.7 * y - (0.7 * y).round()
    radius = torch.hypot(from_center_x, from_center_y) / 0.7
    return _line((radius - 0.45).abs(), 0.15)


def _maze(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # Twelve plane waves of random direction and phase
    waves = torch.zeros_like(x)
    for k in range(12):
        random_turn = w[:, 2 * k]
        phase = w[:, 2 * k + 1]
        angle = TAU * (k + random_turn) / 12
        waves += torch.cos(TAU * (x * angle.cos() + y * angle.sin() + phase))
    return torch.tanh(1.2 * waves)


TEXTURES: dict[str, Texture] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "diagonal": _diagonal,
    "checks": _checks,
    "net": _net,
    "bricks": _bricks,
    "zigzag": _zigzag,
    "dots": _dots,
    "rings": _rings,
    "maze": _maze,
}
CLASSES: tuple[str, ...] = tuple(TEXTURES)


# ---------------------------------------------------------------- images


def load_patterns(options: DataOptions) -> Splits:
    """Return 10,000 train and 2,000 test images, or as many as the options ask for."""
    train = make_patterns(options.train_images or NUM_TRAIN, split=0)
    num_test = NUM_TEST if options.test_images is None else options.test_images
    test = make_patterns(num_test, split=1)
    return ImageDataset(*train, classes=CLASSES), ImageDataset(*test, classes=CLASSES)


def make_patterns(count: int, split: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make the first images of a split.

    Image i is a pure function of (seed, split, i), and its label is i modulo 10.

    Args:
        count: number of images.
        split: 0 for train, 1 for test images.

    Returns:
        Images (count, 3, 32, 32) uint8 with three equal channels, and labels (count,) int64.
    """
    index = torch.arange(count)
    images = torch.empty(count, SIZE, SIZE, dtype=torch.uint8)
    for label, texture in enumerate(TEXTURES.values()):
        members = index[label :: len(TEXTURES)]
        # Tensor.split would give one empty chunk if a class has no images.
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            images[chunk] = _draw_images(texture, chunk, split, seed)
    return images[:, None].repeat(1, 3, 1, 1), index % len(TEXTURES)


def _draw_images(texture: Texture, index: Tensor, split: int, seed: int) -> Tensor:
    """Return the images (n, S, S) uint8 at `index` (n,).

    The last bits of a result depend on the number of threads. In float64 they are too small to
    change a rounded grey value.
    """
    u = _draw_numbers(index, split, GEOMETRY_STREAM, GEOMETRY_NUMBERS, seed)  # (n, 10)
    w = _draw_numbers(index, split, MAZE_STREAM, MAZE_NUMBERS, seed)  # (n, 24)
    noise = _draw_numbers(index, split, NOISE_STREAM, SIZE * SIZE, seed)
    noise = noise.unflatten(1, (SIZE, SIZE)) - 0.5  # (n, S, S)
    u = u[:, :, None, None]  # (n, 10, 1, 1)
    w = w[:, :, None, None]

    # Coordinates in pixels, from the centre. Warp them.
    pixel = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    x = pixel[None, :]
    y = pixel[:, None]
    dx = _warp(x, y, u[:, 0], u[:, 1], u[:, 2])
    dy = _warp(x, y, u[:, 3], u[:, 4], u[:, 5])
    x = x + dx  # (n, S, S)
    y = y + dy

    # Tilt and shift them, and measure them in periods.
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** u[:, 6]
    tilt = MAX_TILT * (2 * u[:, 7] - 1)
    shift_x = RANDOM_PHASE_PERIODS * u[:, 8]
    shift_y = RANDOM_PHASE_PERIODS * u[:, 9]
    texture_x = (x * tilt.cos() - y * tilt.sin()) / period + shift_x
    texture_y = (x * tilt.sin() + y * tilt.cos()) / period + shift_y

    # Draw the texture, give all images the same mean and deviation, and add noise.
    image = texture(texture_x, texture_y, w)
    image = (image - image.mean(dim=(1, 2), keepdim=True)) / image.std(dim=(1, 2), keepdim=True)
    image = MEAN + TEXTURE_STD * image + NOISE_STD * UNIFORM_TO_STD_1 * noise
    return (255 * image.clamp(0, 1)).round().to(torch.uint8)


def _draw_numbers(index: Tensor, split: int, stream: int, count: int, seed: int) -> Tensor:
    """Return uniform random numbers (n, count) float64 in 0 to 1 for the images at `index` (n,)."""
    return uniform(index, split, stream, count, seed=seed).double()


def _warp(x: Tensor, y: Tensor, a: Tensor, b: Tensor, phase: Tensor) -> Tensor:
    """Return a plane wave of displacements, in pixels.

    Args:
        x, y: coordinates in pixels.
        a, b, phase: random numbers in 0 to 1, for the wave's direction and length, and its phase.
    """
    position = ((2 * a - 1) * x + (2 * b - 1) * y) / MIN_WARP_LENGTH
    return MAX_DISPLACEMENT * torch.sin(TAU * (position + phase))
