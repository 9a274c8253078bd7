"""Checkpoints, read without running any code in them."""

import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel, Field, ValidationError

from utils.errors import UserError, require

# Key of a callback's state in older checkpoints -> its present key, the name of the class.
RENAMED_STATES = {"Recorder": "MetricsRecorder", "Keeper": "CheckpointCallback"}
# What torch raises for a damaged file, and for a crafted one with wrong types or sizes.
READ_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zlib.error,
)
# The first bytes of a file that torch wrote before its version 1.6, which are a pickled number.
# Newer files are zip archives.
OLD_FORMAT_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class Row(BaseModel, strict=True):
    """The part of an epoch's metrics that resuming needs."""

    epoch: int = 0  # epochs done; missing in a checkpoint from within the first epoch


class Resumable(BaseModel, strict=True):
    """The parts of a checkpoint that resuming needs. Lightning checks what is inside them."""

    optimizer_states: list[Any] = Field(min_length=1)
    lr_schedulers: list[Any] = Field(min_length=1)
    loops: dict[Any, Any] = Field(min_length=1)
    callbacks: dict[Any, Any] = Field(min_length=1)
    settings: dict[Any, Any] = Field(min_length=1)
    row: Row
    global_step: int


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after its checksums were verified.

    Returns:
        Tensors and plain values; among them the dictionaries `state_dict` and `hyper_parameters`.

    Raises:
        UserError: the file is missing or damaged, or is no checkpoint of this program.
    """
    content = read_torch_file(path)
    for name in ("state_dict", "hyper_parameters"):
        require(
            isinstance(content, dict) and isinstance(content.get(name), dict),
            f"{path} is not a checkpoint of this program: it has no {name}",
        )
    _rename_states(content)
    return content


def read_torch_file(path: Path, old_format: bool = False, refusal_hint: str = "") -> Any:
    """Read a file of `torch.save` onto the CPU, after its checksums were verified.

    Args:
        path: The file.
        old_format: Also read the format that torch wrote before its version 1.6. It has no
            checksums.
        refusal_hint: How the error for a file with Python objects ends.

    Returns:
        Tensors and plain values.

    Raises:
        UserError: the file is missing, damaged or of another format, or has Python objects.
    """
    require(path.is_file(), f"{path}: no such checkpoint")
    require(path.stat().st_size > 0, f"{path} is empty")
    try:
        if old_format and _is_old_format(path):
            return _load_old_format(path)
        return _load(path)
    except UserError:  # also a ValueError
        raise
    except zipfile.BadZipFile:
        raise UserError(f"{path} is not a checkpoint, or cut short") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds Python objects other than tensors and plain values. "
            f"It was refused, and none of its code was run{refusal_hint}"
        ) from None
    except READ_ERRORS as error:
        raise UserError(
            f"{path} is not readable as a checkpoint ({type(error).__name__})"
        ) from None


def _load(path: Path) -> Any:
    """Return the content of a checkpoint, a zip archive that is not compressed."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        unpacked_size = sum(entry.file_size for entry in archive.infolist())
        require(
            unpacked_size <= path.stat().st_size,
            f"{path} is compressed, which checkpoints are not, so it was not unpacked",
        )
        # torch verifies no checksums: it would load flipped bits without an error.
        damaged_entry = archive.testzip()
        require(
            damaged_entry is None,
            f"{path} is damaged (the checksum of {damaged_entry} does not match)",
        )
        file.seek(0)
        return _load_tensors(file)


def _is_old_format(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(OLD_FORMAT_START)) == OLD_FORMAT_START


def _load_old_format(path: Path) -> Any:
    """Return the content of a file that is a sequence of pickles, followed by the tensors' data."""
    with open(path, "rb") as file:
        return _load_tensors(file)


def _load_tensors(file: BinaryIO) -> Any:
    with warnings.catch_warnings():
        # torch warns of sparse and quantized tensors, which no network of this program has.
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _rename_states(content: dict[str, Any]) -> None:
    """Give the callbacks' states in an older checkpoint their present keys."""
    states = content.get("callbacks")
    if not isinstance(states, dict):
        return
    for old_key, key in RENAMED_STATES.items():
        if old_key in states:
            states[key] = states.pop(old_key)


def read_resumable(path: Path, callbacks: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint that a run can resume from.

    Args:
        callbacks: state keys of the callbacks whose state the checkpoint must hold.

    Raises:
        UserError: the file is missing or damaged, or lacks something that resuming needs.
    """
    require(
        path.suffix != ".safetensors",
        f"{path} holds weights alone, which no run can resume from. "
        "Pass it as --model-path to start a new run from them.",
    )
    content = read_checkpoint(path)
    try:
        Resumable.model_validate(content)
    except ValidationError as error:
        invalid = {str(problem["loc"][0]) for problem in error.errors()}
        names = ", ".join(sorted(invalid))
        raise UserError(f"cannot resume from {path}: it has no valid {names}") from None
    for name in callbacks:
        require(
            name in content["callbacks"],
            f"cannot resume from {path}: it has no state of {name}",
        )
    return content
