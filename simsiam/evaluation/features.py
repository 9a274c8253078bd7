"""Features of clean images, a chunk at a time: memory is that of the features themselves."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simsiam.augment import normalize

CHUNK = 1000  # images of CIFAR's size that go through the network at once on a GPU


def chunk_size(images: Tensor) -> int:
    """Images that go through the network at once, for images (N, 3, C, C): fewer of larger ones, at least 8."""
    chunk = (
        CHUNK if torch.cuda.is_available() else CHUNK // 4
    )  # what fits a processor's caches: 1.4 times the speed
    return min(chunk, max(8, chunk * 32**2 // images.shape[-1] ** 2))


def center(images: Tensor, size: int | None) -> Tensor:
    """(B, 3, C, C) -> (B, 3, S, S): the middle of images that were stored with a margin for crops."""
    side = images.shape[-1]
    size = min(side, size or side)
    middle = slice((side - size) // 2, (side - size) // 2 + size)
    return images[..., middle, middle]


def compute_dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype of the images that a network takes: that of its weights."""
    parameter = next(network.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


@torch.no_grad()
def extract_features(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    mean: Tensor,
    std: Tensor,
    unit: bool = True,
    n: int | None = None,
) -> Tensor:
    """Features (N, F) float32 of clean images (N, 3, C, C) uint8, by the network in eval mode.

    Args:
        network: (B, 3, S, S) -> (B, F).
        images: one tensor, or at most `n` images in chunks (B, 3, C, C).
        mean, std: (3,) each, on the scale of 0 to 1, of the images that the network was trained on.
        unit: L2-normalise each row, for cosines.
    """
    if isinstance(images, Tensor):
        images, n = images.split(chunk_size(images)), len(images)
    dtype = compute_dtype(network)
    size = getattr(network, "image_size", None)
    was_training = network.training
    network.eval()
    features = torch.empty(0)
    done = 0
    for chunk in images:
        x = center(chunk, size).to(mean.device).float() / 255
        f = network(normalize(x, mean, std).to(dtype)).float()
        if done == 0:
            features = f.new_empty(
                n or 0, f.shape[1]
            )  # allocated once: joining a list would take twice the memory
        features[done : done + len(f)] = f
        done += len(f)
    network.train(was_training)
    features = features[:done]
    return nn.functional.normalize(features, dim=1, out=features) if unit else features
