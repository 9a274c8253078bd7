"""Runs of the program on a terminal, and all that they drew on it."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios

import main
from tests.helpers import Started
from utils.console import console


def on_a_terminal(args: list[str]) -> int:
    """main.py whose stdin and stdout are the terminal ARGS[0]."""
    terminal = os.open(args[0], os.O_RDWR)
    os.dup2(terminal, 0)
    os.dup2(terminal, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    # The process that this one was forked from has asked what rich writes to, and how wide it is.
    console.is_interactive = True
    console.width = os.get_terminal_size(terminal).columns
    return main.main(args[1:])


def run_on_a_terminal(columns: int, *args: str, **environment: str) -> tuple[int, bytes, str]:
    """Run `main.py ARGS` on a terminal of so many columns.

    Returns:
        Its exit status, what it wrote to the terminal, and its stderr.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {"TERM": "xterm", "COLUMNS": str(columns), **environment}
    process = Started(on_a_terminal, [os.ttyname(theirs), *args], **environment)
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
    _, err = process.communicate()
    os.close(theirs)
    os.close(ours)
    assert process.returncode is not None
    return process.returncode, shown, err
