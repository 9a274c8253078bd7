"""Check the hyper-parameters of a SimSiam, and convert them to plain values for checkpoints."""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import Any, TypeGuard, get_args

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from models.choices import RESNET_SETTINGS
from simsiam.config.options import HeavyLoss

# Hyper-parameters that must be positive whole numbers, or None.
SIZES = ("width", "out_dim", "h_dim", "proj_hidden", "image_size")

# Hyper-parameters of the optimizer that must be numbers from 0 on.
RATES = ("learning_rate", "momentum", "weight_decay", "warmup_epochs", "predictor_lr_scale")


def make_plain(hparams: MutableMapping[str, Any]) -> None:
    """Convert hyper-parameters to plain form: a tuple becomes a list.

    A subclass may have arguments that are not plain, such as a function. It can use them through
    its `hparams`, but checkpoints do not save them. A warning names them.
    """
    plain_hparams, names_left_out = select_plain(hparams)
    hparams.update(plain_hparams)
    if names_left_out:
        names = ", ".join(names_left_out)
        rank_zero_warn(f"hyper-parameters that are not plain values are not saved: {names}")


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


def check_hparams(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if a hyper-parameter is out of its range."""
    check_sizes(hparams)
    check_rates(hparams)
    check_statistics(hparams)
    check_heavy_views(hparams)


def check_rates(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if a hyper-parameter of the optimizer is no number, or out of its range."""
    for name in RATES:
        rate = hparams[name]
        is_left_open = rate is None and name == "warmup_epochs"
        if not is_left_open and not is_rate(rate):
            raise ValueError(f"{name} must be a number of at least 0, got {rate!r}")
    if hparams["momentum"] >= 1:
        raise ValueError(f"momentum must be less than 1, got {hparams['momentum']!r}")


def is_rate(value: Any) -> bool:
    """Return whether a value is a finite number from 0 on."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def check_statistics(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError unless mean and std have a number for each of the three channels."""
    mean = hparams["mean"]
    std = hparams["std"]
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not is_rgb(values):
            raise ValueError(f"{name} must have a number for each of 3 channels, got {values!r}")
    if std is not None and min(std) <= 0:
        raise ValueError(f"std must be above 0 in each channel, got {std!r}")
    if (mean is None) != (std is None):
        raise ValueError(f"pass both mean and std or neither, got mean {mean!r} and std {std!r}")


def is_rgb(value: Any) -> TypeGuard[list[float]]:
    """Return whether a value is a list of three finite numbers."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and math.isfinite(x) for x in value)


def check_sizes(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the hyper-parameters in SIZES is not a positive whole number."""
    for name in SIZES:
        size = hparams.get(name)
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")


def check_heavy_views(hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the hyper-parameters of heavy views has an invalid value."""
    count = hparams["heavy_views"]
    if type(count) is not int or count < 0:
        raise ValueError(f"heavy_views must be a whole number of at least 0, got {count!r}")
    choices = get_args(HeavyLoss)
    if hparams["heavy_loss"] not in choices:
        raise ValueError(f"heavy_loss must be one of {choices}, got {hparams['heavy_loss']!r}")


def count_one_way_views(hparams: Mapping[str, Any]) -> int:
    """Return how many of the last views of a batch are heavy views of DSSL's one-way loss."""
    return hparams["heavy_views"] if hparams["heavy_loss"] == "one-way" else 0


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
