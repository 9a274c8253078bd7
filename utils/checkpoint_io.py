"""Checkpoints, read without running any code in them."""

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, require

WHY_UNREADABLE = {
    zipfile.BadZipFile: "not a checkpoint, or cut short",
    pickle.UnpicklingError: "holds Python objects beyond tensors and plain values; refused, nothing of it was run",
}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A whole checkpoint (its checksums are verified) with `state_dict` and `hyper_parameters`, of plain values."""
    require(path.is_file(), f"{path}: no such checkpoint")
    require(path.stat().st_size > 0, f"{path}: empty")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            stored = sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size
            require(
                stored,
                f"{path}: compressed, as no checkpoint is: what it would unpack to is not looked at",
            )
            broken = archive.testzip()  # torch checks no CRC: a flipped bit would load silently
            require(broken is None, f"{path}: damaged (the checksum of {broken} does not match)")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (
        *WHY_UNREADABLE,
        RuntimeError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        zlib.error,
    ) as error:
        why = WHY_UNREADABLE.get(
            type(error), f"not readable as a checkpoint ({type(error).__name__})"
        )
        raise UserError(f"{path}: {why}") from None
    needed = ("state_dict", "hyper_parameters")
    ours = isinstance(content, dict) and all(isinstance(content.get(name), dict) for name in needed)
    require(
        ours,
        f"{path}: not a checkpoint of this program (it has no state_dict with hyper_parameters)",
    )
    return content


def read_resumable(path: Path, callbacks: tuple[str, ...]) -> dict[str, Any]:
    """A checkpoint with all that training needs to go on, also of the callbacks with these state keys."""
    require(
        path.suffix != ".safetensors",
        f"{path}: weights alone, which no run goes on from; --model-path starts one",
    )
    content = read_checkpoint(path)
    lists, dicts = ("optimizer_states", "lr_schedulers"), ("loops", "callbacks", "settings")
    kinds = dict.fromkeys(lists, list) | dict.fromkeys((*dicts, "row"), dict) | {"global_step": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong = wrong or [name for name in (*lists, *dicts) if not content[name]]
    wrong = wrong or [name for name in callbacks if name not in content["callbacks"]]
    wrong = wrong or ["row"] * (not isinstance(content["row"].get("epoch", 0), int))
    require(
        not wrong, f"{path}: not a checkpoint that a run goes on from (it lacks {', '.join(wrong)})"
    )
    return content
