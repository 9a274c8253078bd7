"""The failures that end the program with one line on stderr instead of a traceback."""

import os
import signal

COLLAPSED_STATUS = 3  # exit status if the representation collapsed (with --stop-on-collapse)
NOT_FINITE_STATUS = 4  # exit status if the loss or a weight is not finite


class UserError(ValueError):
    """A mistake that the user can fix: in a flag, a file or a folder. Exit status 2.

    The message says how to fix the mistake.
    """

    status = 2


class RunError(RuntimeError):
    """A run that cannot continue.

    Args:
        message: what happened.
        status: exit status of the program: COLLAPSED_STATUS, NOT_FINITE_STATUS, or the status of
            one of the run's processes, if that process failed.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StoppedBySignal(BaseException):
    """A signal ended the program. Exit status 128 + the number of the signal.

    It is a BaseException, so that `except Exception` around the reading of a file does not take the
    signal for a bad file.

    Args:
        number: number of the signal.
        details: the rest of the message: where the program was, and whether the work was saved.
    """

    def __init__(self, number: int, details: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{details}")
        self.number = number
        self.status = 128 + number


def require(condition: bool, message: str) -> None:
    """Raise UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


# What a RuntimeError says if memory is exhausted: of a GPU, of torch's CPU allocator, of C++, and
# of oneDNN. oneDNN names no reason. Its error has another one only if this processor cannot compute
# the operation, which does not happen to a network that has begun to train.
OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory is exhausted: of Python, of a GPU, or of torch on the CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def is_missing_home(error: BaseException) -> bool:
    """Return whether pathlib could not expand "~".

    HOME is not set then, and the user's id has no entry in passwd.
    """
    return isinstance(error, RuntimeError) and str(error) == "Could not determine home directory."


def describe_os_error(error: OSError) -> str:
    """Return what failed and why, in one line."""
    reason = error.strerror or str(error)
    if error.filename is None and reason.startswith("No usable temporary directory"):
        return f"{reason}. Free some space in one of them, or set TMPDIR to another folder."
    if not error.filename:
        return reason
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return f"{name}: {reason}"
