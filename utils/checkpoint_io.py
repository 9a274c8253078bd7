"""Checkpoints that are written atomically, in the background, and read without running any code in them."""

import os
import pickle
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import AsyncCheckpointIO, CheckpointIO

from utils.errors import UserError, check
from utils.filesystem import write_atomically


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path) -> None:
    """Give the checkpoint at `path` a second name, under which it outlives its replacement."""
    if path.exists():
        previous(path).unlink(missing_ok=True)
        try:
            os.link(path, previous(path))
        except OSError:  # a file system without hard links
            shutil.copyfile(path, previous(path))


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically. A failure to write is noted in `failures` and raises nothing.

    Args:
        keep: the checkpoint whose predecessor is kept, too.
    """

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.failures: dict[Path, str] = {}  # file -> reason, of its latest attempt

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:  # given a path, torch reports a full disk as "unexpected pos"
                torch.save(checkpoint, file)

        try:
            write_atomically(path, write, before=lambda: keep_previous(path) if path == self.keep else None)
            self.failures.pop(path, None)
        except OSError as error:
            self.failures[path] = error.strerror or str(error)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(Path(path), map_location or "cpu")  # Lightning moves tensors to the device

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class BackgroundCheckpointIO(AsyncCheckpointIO):
    """Writes copies of the tensors in a thread, so that training does not wait for the disk.

    Args:
        writer: writes them, in that thread.
        about: plain values that every checkpoint holds besides Lightning's own.
    """

    def __init__(self, writer: AtomicCheckpointIO, about: dict[str, Any]) -> None:
        super().__init__(writer)
        self.about, self.failures = about, writer.failures

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint | self.about, path, storage_options)

    def wait(self) -> None:
        """Return when every checkpoint is on the disk, or has failed."""
        self.teardown()  # ends the thread; the next checkpoint starts another


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of tensors and plain values only, with every checksum verified.

    torch reads an archive without checking its CRCs, so a flipped bit would load silently: `testzip` finds it.

    Raises:
        UserError: missing, empty, truncated, damaged, not a checkpoint, or one that holds code.
    """
    check(path.is_file(), f"{path}: no such checkpoint")
    check(path.stat().st_size > 0, f"{path}: empty")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            stored = sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size
            check(stored, f"{path}: compressed, as no checkpoint is: what it would unpack to is not looked at")
            broken = archive.testzip()
            check(broken is None, f"{path}: damaged (the checksum of {broken} does not match)")
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a checkpoint, or cut short") from None
    except pickle.UnpicklingError:
        refused = "holds Python objects beyond tensors and plain values; refused, nothing of it was run"
        raise UserError(f"{path}: {refused}") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not readable as a checkpoint ({type(error).__name__})") from None
    check(isinstance(content, dict), f"{path}: not a checkpoint of this program")
    return content


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint with `hyper_parameters` and `state_dict`.

    Raises:
        UserError: as `read_checkpoint`, and for a checkpoint of another program.
    """
    content = read_checkpoint(path)
    ours = all(isinstance(content.get(name), dict) for name in ("state_dict", "hyper_parameters"))
    check(ours, f"{path}: not a checkpoint of this program (it has no state_dict with hyper_parameters)")
    return content


def read_resumable(path: Path, callbacks: tuple[str, ...]) -> dict[str, Any]:
    """A checkpoint with all that training needs to go on: `read_state`'s, settings, step, row, optimizer, loops.

    Args:
        callbacks: the state keys that it must hold.

    Raises:
        UserError: as `read_state`, and for weights alone.
    """
    check(path.suffix != ".safetensors", f"{path}: weights alone, which no run goes on from; --model-path starts one")
    content = read_state(path)
    kinds: dict[str, type] = dict.fromkeys(("optimizer_states", "lr_schedulers"), list)
    kinds |= dict.fromkeys(("loops", "callbacks", "settings"), dict)
    wrong = [name for name, kind in kinds.items() if not (isinstance(content.get(name), kind) and content[name])]
    wrong += [name for name, kind in (("global_step", int), ("row", dict)) if not isinstance(content.get(name), kind)]
    wrong += [name for name in callbacks if "callbacks" not in wrong and name not in content["callbacks"]]
    wrong = wrong or ["row"] * (not isinstance(content["row"].get("epoch", 0), int))
    check(not wrong, f"{path}: not a checkpoint that a run goes on from (it lacks {', '.join(wrong)})")
    return content
