"""What `main.py` sets for its own process: the standard streams and the environment."""

import importlib.util
import io
import os
import sys


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
