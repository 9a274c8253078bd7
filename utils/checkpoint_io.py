"""Checkpoints that are written atomically, in the background, and read without running any code in them."""

import os
import pickle
import shutil
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.plugins.io import TorchCheckpointIO

from utils.errors import UserError, check
from utils.filesystem import write_atomically

WHY_UNREADABLE = {
    zipfile.BadZipFile: "not a checkpoint, or cut short",
    pickle.UnpicklingError: "holds Python objects beyond tensors and plain values; refused, nothing of it was run",
}


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


class BackgroundCheckpointIO(TorchCheckpointIO):
    """Writes copies of the tensors atomically in a thread, so that training does not wait for the disk.

    A failure to write is noted in `failures` (file -> reason, of its latest attempt) and raises nothing.

    Args:
        keep: the checkpoint whose predecessor is kept, too.
        about: plain values that every checkpoint holds besides Lightning's own.
    """

    def __init__(self, keep: Path, about: dict[str, Any]) -> None:
        self.keep, self.about = keep, about
        self.failures: dict[Path, str] = {}
        self._thread, self._pending = ThreadPoolExecutor(1), list[tuple[Path, Future[None]]]()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        copy = apply_to_collection(checkpoint | self.about, torch.Tensor, lambda tensor: tensor.detach().clone())
        for queued, future in self._pending:
            if queued == Path(path):
                future.cancel()  # unless it has begun: on a slow disk, copies do not queue up in memory
        self._pending = [(queued, future) for queued, future in self._pending if not future.cancelled()]
        self._pending.append((Path(path), self._thread.submit(self._write, copy, Path(path))))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        def write(partial: Path) -> None:
            with open(partial, "wb") as file:  # given a path, torch reports a full disk as "unexpected pos"
                torch.save(checkpoint, file)
            if path == self.keep and path.exists():
                previous(path).unlink(missing_ok=True)
                try:
                    os.link(path, previous(path))
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, previous(path))

        try:
            write_atomically(path, write)
            self.failures.pop(path, None)
        except OSError as error:
            self.failures[path] = error.strerror or str(error)

    def wait(self) -> None:
        """Return when every checkpoint is on the disk, or has failed."""
        while self._pending:
            self._pending.pop(0)[1].result()

    teardown = wait  # by Lightning, at the end

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(Path(path))  # on the CPU; Lightning moves tensors to the device


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint with `state_dict` and `hyper_parameters`, of tensors and plain values only; checksums are verified.

    Raises UserError if it is missing, damaged, of another program, or holds code.
    """
    check(path.is_file(), f"{path}: no such checkpoint")
    check(path.stat().st_size > 0, f"{path}: empty")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            stored = sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size
            check(stored, f"{path}: compressed, as no checkpoint is: what it would unpack to is not looked at")
            broken = archive.testzip()  # torch checks no CRC: a flipped bit would load silently
            check(broken is None, f"{path}: damaged (the checksum of {broken} does not match)")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (*WHY_UNREADABLE, RuntimeError, EOFError, OSError, KeyError, ValueError, zlib.error) as error:
        why = WHY_UNREADABLE.get(type(error), f"not readable as a checkpoint ({type(error).__name__})")
        raise UserError(f"{path}: {why}") from None
    needed = ("state_dict", "hyper_parameters")
    ours = isinstance(content, dict) and all(isinstance(content.get(name), dict) for name in needed)
    check(ours, f"{path}: not a checkpoint of this program (it has no state_dict with hyper_parameters)")
    return content


def read_resumable(path: Path, callbacks: tuple[str, ...]) -> dict[str, Any]:
    """A checkpoint with all that training needs to go on, also of the callbacks with these state keys.

    Raises UserError, as `read_checkpoint`, and for weights alone.
    """
    check(path.suffix != ".safetensors", f"{path}: weights alone, which no run goes on from; --model-path starts one")
    content = read_checkpoint(path)
    lists, dicts = ("optimizer_states", "lr_schedulers"), ("loops", "callbacks", "settings")
    kinds = dict.fromkeys(lists, list) | dict.fromkeys((*dicts, "row"), dict) | {"global_step": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong = wrong or [name for name in (*lists, *dicts) if not content[name]]
    wrong = wrong or [name for name in callbacks if name not in content["callbacks"]]
    wrong = wrong or ["row"] * (not isinstance(content["row"].get("epoch", 0), int))
    check(not wrong, f"{path}: not a checkpoint that a run goes on from (it lacks {', '.join(wrong)})")
    return content
