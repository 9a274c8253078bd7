"""Writing that is whole or not there."""

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.console import print_line
from utils.errors import UserError, check

PARTIAL = ".partial"


def write_atomically(path: Path, write: Callable[[Path], object], before: Callable[[], object] = lambda: None) -> None:
    """Let `write` fill a temporary file beside `path`, bring it to the disk, then put it in place.

    A kill at any moment leaves either the old file or the new one. The temporary file is on the target's own file
    system, so that the last step is a rename; `before` is called just ahead of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        before()
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path, flag: str) -> None:
    """Raise UserError unless `folder` is one, or can be made, and can be written to; `flag` is what to give instead."""
    for part in (folder, *folder.parents):
        check(part.is_dir() or not part.exists(), f"{part} is a file, not a folder: give another {flag}")
    above = next(part for part in (folder, *folder.parents) if part.exists())
    try:
        with tempfile.TemporaryFile(dir=above):  # to ask is not enough: root may write everywhere, but for /proc
            pass
    except OSError as error:
        raise UserError(f"{above} cannot be written ({error.strerror}): give another {flag}") from None


@contextmanager
def lock_folder(folder: Path, taken: str, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile. A dead process holds nothing, and no file is left behind.

    A network file system may know of the processes of each machine alone.

    Args:
        taken: what is said where another process has it.
        wait: then wait for it.

    Raises:
        UserError: `taken`, unless `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check(wait, taken)
            print_line(taken)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process has a folder for itself by `lock_folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: until then a rename can be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text))


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
