"""Waiting inside C++ code in such a way that signals still work."""

import threading
from collections.abc import Callable
from typing import TypeVar

from utils.console import print_line

Result = TypeVar("Result")
NOTICE_SECONDS = 15  # of waiting, after which a person is told what for


def call_interruptibly(function: Callable[[], Result], notice: str | None = None) -> Result:
    """Call `function` in a thread and return its result, so that signal handlers run meanwhile.

    Python runs signal handlers between two bytecodes of the main thread. If that thread were inside
    a blocking function of C++, such as torch's rendezvous, SIGTERM and Ctrl-C would have no effect.
    If a handler raises, the thread is left behind, and ends with the process.

    Args:
        function: the blocking call.
        notice: a line to print if the call takes longer than NOTICE_SECONDS.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal handler runs
        return function()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if notice is not None:
        thread.join(NOTICE_SECONDS)
        if thread.is_alive():
            print_line(notice)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
