"""Runs of the program on a terminal."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios

import main
from tests.processes import Started
from utils.console import console


def on_a_terminal(args: list[str]) -> int:
    """Run main.py with stdin and stdout on the terminal ARGS[0], and with the other arguments."""
    terminal = os.open(args[0], os.O_RDWR)
    os.dup2(terminal, 0)
    os.dup2(terminal, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    # rich looked at the standard output of the process that this one was forked from.
    console.is_interactive = True
    console.width = os.get_terminal_size(terminal).columns
    return main.main(args[1:])


def run_on_a_terminal(columns: int, *args: str, **environment: str) -> tuple[int, bytes, str]:
    """Run `main.py ARGS` on a terminal with this number of columns.

    Returns:
        The exit status, the bytes that the program wrote to the terminal, and its stderr.
    """
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    environment = {"TERM": "xterm", "COLUMNS": str(columns), **environment}
    process = Started(on_a_terminal, [os.ttyname(theirs), *args], **environment)
    output = b""
    while process.poll() is None or is_readable(ours, seconds=0):
        if is_readable(ours, seconds=0.1):
            output += os.read(ours, 65536)
    _, err = process.communicate()
    os.close(theirs)
    os.close(ours)
    assert process.returncode is not None
    return process.returncode, output, err


def is_readable(descriptor: int, seconds: float) -> bool:
    """Wait at most `seconds` for bytes to read, and return whether there are any."""
    readable, _, _ = select.select([descriptor], [], [], seconds)
    return bool(readable)
