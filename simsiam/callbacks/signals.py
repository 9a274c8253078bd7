"""Signals that end a run, delayed until the run can be saved."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from simsiam.config.run_options import SAME_COMMAND
from utils import distributed
from utils.console import console
from utils.errors import StoppedBySignal
from utils.process import is_interactive, is_main_thread

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REQUEUE_SIGNAL = signal.SIGUSR1  # SLURM sends it before it takes the machine away


class SignalCallback(pl.Callback):
    """Note a signal in `received`; `CheckpointCallback` then saves the run and ends it.

    - A second SIGINT (Ctrl-C) ends the process at once. At a Python prompt or in a notebook, it
      only ends the run, by an exception.
    - With several processes, a signal to any of them ends all.
    - After an exception, which ends the run anyway, signals are still only noted.
    - In a thread, where Python allows no handlers, signals keep the handlers that they have.
    - In a SLURM job, Lightning has installed a handler of SIGUSR1. It becomes `requeue`, which must
      be called between two steps.

    Args:
        resume_command: what a message calls the command that resumes the run.
    """

    def __init__(self, resume_command: str = SAME_COMMAND) -> None:
        self.resume_command = resume_command
        self.received = 0  # number of the latest signal; 0 for none
        self.requeue: Callable[[], object] | None = None
        # Whether training has begun: then a run must be saved before a signal ends it.
        self.saves_before_end = False
        self._previous_handlers: dict[int, Any] = {}  # signal -> its handler before training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers in place of Lightning's."""
        if not is_main_thread():
            return
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, which must stay so
                self._previous_handlers[number] = handler

        requeue_handler = signal.getsignal(REQUEUE_SIGNAL)
        if callable(requeue_handler):
            self._previous_handlers[REQUEUE_SIGNAL] = requeue_handler
            self.requeue = lambda: requeue_handler(REQUEUE_SIGNAL, None)

        for number in self._previous_handlers:
            signal.signal(number, self._receive)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            if is_interactive():
                raise StoppedBySignal(
                    number, f" at once; {self.resume_command} resumes from the last checkpoint"
                )
            if console.draws_bars:
                console.show_cursor(True)  # the progress bar has hidden it
            os._exit(128 + number)
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would fail
            for stream in (sys.stdout, sys.stderr):
                if stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        self.received = number
        # Before training there is nothing to save, so a single process can end at once. One of
        # several processes must not end alone, because the others would wait for it: all of them
        # end after the first step.
        is_alone = distributed.world_size() == 1
        if not self.saves_before_end and is_alone and number != REQUEUE_SIGNAL:
            raise StoppedBySignal(
                number, " before the first step; the same command starts the run again"
            )
