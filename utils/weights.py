"""Weights of a network in a safetensors file, with what it takes to use them as metadata."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import UserError, require
from utils.filesystem import write_atomically

BACKBONE, HEAD = "simsiam-backbone", "simsiam-head"


def write_weights(
    path: Path, kind: str, state: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Write weights with `metadata`: values as JSON, which is how safetensors' text-only metadata keeps numbers."""
    text = {"kind": kind, **{key: json.dumps(value) for key, value in metadata.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda partial: partial.write_bytes(save(tensors, text)))


def read_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and weights; UserError for a file that is missing, damaged, of another kind or another program."""
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text, state = (
                file.metadata() or {},
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
            )
        require(
            text.get("kind") == kind,
            f"{path}: a safetensors file, but not a {kind.split('-')[1]} of this program",
        )
        return {key: json.loads(value) for key, value in text.items() if key != "kind"}, state
    except (SafetensorError, OSError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None
