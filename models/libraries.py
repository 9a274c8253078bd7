"""Backbones of torchvision and timm by name, such as "torchvision/resnet50" or "timm/vit_tiny...".

A network is built without weights, so nothing is downloaded. Its classifier is removed by the means
of its library, and nothing is wrapped around it, so that its parameters keep the names of the
library. Dropout and stochastic depth are turned off: training draws all its random numbers as
functions of the seed, so that a resumed run equals an uninterrupted one.

timm is an optional package.
"""

import difflib
import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.ops import StochasticDepth

from models.choices import LIBRARIES, is_library_backbone

# If the image size is not known, a network is tried on images of this side.
DEFAULT_IMAGE_SIZE = 224
MAX_REASON_LENGTH = 200  # characters of a library's message
# torchvision's networks that are built for one size of images.
TRANSFORMER_PREFIX = "vit_"
MAXVIT_PREFIX = "maxvit_"
# torchvision's networks with further classifiers, which help to train the first layers.
AUXILIARY_CLASSIFIERS = ("googlenet", "inception_v3")
# Attributes of timm's layers with the probability of dropout or stochastic depth.
TIMM_PROBABILITIES = ("drop_prob", "drop_rate")


class LibraryError(ValueError):
    """A network of a library cannot be built, or cannot take images of some size."""


# ---------------------------------------------------------------- names


def require_known(name: str) -> None:
    """Check that a library has the network that `name` means.

    Raises:
        LibraryError: It has not, or the library is not installed.
    """
    if not is_library_backbone(name):
        forms = " or ".join(f"{library}/NAME" for library in LIBRARIES)
        raise LibraryError(f"a backbone of a library is {forms}, got {name!r}")
    library, _, network = name.partition("/")
    known = list_names(library)
    if network in known:
        return
    nearest = difflib.get_close_matches(network, known, 1)
    hint = f" Did you mean {library}/{nearest[0]}?" if nearest else ""
    raise LibraryError(f"{library} has no network {network!r}.{hint}")


def list_names(library: str) -> list[str]:
    """Return the names of the networks of a library that classify images.

    timm's names may have a tag that names weights, as in "resnet50.a1_in1k".

    Raises:
        LibraryError: The library is not installed.
    """
    if library == "torchvision":
        return torchvision.models.list_models(module=torchvision.models)
    timm = _import_timm()
    return [*timm.list_models(), *timm.list_models(include_tags=True)]


def _import_timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise LibraryError(
            "backbones timm/NAME need the package timm. "
            f"Install it with: {sys.executable} -m pip install timm"
        )
    import timm  # an optional package

    return timm


# ---------------------------------------------------------------- construction


def build_library_backbone(name: str, image_size: int | None) -> nn.Module:
    """Build a network of a library, with random weights and without its classifier.

    Args:
        name: "torchvision/NAME" or "timm/NAME".
        image_size: Side S of the images. None if it is not known; then the network must take images
            of any size.

    Returns:
        The network (B, 3, S, S) -> (B, F).

    Raises:
        LibraryError: The name is unknown, the package is missing, or the network needs a size.
        Exception: What the library raises if it cannot build the network for images of this size.
            Call `count_library_features` first, which raises LibraryError then.
    """
    return _build(name, image_size)


@functools.cache
def count_library_features(name: str, image_size: int | None, view_size: int | None = None) -> int:
    """Return F, the number of features of a network of a library. This takes no memory.

    Args:
        name: "torchvision/NAME" or "timm/NAME".
        image_size: Side of the images for which the network is built, or None.
        view_size: Side of the images that it gets. None means `image_size`.

    Raises:
        LibraryError: The name is unknown, the package is missing, or the network needs a size,
            cannot take images of this size, or does not give features (B, F).
    """
    network = build_without_memory(name, image_size)
    side = view_size or image_size or DEFAULT_IMAGE_SIZE
    try:
        with torch.no_grad(), TensorsWithoutMemory():
            features = network.eval()(torch.zeros(1, 3, side, side, device="meta"))
    except Exception as error:  # noqa: BLE001  (a library may raise anything)
        raise LibraryError(_describe_size_error(name, side, error)) from None
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise LibraryError(f"{name} does not give features (B, F), so it cannot be a backbone")
    return features.shape[1]


def build_without_memory(name: str, image_size: int | None) -> nn.Module:
    """Build a network on torch's device "meta", where tensors have a shape but no memory.

    Raises:
        LibraryError: The name is unknown, the package is missing, or the network needs a size or
            cannot be built for images of this size.
    """
    # Libraries draw some initial weights on the CPU. The run must not notice.
    with torch.random.fork_rng(devices=[]), TensorsWithoutMemory():
        try:
            network = _build(name, image_size)
        except LibraryError:
            raise
        except Exception as error:  # noqa: BLE001  (a library may raise anything)
            raise LibraryError(_describe_size_error(name, image_size, error)) from None
    return network.to("meta")  # also the tensors that TensorsWithoutMemory left on the CPU


def _build(name: str, image_size: int | None) -> nn.Module:
    """Build a network. Errors of the library are raised as they are."""
    require_known(name)
    library, _, network_name = name.partition("/")
    build = _build_torchvision if library == "torchvision" else _build_timm
    network = build(network_name, image_size)
    turn_off_dropout(network)
    return network


def _describe_size_error(name: str, side: int | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
    if side is None:
        return f"{name} cannot be built ({reason})"
    return (
        f"{name} cannot take images of {side} x {side} pixels ({reason}). Choose another image size"
    )


def _make_size_needed_error(name: str) -> LibraryError:
    return LibraryError(
        f"{name} is built for one size of images. Pass image_size, their side in pixels"
    )


def _build_torchvision(name: str, image_size: int | None) -> nn.Module:
    if image_size is None and name.startswith((TRANSFORMER_PREFIX, MAXVIT_PREFIX)):
        raise _make_size_needed_error(f"torchvision/{name}")
    arguments: dict[str, Any] = {}
    if name.startswith(TRANSFORMER_PREFIX):
        arguments["image_size"] = image_size
    if name.startswith(MAXVIT_PREFIX):
        arguments["input_size"] = (image_size, image_size)
    if name in AUXILIARY_CLASSIFIERS:
        arguments["aux_logits"] = False
        arguments["init_weights"] = True
    network = torchvision.models.get_model(name, weights=None, **arguments)
    _remove_torchvision_classifier(network)
    return network


def _remove_torchvision_classifier(network: nn.Module) -> None:
    """Replace the last layer by the identity, so that its input is the output of the network."""
    names: list[str] = []
    for name, layer in network.named_modules():
        # The classifier of SqueezeNet is a convolution.
        if isinstance(layer, nn.Linear | nn.Conv2d):
            names.append(name)
    network.set_submodule(names[-1], nn.Identity())


def _build_timm(name: str, image_size: int | None) -> nn.Module:
    timm = _import_timm()
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if image_size is None:
        network = timm.create_model(name, **arguments)
        if network.pretrained_cfg.get("fixed_input_size"):
            raise _make_size_needed_error(f"timm/{name}")
        return network
    try:
        network = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **arguments)  # it takes images of any size
    _require_full_patches(network, image_size)
    return network


def _require_full_patches(network: nn.Module, image_size: int) -> None:
    """Raise ValueError if timm would leave out pixels at the borders of the images."""
    patches = getattr(network, "patch_embed", None)
    patch_size = getattr(patches, "patch_size", None)
    if not isinstance(patch_size, tuple) or getattr(patches, "dynamic_img_pad", False):
        return
    if image_size % patch_size[0] != 0:
        raise ValueError(f"the size is no multiple of its patches' {patch_size[0]} pixels")


def turn_off_dropout(network: nn.Module) -> None:
    """Set the probability of dropout and of stochastic depth to zero in all layers."""
    for layer in network.modules():
        if isinstance(layer, _DropoutNd | StochasticDepth):
            layer.p = 0.0
        for name in TIMM_PROBABILITIES:
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)


# ---------------------------------------------------------------- networks without memory

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


class TensorsWithoutMemory(TorchFunctionMode):
    """Make tensors of `_FACTORIES` on "meta".

    Others, such as linspace and arange, stay on the CPU, because libraries read their values.
    `torch.device("meta")` would move them too.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES:
            kwargs["device"] = "meta"
        # An operation on tensors of both kinds has a result without memory.
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)
