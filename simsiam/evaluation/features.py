"""Compute features of clean images in chunks, so that memory grows with the features only."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.eval_mode import eval_mode
from simsiam.augment import normalize
from simsiam.data.files.lazy_images import LazyImages
from simsiam.data.files.resizing import resized_side
from simsiam.evaluation.zoom import zoom_in
from simsiam.inputs import get_features

FEATURE_CHUNK = 1000  # images of CIFAR's size that a GPU encodes at once
CPU_FEATURE_CHUNK = FEATURE_CHUNK // 4  # fits into the caches of a CPU: 1.4 times the speed
MIN_FEATURE_CHUNK = 8
CIFAR_SIDE = 32  # pixels


class Preparation(NamedTuple):
    """How images become the input of a network."""

    mean: Tensor  # (3,), on the scale of 0 to 1
    std: Tensor  # (3,)
    size: int  # side in pixels


def choose_chunk_size(images: Tensor | LazyImages) -> int:
    """Return how many images are encoded at once, which is fewer for larger images.

    Args:
        images: (N, 3, side, side).
    """
    largest = FEATURE_CHUNK if torch.cuda.is_available() else CPU_FEATURE_CHUNK
    with_as_many_pixels = largest * CIFAR_SIDE**2 // images.shape[-1] ** 2
    return min(largest, max(MIN_FEATURE_CHUNK, with_as_many_pixels))


def resize_to(images: Tensor, size: int | None) -> Tensor:
    """Return images (B, 3, side, side) as clean squares (B, 3, S, S), as those of image files.

    The images of CIFAR and of an .npz file may be larger than the views. Views are crops of the
    whole image, so the whole image is resized, above 64 pixels with the margin of `resized_side`.

    Args:
        images: uint8.
        size: S. None, or a size that is not below the side, returns the images as they are.
    """
    side = images.shape[-1]
    if size is None or size >= side:
        return images
    new_side = resized_side(size)
    resized = interpolate(images.float(), (new_side, new_side), mode="bilinear", antialias=True)
    start = round((new_side - size) / 2)
    square = resized[..., start : start + size, start : start + size]
    return square.round().clamp(0, 255).to(torch.uint8)


def compute_dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype of the images that a network takes: that of its weights."""
    parameter = next(network.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


@torch.no_grad()
def extract_features(
    network: nn.Module,
    images: Tensor | LazyImages | Iterable[Tensor],
    mean: Tensor,
    std: Tensor,
    unit: bool = True,
    n: int | None = None,
    size: int | None = None,
    zoom: float = 1.0,
) -> Tensor:
    """Return the features (N, F) float32 of clean images, by the network in eval mode.

    Args:
        network: (B, 3, S, S) -> (B, F) or (B, F, 1, 1).
        images: (N, 3, side, side) uint8, or an iterable of chunks (B, 3, side, side) uint8.
        mean, std: (3,) each, on the scale of 0 to 1, of the images that the network was trained on.
        unit: L2-normalise each row, for cosines.
        n: only for chunks, and needed there: the number of images in all chunks, or more.
        size: S, the side to which larger images are resized. None takes the images as they are.
        zoom: magnify these images by this factor and take their central S x S pixels.
    """
    if isinstance(images, Tensor | LazyImages):
        n = len(images)
        images = images.split(choose_chunk_size(images))
    dtype = compute_dtype(network)
    features = torch.empty(0)
    done = 0
    with eval_mode(network):
        for chunk in images:
            x = resize_to(chunk.to(mean.device), size).float() / 255
            x = normalize(zoom_in(x, zoom), mean, std)
            chunk_features = get_features(network(x.to(dtype))).float()
            if done == 0:
                # Allocated once; concatenating a list of chunks would take twice the memory.
                features = chunk_features.new_empty(n or 0, chunk_features.shape[1])
            features[done : done + len(chunk_features)] = chunk_features
            done += len(chunk_features)

    features = features[:done]
    if unit:
        features = nn.functional.normalize(features, dim=1, out=features)
    return features
