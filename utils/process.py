"""This process, which may belong to another program, such as a notebook's kernel.

It has signal handlers, standard streams and an environment.
"""

import importlib.util
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def is_interactive() -> bool:
    """Return whether a person types Python into this process: at a prompt or in a notebook.

    Such a process must outlive a run. Python's prompt, IPython and its kernels all set `sys.ps1`.
    """
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def is_main_thread() -> bool:
    """Return whether this is the main thread. Python refuses signal handlers in every other one."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def restored_handlers(numbers: Iterable[int]) -> Iterator[None]:
    """Give signals the handlers back, at the end of the block, that they had at its beginning."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if is_main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # a handler that C code has installed cannot be restored
                    signal.signal(number, handler)


def prepare_streams() -> None:
    """Open the standard streams that are closed, and escape letters that stdout cannot encode."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # Otherwise the next file that is opened would get the number of the stream, and C code that
        # prints to the stream would write into that file.
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, os.fdopen(number, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # stderr escapes such letters by default


def replace_missing_matplotlib_backend() -> None:
    """Let matplotlib draw into files, if the environment names a backend that is not installed.

    A notebook's `!python main.py` inherits the backend of the notebook's kernel. If this Python
    is another one that lacks the backend, matplotlib, and so Lightning, could not be imported.
    """
    backend = os.environ.get("MPLBACKEND", "")
    package = backend.removeprefix("module://").partition(".")[0]
    if backend.startswith("module://") and importlib.util.find_spec(package) is None:
        os.environ["MPLBACKEND"] = "agg"
