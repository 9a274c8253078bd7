"""Check what the user's own code passes in: batches, hyper-parameters, datamodules.

SimSiam and KNNMonitor accept batches in several forms. The functions here return each batch in one
fixed form, or raise a ValueError that says what was expected and what the batch is.
"""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from models.choices import RESNET_SETTINGS

VIEWS_EXPECTED = (
    "a training batch must be views of the same images, [x1, x2] or more, float tensors "
    "(B, 3, S, S) each, or ([x1, x2], labels, ...)"
)
LABELLED_EXPECTED = (
    "KNNMonitor's loaders must give (images, labels) or (images, labels, ...): float images "
    "(B, 3, S, S), whole numbers from 0 as labels (B,)"
)
# Hyper-parameters that must be positive whole numbers, or None.
SIZES = ("width", "out_dim", "h_dim", "proj_hidden", "image_size")
MAX_PARTS_DESCRIBED = 6  # An error message describes at most this many parts of a batch.


def get_views(batch: Any) -> list[Tensor]:
    """Return the views of a training batch.

    Args:
        batch: `[x1, x2, ...]`, or `([x1, x2, ...], labels, ...)`.

    Returns:
        At least two tensors (B, 3, S, S). Their sizes S may differ.

    Raises:
        ValueError: The batch has another form.
    """
    views: list[Any] = []
    if isinstance(batch, list | tuple) and batch:
        has_labels = isinstance(batch[0], list | tuple)
        views = list(batch[0]) if has_labels else list(batch)

    if len(views) < 2 or not all(_is_image_batch(view) for view in views):
        raise ValueError(f"{VIEWS_EXPECTED}; this one is {describe_batch(batch)}")
    if any(len(view) != len(views[0]) for view in views):
        raise ValueError(f"{VIEWS_EXPECTED}; these views differ in B: {describe_batch(views)}")
    return views


def get_images(batch: Any) -> Tensor:
    """Return the images (B, 3, S, S) of a batch, which is `images` or `(images, ...)`.

    Raises:
        ValueError: The batch has another form.
    """
    images: Any = batch
    if isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if not _is_image_batch(images):
        raise ValueError(
            "a batch to predict must be images (B, 3, S, S), or (images, ...); "
            f"this one is {describe_batch(batch)}"
        )
    return images


def get_labelled_images(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images (B, 3, S, S) and labels (B,) int64 of a batch `(images, labels, ...)`.

    Raises:
        ValueError: The batch has another form, or a label is negative.
    """
    message = f"{LABELLED_EXPECTED}; this batch is {describe_batch(batch)}"
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not _is_image_batch(batch[0]):
        raise ValueError(message)
    images = batch[0]
    labels = batch[1]

    if isinstance(labels, list | tuple) and all(isinstance(y, numbers.Integral) for y in labels):
        labels = torch.tensor(labels)
    if isinstance(labels, Tensor) and labels.shape == (len(images), 1):
        labels = labels[:, 0]  # MedMNIST's labels have this shape.

    if not isinstance(labels, Tensor) or labels.shape != (len(images),):
        raise ValueError(message)
    if labels.is_floating_point() or bool((labels < 0).any()):
        raise ValueError(message)
    return images, labels.long()


def _is_image_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()


def describe_batch(batch: Any) -> str:
    """Describe the structure of a batch for an error message.

    An example is "a list of 2 (a float32 tensor (8, 3, 32, 32); a int64 tensor (8,))".
    """
    if isinstance(batch, Tensor):
        dtype = str(batch.dtype).removeprefix("torch.")
        return f"a {dtype} tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        keys = [str(key) for key in batch]
        return f"a dict with the keys {', '.join(keys[:MAX_PARTS_DESCRIBED])}"
    if isinstance(batch, list | tuple):
        kind = type(batch).__name__
        parts = [describe_batch(part) for part in batch[:MAX_PARTS_DESCRIBED]]
        if len(batch) > MAX_PARTS_DESCRIBED:
            parts.append("...")
        return f"a {kind} of {len(batch)} ({'; '.join(parts)})"
    return f"a value of type {type(batch).__name__}"


# ---------------------------------------------------------------- hyper-parameters


def select_plain(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that have a plain form, in that form, and the names of the others."""
    plain: dict[str, Any] = {}
    names_left_out: list[str] = []
    for name, value in values.items():
        try:
            plain[name] = to_plain(value)
        except TypeError:
            names_left_out.append(name)
    return plain, names_left_out


def check_sizes(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the hyper-parameters in SIZES is not a positive whole number."""
    for name in SIZES:
        size = hparams.get(name)
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def refuse_resnet_settings(hparams: Mapping[str, Any], init: Callable[..., None]) -> None:
    """Refuse the settings that a backbone of a library does not have.

    Args:
        hparams: The hyper-parameters of a SimSiam whose backbone is a library's network.
        init: The function whose arguments they are. It has their defaults.

    Raises:
        ValueError: One of these settings has another value than its default.
    """
    arguments = inspect.signature(init).parameters
    for name in RESNET_SETTINGS:
        if hparams[name] not in (None, arguments[name].default):
            raise ValueError(
                f"{name} {hparams[name]!r} is for the ResNets of this program alone; "
                f"the architecture of {hparams['backbone']} is fixed. Leave it out"
            )


def to_plain(value: Any) -> Any:
    """Convert a value to None, bool, int, float, str, or a list or dict of such values.

    A checkpoint that holds only plain values can be read without running code from it. Numbers and
    arrays of NumPy and torch, paths and enumerations have a plain form.

    Raises:
        TypeError: The value has no plain form. A module is an example.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        raise TypeError("a meta or sparse tensor is not plain")
    if isinstance(value, np.ndarray | np.generic | Tensor):
        # For a single longdouble, tolist() returns a longdouble again.
        if value.dtype == np.longdouble and value.ndim == 0:
            return float(value)
        # An array of dtype object may hold anything, so its parts are converted too.
        return to_plain(value.tolist())
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
    """Read mean, std, size and classes of the images from attributes of a datamodule.

    The datamodule may be the user's own, and may use these names for other things. So a value is
    taken only if its type and shape fit.

    Returns:
        The metadata: `mean` and `std` (3 floats each, either both or none), `image_size` (pixels)
        and `classes` (names), each only if the datamodule has it. Then a list that describes each
        attribute whose value does not fit.
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
    """Return the plain form of an attribute, or the attribute itself if it has no plain form."""
    value = getattr(owner, name, None)
    try:
        return to_plain(value)
    except (TypeError, ValueError):
        return value


def _is_rgb(value: Any) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and math.isfinite(x) for x in value)
