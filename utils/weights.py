"""Weights of a network in a safetensors file, with the metadata that is needed to use them."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import UserError, require
from utils.filesystem import write_atomically

# Kinds of files. They are written into the files, so they must not change.
BACKBONE = "simsiam-backbone"
HEAD = "simsiam-head"
KINDS = (BACKBONE, HEAD)


def write_weights(
    path: Path, kind: str, state: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Write weights and metadata to a safetensors file.

    Args:
        path: The file.
        kind: `BACKBONE` or `HEAD`.
        state: The weights by name.
        metadata: Values that JSON can represent. safetensors stores text only, so each value is
            written as JSON.
    """
    text_metadata = {"kind": kind}
    for key, value in metadata.items():
        text_metadata[key] = json.dumps(value)
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()  # addresses
    for name, tensor in state.items():
        saved = tensor.detach().cpu().contiguous()
        # A layer that a network uses in two places, as timm's CoaT does, has two names. safetensors
        # refuses tensors that share memory.
        if saved.untyped_storage().data_ptr() in storages:
            saved = saved.clone()
        storages.add(saved.untyped_storage().data_ptr())
        tensors[name] = saved
    content = save(tensors, text_metadata)
    write_atomically(path, lambda partial_file: partial_file.write_bytes(content))


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata, as text, and the weights of any safetensors file.

    Raises:
        UserError: The file is missing or damaged.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text_metadata = file.metadata() or {}
            # An open safetensors file has keys(), but cannot be iterated over.
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None
    return text_metadata, state


def read_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and weights from a safetensors file.

    Args:
        path: The file.
        kind: The kind that the file must have, `BACKBONE` or `HEAD`.

    Raises:
        UserError: The file is missing, damaged, of another kind, or of another program.
    """
    text_metadata, state = read_safetensors(path)
    kind_in_words = kind.removeprefix("simsiam-")
    require(
        text_metadata.get("kind") == kind,
        f"{path}: a safetensors file, but not a {kind_in_words} of this program",
    )
    metadata: dict[str, Any] = {}
    try:
        for key, text in text_metadata.items():
            if key != "kind":
                metadata[key] = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None
    return metadata, state
