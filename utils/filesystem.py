"""Atomic writing, and locks on folders."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.console import print_line
from utils.errors import UserError, require

try:
    import fcntl
except ModuleNotFoundError:
    needs = "needs Linux or macOS, whose file locks it uses; on Windows, use WSL"
    raise ImportError(needs) from None

PARTIAL = ".partial"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file that becomes `path`: after a kill there is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network file systems cannot
            os.fsync(folder)  # without it, a power cut can undo the rename
        os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def check_writable(folder: Path, flag: str) -> None:
    """Raise UserError, which asks for another `flag`, unless `folder` exists or can be made, and takes files."""
    above = next(part for part in (folder, *folder.parents) if part.exists())
    require(above.is_dir(), f"{above} is a file, not a folder: give another {flag}")
    try:
        with tempfile.TemporaryFile(dir=above):  # os.access would say yes to root everywhere
            pass
    except OSError as error:
        raise UserError(
            f"{above} cannot be written ({error.strerror}): give another {flag}"
        ) from None


@contextmanager
def lock_folder(folder: Path, taken: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a folder. It leaves no file behind and ends with the process that holds it.

    If another process holds it, raise UserError(taken), or with `wait` print `taken` and wait. On a network file system
    it may exclude only processes of the same machine.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        require(wait, taken)
        print_line(taken)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds `lock_folder`'s lock."""
    try:
        with lock_folder(folder, ""):
            return False
    except UserError:
        return True
