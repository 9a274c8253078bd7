"""Write files so that a kill never leaves a half-written one, and lock folders."""

import errno
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
    message = (
        "this program needs Linux or macOS, because it uses their file locks. On Windows, use WSL."
    )
    raise ImportError(message) from None

# What a file system answers that cannot lock: Lustre without the option flock, NFS without a lockd.
UNSUPPORTED_LOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
PARTIAL_SUFFIX = ".partial"  # the suffix of files that are being written


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a kill or a power cut leaves either the old file or the new one.

    Args:
        path: path of the file. Missing folders are created.
        write: takes the path of a temporary file and writes this file. Then the temporary file is
            renamed to `path`.

    Raises:
        OSError: the file cannot be written. The error names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        # A full disk is noticed by a write to an open file, whose error has no name.
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync the list of a folder's files to the disk, so that a power cut cannot undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems cannot do this
        os.fsync(descriptor)
    os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with `write_atomically`."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with `write_atomically`.

    Raises:
        ValueError: if a number is infinite or NaN, for which JSON has no notation.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def check_writable(folder: Path, flag: str) -> None:
    """Check that files can be written in a folder, which may not exist yet. Nothing is created.

    Args:
        flag: the option that chose the folder, for the message.

    Raises:
        UserError: if the folder, or the first folder above it that exists, takes no files.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    require(existing.is_dir(), f"{existing} is a file, not a folder. Pass another {flag}.")
    try:
        # os.access would answer yes to root, also on a read-only file system.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing} cannot be written ({error.strerror})"
        raise UserError(f"{reason}. Pass another {flag}.") from None


@contextmanager
def lock_folder(folder: Path, message: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a folder or a file inside the `with` block.

    The lock leaves no file behind, and ends with the process that holds it. On a network file
    system it may exclude only processes on the same machine.

    Args:
        message: text for the user if another process holds the lock.
        wait: if another process holds the lock, print `message`, unless it is empty, and wait,
            instead of raising.

    Raises:
        UserError: with `message`, if another process holds the lock and `wait` is false; or the
            file system has no locks.
    """
    descriptor = _open_to_lock(folder)
    try:
        if not _lock(descriptor, folder, wait=False):
            require(wait, message)
            if message:
                print_line(message)
            _lock(descriptor, folder, wait=True)
        yield
    finally:
        os.close(descriptor)  # this also releases the lock


def _open_to_lock(path: Path) -> int:
    """Return a descriptor of a folder or a file, which `_lock` can lock."""
    if path.is_dir():
        return os.open(path, os.O_RDONLY)
    # NFSv4 locks a file only for a process that may write to it.
    return os.open(path, os.O_RDWR)


def _lock(descriptor: int, path: Path, wait: bool) -> bool:
    """Lock an open file; return False if another process holds the lock and `wait` is false.

    Raises:
        UserError: the file system has no locks.
    """
    operation = fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        require(
            error.errno not in UNSUPPORTED_LOCK,
            f"{path} cannot be locked on its file system ({error.strerror}). Use a folder on "
            "another one, or mount it with locks: Lustre with the option flock, NFS with lockd.",
        )
        raise
    return True


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock of `lock_folder`.

    Raises:
        UserError: the file system has no locks.
    """
    descriptor = _open_to_lock(folder)
    try:
        return not _lock(descriptor, folder, wait=False)
    finally:
        os.close(descriptor)
