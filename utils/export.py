"""A network in one file, with what it takes to use it as metadata: safetensors, torch.export or ONNX."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from utils.errors import UserError, check
from utils.filesystem import write_atomically

BACKBONE, HEAD = "simsiam-backbone", "simsiam-head"


def write_weights(path: Path, kind: str, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write weights with `metadata`: values as JSON, which is how safetensors' text-only metadata keeps numbers."""
    text = {"kind": kind, **{key: json.dumps(value) for key, value in metadata.items()}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda partial: partial.write_bytes(save(tensors, text)))


def read_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and weights; UserError for a file that is missing, damaged, of another kind or another program."""
    check(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        check(text.get("kind") == kind, f"{path}: a safetensors file, but not a {kind.split('-')[1]} of this program")
        return {key: json.loads(value) for key, value in text.items() if key != "kind"}, state
    except (SafetensorError, OSError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None


def write_program(path: Path, format: str, network: nn.Module, images: Tensor, metadata: dict[str, Any]) -> None:
    """A network in eval mode as "torch-export" or "onnx", for batches of any size, with metadata as JSON inside."""
    example = (images[:1].repeat(2, 1, 1, 1),)  # the exporters take a batch size of 1 for a constant
    if format == "torch-export":
        program = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
        with open(path, "wb") as file:  # given a name, torch insists on its suffix
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
        return
    import onnx

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"], "verbose": False}
    program = torch.onnx.export(network, example, **names, dynamic_shapes=({0: "batch"},), dynamo=True)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def read_program(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """What a file of `write_program` computes; of ONNX, on the CPU."""
    if format == "torch-export":
        return torch.export.load(io.BytesIO(path.read_bytes())).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
