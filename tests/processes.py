"""Start processes that run the program. They are forked from a process that has imported it."""

import atexit
import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import main

SECONDS_TO_WAIT = 240  # longest wait for the end of a process, or for a condition

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["tests.helpers", "simsiam.commands.pretrain"])


class Started:
    """A running process, used like a `subprocess.Popen`.

    A new start of Python with torch and Lightning takes 4 to 7 s of processor time. A fork of a
    process that has imported them takes none. Arguments, environment, signal handlers and standard
    streams are set as in a new start of Python.

    Args:
        function: takes the arguments and returns the exit status. The new process finds it by its
            name, so it must be defined at the top level of a module.
        args: the arguments of `function`.
        environment: variables in addition to those of this process.
    """

    def __init__(
        self, function: Callable[[list[str]], int], args: list[str], **environment: str
    ) -> None:
        self._stdout = _make_stream_file()
        self._stderr = _make_stream_file()
        self._process = FORK_SERVER.Process(
            target=_run,
            args=(function, args, {**os.environ, **environment}, self._stdout, self._stderr),
            daemon=False,
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; minus the signal's number after a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`, as `subprocess.Popen.poll` does."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def printed(self) -> tuple[str, str]:
        """Return what the process has written to stdout and stderr so far."""
        return self._stdout.read_text(), self._stderr.read_text()

    def communicate(self, timeout: float = SECONDS_TO_WAIT) -> tuple[str, str]:
        """Wait until the process has ended, and return its stdout and stderr.

        Raises:
            TimeoutError: the process is still running after `timeout` seconds. It is killed.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.printed()}")
        return self.printed()


@cache
def _streams_folder() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def _make_stream_file() -> Path:
    _, path = tempfile.mkstemp(dir=_streams_folder())
    return Path(path)


def _run(
    function: Callable[[list[str]], int],
    args: list[str],
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    """Run `function` in the forked process, in the state of a newly started Python."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["main.py", *args]
    tempfile.tempdir = None  # `tempfile` then reads TMPDIR again, which may have changed
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    for number, handler in main.DEFAULT_SIGNAL_HANDLERS.items():
        signal.signal(number, handler)
    sys.exit(function(args))


def start(*args: str, **environment: str) -> Started:
    """Start `python main.py ARGS`."""
    return Started(main.main, list(args), **environment)


def start_pair(*args: str) -> list[Started]:
    """Start `python main.py ARGS` in two processes, with the environment that torchrun sets."""
    return [start(*args, **environment) for environment in torchrun_environments()]


def torchrun_environments() -> list[dict[str, str]]:
    """Return the environment variables that torchrun sets for each of two processes."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def run_as_nobody(args: list[str]) -> int:
    """Run main.py as a user who owns nothing. Only root can become this user."""
    # Import these modules now: after the change of user, their files can no longer be read.
    importlib.import_module("simsiam.commands.knn")
    importlib.import_module("PIL.PngImagePlugin")
    os.setresuid(65534, 65534, 65534)
    return main.main(args)


def end_all() -> None:
    """Kill the processes that a failed test has left running."""
    for process in multiprocessing.active_children():
        process.kill()


def wait_for(process: Started, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true while a process runs. It is checked every 2 ms."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        assert process.returncode is None, process.printed()
        assert time.monotonic() < deadline
        time.sleep(0.002)  # leaves the processor to the process that is waited for


def child_pids(process: Started) -> list[int]:
    """Return the process ids of the child processes."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]
