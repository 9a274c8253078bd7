"""The two kinds of failure that end the program with one line on stderr instead of a traceback."""


class UserError(ValueError):
    """Something that a person can mend: a flag, a file, a folder. The message says what to do. Exit status 2."""


class RunFailure(RuntimeError):
    """A run that does not go on: collapsed (exit status 3), no longer finite (4), or stopped by Ctrl-C (130)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def check(ok: bool, message: str) -> None:
    """Raise UserError(message) unless ok."""
    if not ok:
        raise UserError(message)
