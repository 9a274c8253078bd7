"""Signals that end a run, kept until the run can be saved."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import pytorch_lightning as pl

from utils import distributed
from utils.console import console
from utils.errors import Stopped


class SignalCallback(pl.Callback):
    """Remembers that SIGTERM, SIGINT or SIGHUP came, until a moment at which the run can be saved.

    With several processes, one that comes to any of them is meant for all. A second SIGINT leaves at once. SLURM's
    pre-emption signal is Lightning's, and is passed on to it at such a moment.
    """

    def __init__(self) -> None:
        self.received = 0
        self.requeue: Callable[[], object] | None = None
        self.to_save = False  # whether there is a step to be saved
        self.handlers = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.handlers.enter_context(self._caught())  # now, after Lightning's own: ours are the outer ones

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.handlers.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.handlers.close()

    @contextmanager
    def _caught(self) -> Iterator[None]:
        """While training: ignored signals stay ignored (`nohup`), and the former handlers come back afterwards."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        former = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        requeue = signal.getsignal(signal.SIGUSR1)
        try:
            for number in former:
                signal.signal(number, self._stop)
            if callable(requeue):
                former[signal.SIGUSR1] = requeue
                self.requeue = lambda: requeue(signal.SIGUSR1, None)
                signal.signal(signal.SIGUSR1, self._stop)
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            console.show_cursor(True)
            os._exit(128 + number)
        if number == signal.SIGHUP:  # the terminal is gone: to write to it would fail
            for stream in (sys.stdout, sys.stderr):
                if stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        self.received = number
        if not self.to_save and number != signal.SIGUSR1 and distributed.world_size() == 1:
            raise Stopped(number, " before the first step; the same command begins again")
