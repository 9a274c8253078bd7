"""Signal handlers in a process that may belong to another program, such as a notebook's kernel."""

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
