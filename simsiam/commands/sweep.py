"""Several runs by one command: each in a process of its own, one after another or one for each GPU."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simsiam.config.commands import DEFAULTS, Pretrain, Report
from simsiam.config.evaluation_options import ReportOptions
from simsiam.config.options import AcceleratorOptions
from utils import distributed
from utils.cli import flatten, replace_settings, to_flags
from utils.console import print_line
from utils.errors import RunFailure, Stopped, check
from utils.run_dir import RunDirectory

MAIN = Path(__file__).parents[2] / "main.py"


def expand_seeds(config: Pretrain) -> list[Pretrain]:
    """The run of each of `--seeds`, in a folder `seed_N` below the run's own; the run itself where there are none."""
    where = config.run_dir
    if not config.run.seeds:
        return [config]
    alone = replace_settings(config, seeds=(), save_dir=str(where.parent), exp_name=where.name)
    return [replace_settings(alone, seed=seed, version=f"seed_{seed}") for seed in config.run.seeds]


def run_all(runs: Mapping[str, Pretrain]) -> None:
    """Train each run that is not finished yet, then write the report of all.

    Args:
        runs: by what is said of them.

    Raises:
        SystemExit: with the status of a run that a person has to mend, or that was told to stop; it has said why.
        RunFailure: once all others are trained, where one came to nothing; or one was killed.
    """
    first = next(iter(runs.values()))
    started = distributed.cluster_environment()
    check(
        started is None or started.world_size() == 1,
        "several runs: not by torchrun or srun; each has its own processes",
    )
    alone = first.device.accelerator == "cpu" or (first.device.devices or 1) > 1
    failed = _Processes(runs, [] if alone else gpus()).run()
    if first.run.dry_run:
        return
    trained = tuple(str(config.run_dir) for config in runs.values() if RunDirectory(config.run_dir).rows())
    if trained:
        from simsiam.commands.report import report

        device = AcceleratorOptions(accelerator=first.device.accelerator)
        report(Report(report=ReportOptions(runs=trained), device=device))
    if failed:
        words = ", ".join(f"{name} (status {status})" for name, status in failed.items())
        raise RunFailure(f"not brought to their end: {words}", max(failed.values()))


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")] if named else list(map(str, range(torch.cuda.device_count())))


class _Processes:
    """The processes of the runs; what this one is told, they are told.

    Args:
        places: GPUs, for a run each at a time; with less than two of them, one run at a time.
    """

    def __init__(self, runs: Mapping[str, Pretrain], places: list[str]) -> None:
        self.waiting = dict(runs)
        self.of, self.places = len(runs), places[: len(runs)] or [""]
        self.running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}  # by place
        self.failed: dict[str, int] = {}

    def run(self) -> dict[str, int]:
        """The statuses of those that collapsed or diverged, once all have ended."""
        try:
            while self.waiting or self.running:
                for place in self.places:
                    if place not in self.running and self.waiting:
                        self._start(place)
                self._look()
        except Stopped as stopped:
            self._stop(stopped.number)
            raise SystemExit(128 + stopped.number) from None
        return self.failed

    def _start(self, place: str) -> None:
        name = next(iter(self.waiting))
        config = self.waiting.pop(name)
        print_line(f"\n{self.of - len(self.waiting)} of {self.of}: {name}")
        told = {**os.environ, distributed.PARENT_VARIABLE: str(os.getpid())}
        several = len(self.places) > 1
        if several:
            told["CUDA_VISIBLE_DEVICES"] = place
        command = [sys.executable, str(MAIN), *flags(config)]
        quiet = subprocess.DEVNULL if several else None  # of several at once, the lines would be mixed
        process = subprocess.Popen(command, env=told, stdout=quiet, start_new_session=True)  # Ctrl-C is passed on by us
        self.running[place] = (name, process)

    def _look(self) -> None:
        time.sleep(0.05)  # between two looks at all of them; a signal ends it at once
        for place, (name, process) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[place]
            if status in (3, 4):  # what an ablation may be meant to show
                self.failed[name] = status
            elif status:
                self._stop(signal.SIGTERM)
                if status > 0:
                    raise SystemExit(status)
                how = signal.Signals(-status).name
                raise RunFailure(f"{name} was ended by {how}; the same command goes on", 128 - status)
            elif len(self.places) > 1:
                print_line(f"done: {name}")

    def _stop(self, number: int) -> None:
        """Pass signals on from now, this one first, and wait."""

        def pass_on(number: int, frame: Any = None) -> None:
            for _, process in self.running.values():
                process.send_signal(number)

        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, pass_on)
        pass_on(number)
        for _, process in self.running.values():
            process.wait()


def flags(config: Pretrain) -> list[str]:
    """The flags of a run; the settings of `--config` are among them."""
    given = {name: value for name, value in flatten(config).items() if value != DEFAULTS[name] and name != "config"}
    return to_flags(given)
