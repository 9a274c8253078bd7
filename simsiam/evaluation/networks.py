"""Networks built from the metadata of a file, and weights that are loaded strictly."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.heads import build_networks
from models.resnet import BACKBONES, ResNet
from simsiam.config.options import NetworkOptions
from simsiam.evaluation.metadata import BackboneMetadata
from utils.errors import UserError

MAX_ERROR_LENGTH = 300  # characters of torch's message, which may list every weight of a network


def build_backbone(metadata: BackboneMetadata, seed: int = 0) -> ResNet:
    """Return a backbone in eval mode, with the random weights that a run with `seed` starts from.

    Raises:
        UserError: the network cannot be built with the settings in the metadata.
    """
    # `BackboneMetadata` does not check the values in `settings`, so convert them here.
    zero_init_residual = bool(metadata.settings.get("zero_init_residual", True))
    conv_init = str(metadata.settings.get("conv_init") or NetworkOptions.conv_init)
    make_resnet = BACKBONES[metadata.backbone]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = make_resnet(metadata.width, zero_init_residual, metadata.stem, conv_init)
        except ValueError as error:
            raise UserError(f"cannot build the network of this checkpoint: {error}") from None
    set_image_metadata(backbone, metadata)
    return backbone.eval()


def build_all_networks(file: Path, hparams: dict[str, Any]) -> nn.ModuleDict:
    """Return "backbone", "projector" and "predictor" as the hyper-parameters of a file say.

    Raises:
        UserError: the networks cannot be built.
    """
    try:
        backbone, projector, predictor = build_networks(hparams["backbone"], hparams)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: not a checkpoint of this program ({error})") from None
    return nn.ModuleDict(
        {"backbone": backbone, "projector": projector, "predictor": predictor},
    )


def set_image_metadata(backbone: ResNet, metadata: BackboneMetadata) -> None:
    """Set `.mean`, `.std` and `.image_size` of the backbone."""
    backbone.image_size = metadata.image_size
    if metadata.mean is None or metadata.std is None:
        backbone.statistics = None
    else:
        backbone.statistics = (tuple(metadata.mean), tuple(metadata.std))


def load_strictly(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load `state` into a network.

    Raises:
        UserError: a weight is missing, unknown, has another shape or is not a tensor.
    """
    try:
        network.load_state_dict(state, strict=True)
    # Torch raises AttributeError or TypeError for keys or values of a wrong type.
    except (RuntimeError, AttributeError, TypeError) as error:
        message = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
        raise UserError(f"{file}: its weights do not fit: {message}") from None


def remove_compile_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights under the names that they have in a network without `torch.compile`."""
    renamed: dict[str, Any] = {}
    for name, weight in state.items():
        # `torch.compile(model.backbone)` is a module whose part `_orig_mod` is the network itself.
        key = name.replace("_orig_mod.", "") if isinstance(name, str) else name
        renamed[key] = weight
    return renamed


def hash_weights(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of all names and weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
