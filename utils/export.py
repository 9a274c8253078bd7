"""A network in one file, with what it takes to use it as metadata: safetensors, torch.export or ONNX."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from utils.errors import UserError, check
from utils.filesystem import write_atomically

BACKBONE, HEAD = "simsiam-backbone", "simsiam-head"
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Tensor], Tensor]


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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings: the result is compared with the network instead."""
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@quiet()
def write_torch_export(path: Path, network: nn.Module, example: Tensor, metadata: dict[str, Any]) -> None:
    """A `.pt2` file with `metadata.json` inside, of a network in eval mode.

    Args:
        example: (B, 3, S, S), B > 1, since exporters take a batch size of 1 for a constant; B stays free.
    """
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with open(path, "wb") as file:  # given a name, torch insists on its suffix
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


@quiet()
def read_torch_export(path: Path) -> tuple[Run, dict[str, Any]]:
    """The program and its metadata."""
    extra = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    return program, json.loads(extra["metadata.json"])


def check_onnx() -> None:
    """Raise UserError that says what to install, where something that ONNX needs is missing."""
    missing = [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]
    check(not missing, f"--format onnx needs {' '.join(missing)}: pip install {' '.join(missing)}")


@quiet()
def write_onnx(path: Path, network: nn.Module, example: Tensor, metadata: dict[str, Any]) -> None:
    """One ONNX file, `images` -> `features`, weights inside, with the metadata as JSON in its properties."""
    import onnx

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"], "verbose": False}
    program = torch.onnx.export(network, (example,), **names, dynamic_shapes=({0: "batch"},), dynamo=True)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def read_onnx(path: Path) -> tuple[Run, dict[str, Any]]:
    """The program, as onnxruntime runs it on the CPU, and its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    metadata = {name: json.loads(value) for name, value in metadata.items()}
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0]), metadata
