"""Signals that end a run, kept until the run can be saved."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from utils import distributed
from utils.console import console
from utils.errors import StoppedBySignal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REQUEUE = signal.SIGUSR1  # SLURM's, before it takes the machine away


class SignalCallback(pl.Callback):
    """Notes SIGTERM, SIGINT or SIGHUP in `received`, for the checkpoint callback to save and end the run.

    A second SIGINT ends the process at once. With several processes, a signal to any of them ends all. After an
    exception, which ends the run anyway, signals are still only noted. Lightning's own handler of SIGUSR1, if SLURM
    runs the job, becomes `requeue`, to be called between two steps.
    """

    def __init__(self) -> None:
        self.received = 0
        self.requeue: Callable[[], object] | None = None
        self.to_save = False  # whether training has begun, so that there is something to save
        self.former: dict[int, Any] = {}  # signal -> the handler before

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers, over Lightning's. An ignored signal stays ignored (`nohup`)."""
        self.former = {
            n: signal.getsignal(n) for n in STOPPING if signal.getsignal(n) is not signal.SIG_IGN
        }
        slurm = signal.getsignal(REQUEUE)
        if callable(slurm):
            self.former[REQUEUE] = slurm
            self.requeue = lambda: slurm(REQUEUE, None)
        for number in self.former:
            signal.signal(number, self._receive)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self.former:
            signal.signal(*self.former.popitem())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            console.show_cursor(True)
            os._exit(128 + number)
        if number == signal.SIGHUP:  # the terminal is gone: writing to it would fail
            for stream in (sys.stdout, sys.stderr):
                if stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        self.received = number
        if not self.to_save and number != REQUEUE and distributed.world_size() == 1:
            raise StoppedBySignal(number, " before the first step; the same command begins again")
