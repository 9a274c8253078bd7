"""Several runs by one command, each in a process of its own: one after another, or one on each GPU."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import torch

from simsiam.commands import launch
from simsiam.commands.report import report
from simsiam.config.ablations import VARIANTS
from simsiam.config.commands import DEFAULTS, Ablate, Pretrain, Report, main_command
from simsiam.config.evaluation_options import ReportOptions
from simsiam.config.options import AcceleratorOptions
from utils.cli import flatten, from_settings, replace_settings
from utils.console import print_line
from utils.errors import RunFailure, Stopped, check
from utils.run_dir import RunDirectory

POLL_SECONDS = 0.05
SHOWS_SOMETHING = (3, 4)  # statuses of a collapsed or diverged run, which an ablation may be meant to show


def sweep(config: Pretrain) -> None:
    """Train once for each of `--seeds`, and write the report of all."""
    run_all({f"seed {run.run.seed}": run for run in expand_seeds(config)})


def ablate(config: Ablate) -> None:
    """Train each variant, for each seed, in a folder of its own, and compare them."""
    run_all(
        {name: run for variant in config.ablation.variants for name, run in expand_variant(config, variant).items()}
    )


def expand_variant(config: Ablate, variant: str) -> dict[str, Pretrain]:
    """The runs of one variant, one for each seed: all settings but its changes are the baseline's."""
    shared = {name: value for name, value in flatten(config).items() if name in DEFAULTS}
    changes = {"save_dir": str(config.run_dir), "exp_name": variant, "version": None, **VARIANTS[variant].changes}
    if "batch_size" in changes:  # the rate follows it, as in the paper
        changes["learning_rate"] = config.optimizer.peak_rate * changes["batch_size"] / config.optimizer.batch_size
    runs = expand_seeds(from_settings(Pretrain, shared | changes))
    return {f"{variant}, seed {run.run.seed}" if config.run.seeds else variant: run for run in runs}


def expand_seeds(config: Pretrain) -> list[Pretrain]:
    """The run of each of `--seeds`, in a folder `seed_N` of the run's own; without `--seeds` the run itself."""
    if not config.run.seeds:
        return [config]
    where = {"seeds": (), "save_dir": str(config.run_dir.parent), "exp_name": config.run_dir.name}
    return [replace_settings(config, **where, seed=seed, version=f"seed_{seed}") for seed in config.run.seeds]


def run_all(runs: Mapping[str, Pretrain]) -> None:
    """Train each run that is not finished yet, then write the report of all.

    Args:
        runs: by the names that are printed.

    Raises:
        SystemExit: with the status of a run that failed on a mistake, or was told to stop; it has said why.
        RunFailure: a run was killed; or, after all others are trained, some collapsed or diverged.
    """
    first = next(iter(runs.values()))
    started = launch.cluster_environment()
    alone = started is None or started.world_size() == 1
    check(alone, "several runs: not by torchrun or srun; each has its own processes")
    one_by_one = first.device.accelerator == "cpu" or (first.device.devices or 1) > 1
    failed = _Processes(runs, [] if one_by_one else list_gpus()).run()
    if first.run.dry_run:
        return
    trained = tuple(str(config.run_dir) for config in runs.values() if RunDirectory(config.run_dir).rows())
    if trained:
        device = AcceleratorOptions(accelerator=first.device.accelerator)
        report(Report(report=ReportOptions(runs=trained), device=device))
    if failed:
        names = ", ".join(f"{name} (status {status})" for name, status in failed.items())
        raise RunFailure(f"not brought to their end: {names}", max(failed.values()))


def list_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")] if named else list(map(str, range(torch.cuda.device_count())))


class _Processes:
    """The processes of the runs; forwards signals to them.

    Args:
        gpus: one run at a time on each of them; with fewer than two, one run at a time.
    """

    def __init__(self, runs: Mapping[str, Pretrain], gpus: list[str]) -> None:
        self.waiting, self.total = dict(runs), len(runs)
        self.gpus = gpus[: len(runs)] or [""]
        self.running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}  # by GPU
        self.failed: dict[str, int] = {}

    def run(self) -> dict[str, int]:
        """The statuses of the runs that collapsed or diverged, once all have ended."""
        try:
            while self.waiting or self.running:
                for gpu in self.gpus:
                    if gpu not in self.running and self.waiting:
                        self._start(gpu)
                time.sleep(POLL_SECONDS)  # between two looks at all processes; a signal ends it
                self._poll()
        except Stopped as stopped:
            self._stop(stopped.number)
            raise SystemExit(128 + stopped.number) from None
        return self.failed

    def _start(self, gpu: str) -> None:
        name = next(iter(self.waiting))
        config = self.waiting.pop(name)
        print_line(f"\n{self.total - len(self.waiting)} of {self.total}: {name}")
        environment = {**os.environ, launch.PARENT_VARIABLE: str(os.getpid())}
        together = len(self.gpus) > 1
        if together:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        out = subprocess.DEVNULL if together else None  # the lines of several runs would be mixed
        process = subprocess.Popen(  # in a session of its own: Ctrl-C is forwarded by `_stop`
            main_command(config), env=environment, stdout=out, start_new_session=True
        )
        self.running[gpu] = (name, process)

    def _poll(self) -> None:
        for gpu, (name, process) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[gpu]
            if status in SHOWS_SOMETHING:
                self.failed[name] = status
            elif status:
                self._stop(signal.SIGTERM)
                if status > 0:
                    raise SystemExit(status)
                how = signal.Signals(-status).name
                raise RunFailure(f"{name} was ended by {how}; the same command goes on", 128 - status)
            elif len(self.gpus) > 1:
                print_line(f"done: {name}")

    def _stop(self, number: int) -> None:
        """Send a signal to all runs, forward further ones, and wait for the runs to end."""

        def forward(number: int, frame: Any = None) -> None:
            for _, process in self.running.values():
                process.send_signal(number)

        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, forward)
        forward(number)
        for _, process in self.running.values():
            process.wait()
