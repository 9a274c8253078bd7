"""Networks built from the metadata of a file, and weights that are loaded strictly."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.choices import is_library_backbone
from models.heads import build_networks
from models.libraries import (
    LibraryError,
    TensorsWithoutMemory,
    build_library_backbone,
    count_library_features,
)
from models.resnet import BACKBONES, ResNet
from simsiam.config.network_options import NetworkOptions
from simsiam.evaluation.metadata import BackboneMetadata, ImageMetadata
from utils.errors import UserError

BACKBONE_PART = "backbone"  # the name of the backbone in a SimSiam and in its state dict
# Networks that are not a ResNet of this program note in this attribute what `set_image_metadata`
# has set on them, so that the next call can replace it.
METADATA_NAMES = "_names_of_image_metadata"
MAX_ERROR_LENGTH = 300  # characters of torch's message, which may list every weight of a network


def evaluated_backbone(module: nn.Module) -> nn.Module:
    """Return the part of a SimSiam that is evaluated, saved and exported.

    `evaluated_weights` reads the weights of the same part from a checkpoint. A module of another
    program without a backbone is evaluated as it is.
    """
    backbone = getattr(module, BACKBONE_PART, None)
    # It may be a name.
    return backbone if isinstance(backbone, nn.Module) else module


def evaluated_weights(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights in the state dict of a SimSiam that belong to `evaluated_backbone`."""
    prefix = f"{BACKBONE_PART}."
    weights: dict[str, Any] = {}
    for name, weight in remove_compile_prefix(state).items():
        if str(name).startswith(prefix):
            weights[str(name).removeprefix(prefix)] = weight
    return weights


def build_backbone(metadata: BackboneMetadata, seed: int = 0) -> nn.Module:
    """Return a backbone in eval mode, with the random weights that a run with `seed` starts from.

    Raises:
        UserError: the network cannot be built with the settings in the metadata.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if is_library_backbone(metadata.backbone):
                # Raises LibraryError, a ValueError, if the file has a size that does not fit.
                count_library_features(metadata.backbone, metadata.image_size)
                backbone = build_library_backbone(metadata.backbone, metadata.image_size)
            else:
                backbone = _build_resnet(metadata)
        except ValueError as error:
            raise UserError(f"cannot build the network of this checkpoint: {error}") from None
    set_image_metadata(backbone, metadata)
    return backbone.eval()


def _build_resnet(metadata: BackboneMetadata) -> ResNet:
    # `BackboneMetadata` does not check the values in `settings`, so convert them here.
    zero_init_residual = bool(metadata.settings.get("zero_init_residual", True))
    conv_init = str(metadata.settings.get("conv_init") or NetworkOptions.conv_init)
    make_resnet = BACKBONES[metadata.backbone]
    # `BackboneMetadata` requires both of a ResNet.
    assert metadata.width is not None
    assert metadata.stem is not None
    return make_resnet(metadata.width, zero_init_residual, metadata.stem, conv_init)


def build_all_networks(file: Path, hparams: dict[str, Any]) -> nn.ModuleDict:
    """Return "backbone", "projector" and "predictor" as the hyper-parameters of a file say.

    Raises:
        UserError: the networks cannot be built.
    """
    try:
        backbone, projector, predictor = build_networks(hparams["backbone"], hparams)
    except LibraryError as error:
        raise UserError(f"{file}: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: not a checkpoint of this program ({error})") from None
    return nn.ModuleDict(
        {"backbone": backbone, "projector": projector, "predictor": predictor},
    )


def set_image_metadata(backbone: nn.Module, metadata: ImageMetadata) -> None:
    """Set `.mean`, `.std`, `.statistics` and `.image_size` of the backbone.

    An attribute with one of these names that a network of another program has for itself stays as
    it is, because its forward pass may use it.
    """
    statistics = None
    if metadata.mean is not None and metadata.std is not None:
        statistics = (tuple(metadata.mean), tuple(metadata.std))
    if isinstance(backbone, ResNet):
        backbone.image_size = metadata.image_size
        backbone.statistics = statistics
        return

    values: dict[str, Any] = {"image_size": metadata.image_size, "statistics": statistics}
    if statistics is not None:  # otherwise to read them is an error
        values["mean"], values["std"] = statistics
    names_of_earlier_calls = getattr(backbone, METADATA_NAMES, ())
    for name in names_of_earlier_calls:
        delattr(backbone, name)
    free_names = [name for name in values if not hasattr(backbone, name)]
    for name in free_names:
        setattr(backbone, name, values[name])
    setattr(backbone, METADATA_NAMES, tuple(free_names))


def require_fit(file: Path, hparams: dict[str, Any], state: dict[str, Any]) -> None:
    """Check that the weights of a file fit its networks, before these take any memory.

    A hostile file may describe networks that are larger than the memory.

    Raises:
        UserError: they do not fit, or the networks cannot be built.
    """
    with torch.random.fork_rng(devices=[]), TensorsWithoutMemory():
        networks = build_all_networks(file, hparams)
    load_strictly(networks, state, file, assign=True)


def require_backbone_fit(file: Path, metadata: BackboneMetadata, state: dict[str, Any]) -> None:
    """Check that the weights of a backbone fit, as `require_fit` does."""
    with TensorsWithoutMemory():
        backbone = build_backbone(metadata)
    load_strictly(backbone, state, file, assign=True)


def load_strictly(
    network: nn.Module, state: dict[str, Tensor], file: Path, assign: bool = False
) -> None:
    """Load `state` into a network.

    Args:
        assign: take the tensors in `state` as the weights, instead of copying their values.

    Raises:
        UserError: a weight is missing, unknown, has another shape or is not a tensor.
    """
    try:
        network.load_state_dict(state, strict=True, assign=assign)
    # Torch raises AttributeError or TypeError for keys or values of a wrong type.
    except (RuntimeError, AttributeError, TypeError) as error:
        message = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
        raise UserError(f"{file}: its weights do not fit: {message}") from None


def remove_compile_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights under the names that they have in a network without `torch.compile`."""

    def remove_prefix(name: str) -> str:
        # `torch.compile(model.backbone)` is a module whose part `_orig_mod` is the network itself.
        return name.replace("_orig_mod.", "") if isinstance(name, str) else name

    return rename_weights(state, remove_prefix)


def rename_weights(state: dict[str, Any], find_name: Callable[[str], str]) -> dict[str, Any]:
    """Return the weights of a state dict under other names.

    Names that would become the same stay as they are. A strict check then refuses one of them, in
    place of a silent choice between the two weights.

    Args:
        find_name: returns the new name for a name.
    """
    new_names = {name: find_name(name) for name in state}
    counts = Counter(new_names.values())
    renamed: dict[str, Any] = {}
    for name, weight in state.items():
        new_name = new_names[name]
        renamed[new_name if counts[new_name] == 1 else name] = weight
    return renamed


def hash_weights(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of all names and weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        # NumPy has no bfloat16, but it can take the bytes of any tensor.
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
