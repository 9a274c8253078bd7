"""What SimSiam and its monitor take from code that is not theirs: batches, values, datamodules.

Each function returns what was asked for in one fixed form, or raises ValueError with what it was
given and what it needs.
"""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

VIEWS_NEEDED = (
    "a training batch must be views of the same images, [x1, x2] or more, float tensors "
    "(B, 3, S, S) each, or ([x1, x2], labels, ...)"
)
LABELLED_NEEDED = (
    "KNNMonitor's loaders must give (images, labels) or (images, labels, ...): float images "
    "(B, 3, S, S), whole numbers from 0 as labels (B,)"
)
MANY = 6  # parts of a batch that an error message describes


def get_views(batch: Any) -> list[Tensor]:
    """Return the views of a training batch.

    Args:
        batch: `[x1, x2, ...]`, or `([x1, x2, ...], labels, ...)`.

    Returns:
        At least two tensors (B, 3, S, S).

    Raises:
        ValueError: the batch is something else.
    """
    views = batch
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], list | tuple):
        views = batch[0]
    if (
        not isinstance(views, list | tuple)
        or len(views) < 2
        or not all(map(_is_image_batch, views))
    ):
        raise ValueError(f"{VIEWS_NEEDED}; this one is {describe_batch(batch)}")
    if len({len(view) for view in views}) > 1:
        raise ValueError(f"{VIEWS_NEEDED}; these views differ in B: {describe_batch(views)}")
    return list(views)


def get_images(batch: Any) -> Tensor:
    """Return the images (B, 3, S, S) of a batch: a tensor, or the first part of a tuple.

    Raises:
        ValueError: the batch is something else.
    """
    images: Any = batch
    if isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if not _is_image_batch(images):
        raise ValueError(
            f"a batch to predict must be images (B, 3, S, S), or (images, ...); this one is {describe_batch(batch)}"
        )
    return images


def get_labelled_images(batch: Any) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and labels (B,) int64 of a batch `(images, labels, ...)`.

    Raises:
        ValueError: the batch is something else, or a label is negative.
    """
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not _is_image_batch(batch[0]):
        raise ValueError(f"{LABELLED_NEEDED}; this batch is {describe_batch(batch)}")
    images, labels = batch[:2]
    if isinstance(labels, list | tuple) and all(isinstance(y, numbers.Integral) for y in labels):
        labels = torch.tensor(labels)
    if isinstance(labels, Tensor) and labels.shape == (len(images), 1):  # as MedMNIST has them
        labels = labels[:, 0]
    if (
        not isinstance(labels, Tensor)
        or labels.shape != (len(images),)
        or labels.is_floating_point()
        or bool((labels < 0).any())
    ):
        raise ValueError(f"{LABELLED_NEEDED}; this batch is {describe_batch(batch)}")
    return images, labels.long()


def _is_image_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()


def describe_batch(batch: Any) -> str:
    """Return the structure of a batch in words: "a list of a float32 tensor (8, 3, 32, 32), ..."."""
    if isinstance(batch, Tensor):
        dtype = str(batch.dtype).removeprefix("torch.")
        return f"a {dtype} tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dict with the keys {', '.join(map(str, list(batch)[:MANY]))}"
    if isinstance(batch, list | tuple):
        kind = type(batch).__name__
        parts = [describe_batch(part) for part in batch[:MANY]]
        if len(batch) > MANY:
            parts.append("...")
        return f"a {kind} of {len(batch)} ({'; '.join(parts)})"
    return f"a value of type {type(batch).__name__}"


# ---------------------------------------------------------------- plain values


def to_plain(value: Any) -> Any:
    """Return a value as None, bool, int, float, str, or a list or dict of these.

    A checkpoint of such values can be read without running code from it. NumPy's and torch's
    numbers and arrays, paths and enumerations are converted.

    Raises:
        TypeError: the value is something else, such as a module.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        raise TypeError("a tensor without values at hand is not plain")
    if isinstance(value, np.ndarray | np.generic | Tensor):
        if value.dtype == np.longdouble and value.ndim == 0:  # Python has no number of this size
            return float(value)
        return to_plain(value.tolist())  # what NumPy holds may be anything
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [to_plain(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} is not plain")


# ---------------------------------------------------------------- datamodules


def read_image_metadata(datamodule: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what a datamodule says of its images, and what it says that cannot be meant so.

    A datamodule of somebody else's may use the same names for other things, so a value is taken
    only if its type and shape fit.

    Returns:
        `mean` and `std` (3 floats each, both or none), `image_size` (pixels) and `classes` (names),
        as far as they are known; and a description of each attribute that was left out.
    """
    metadata: dict[str, Any] = {}
    ignored: list[str] = []
    mean = _get_plain(datamodule, "mean")
    std = _get_plain(datamodule, "std")
    if mean is not None or std is not None:
        if _is_rgb(mean) and _is_rgb(std) and min(std) > 0:
            metadata["mean"] = [float(x) for x in mean]
            metadata["std"] = [float(x) for x in std]
        else:
            ignored.append("mean and std (each must be 3 numbers, those of std above 0)")
    size = _get_plain(datamodule, "size")
    if type(size) is int and size > 0:
        metadata["image_size"] = size
    elif size is not None:
        ignored.append("size (must be the side of the images in pixels)")
    classes = _get_plain(datamodule, "classes")
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        metadata["classes"] = classes
    elif classes is not None:
        ignored.append("classes (must be a list of names)")
    return metadata, ignored


def _get_plain(owner: Any, name: str) -> Any:
    """Return an attribute as a plain value; the attribute itself if it has no such form."""
    value = getattr(owner, name, None)
    try:
        return to_plain(value)
    except (TypeError, ValueError):
        return value


def _is_rgb(value: Any) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and math.isfinite(x) for x in value)
