"""Waiting inside C++ code in such a way that signals still work."""

import threading
from collections.abc import Callable
from typing import TypeVar

from utils.console import print_line

Result = TypeVar("Result")


def call_interruptibly(function: Callable[[], Result], notice: str | None = None, notice_seconds: float = 15) -> Result:
    """Call `function` in a thread and return its result, so that signal handlers run while it blocks.

    Python runs signal handlers between two bytecodes of the main thread. While the main thread is inside a blocking
    function of C++, such as torch's rendezvous, SIGTERM and Ctrl-C would have no effect. If a handler raises, the
    thread is left behind: it must not hold anything that the end of the process does not release.

    Args:
        function: the blocking call.
        notice: a line to print if the call takes longer than `notice_seconds`.
    """
    if threading.current_thread() is not threading.main_thread():  # signal handlers run elsewhere anyway
        return function()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  (raised again below, in the main thread)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if notice is not None:
        thread.join(notice_seconds)
        if thread.is_alive():
            print_line(notice)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
