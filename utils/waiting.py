"""Waiting for C++ code in such a way that signals still work."""

import threading
from collections.abc import Callable
from typing import TypeVar

from utils.console import print_line
from utils.process import is_main_thread

Result = TypeVar("Result")
NOTICE_SECONDS = 15  # after which a notice says what the process waits for


def call_interruptibly(function: Callable[[], Result], notice: str | None = None) -> Result:
    """Call `function` in a thread and return its result; signal handlers run while it waits.

    Python runs signal handlers between two bytecodes of the main thread. If the main thread were in
    a blocking C++ function, such as torch's rendezvous, SIGTERM and Ctrl-C would have no effect.
    If a handler raises, the started thread stays behind and ends with the process.

    Args:
        function: the blocking call.
        notice: a line to print if the call takes longer than NOTICE_SECONDS.

    Raises:
        BaseException: whatever `function` raises.
    """
    # Signal handlers only run in the main thread, so another thread can simply wait.
    if not is_main_thread():
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
        thread.join(NOTICE_SECONDS)
        if thread.is_alive():
            print_line(notice)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
