"""The kinds of failure that end the program with one line on stderr instead of a traceback."""

import re
import signal


class UserError(ValueError):
    """Something that a person can mend: a flag, a file, a folder. The message says what to do. Exit status 2."""


class RunFailure(RuntimeError):
    """A run that does not go on: collapsed (exit status 3) or no longer finite (4)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stopped(BaseException):  # not an Exception: what asks "is this file readable?" must not answer for it
    """Told to stop by a signal: exit status 128 + its number. The message says where, and what became of the work."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number = number


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, a GPU's, or what torch's allocator for CPUs raises."""
    return isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)) is not None


def check(ok: bool, message: str) -> None:
    """Raise UserError(message) unless ok."""
    if not ok:
        raise UserError(message)
