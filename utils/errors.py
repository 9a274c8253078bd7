"""The failures that end the program with one line on stderr instead of a traceback."""

import os
import signal


class UserError(ValueError):
    """A mistake that the user can mend: a flag, a file, a folder. The message says how. Exit status 2."""

    status = 2


class RunError(RuntimeError):
    """A run that cannot go on: collapsed (exit status 3), not finite (4), or a process of it ended."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StoppedBySignal(
    BaseException
):  # not an Exception, so that no `except Exception` around a file takes it for a bad file
    """Ended by a signal: exit status 128 + its number. The message says where, and whether the work was saved."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number, self.status = number, 128 + number


def is_out_of_memory(error: BaseException) -> bool:
    """Python's error, a GPU's, or that of torch's allocator on a CPU."""
    return isinstance(error, MemoryError) or any(
        s in str(error) for s in ("out of memory", "allocate memory")
    )


def is_missing_home(error: BaseException) -> bool:
    """Whether pathlib could not expand "~": HOME is not set, and the user's id is in no passwd."""
    return isinstance(error, RuntimeError) and str(error) == "Could not determine home directory."


def describe_os_error(error: OSError) -> str:
    """Return what failed and why, in one line."""
    reason = error.strerror or str(error)
    if error.filename is None and reason.startswith("No usable temporary directory"):
        return f"{reason}: free some space in one of them, or set TMPDIR to another folder"
    if not error.filename:
        return reason
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return f"{name}: {reason}"


def require(ok: bool, message: str) -> None:
    """Raise UserError(message) unless ok."""
    if not ok:
        raise UserError(message)
