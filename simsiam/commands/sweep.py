"""Several runs by one command, each in a process of its own: one after another, or one on each GPU."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import torch

from simsiam.commands import launch
from simsiam.commands.report import report
from simsiam.config.ablations import VARIANTS
from simsiam.config.commands import PRETRAIN_DEFAULTS, Ablate, Pretrain, subprocess_args
from simsiam.config.evaluation_commands import Report
from simsiam.config.evaluation_options import ReportOptions
from simsiam.config.run_options import AcceleratorOptions
from utils.console import print_line
from utils.errors import RunError, StoppedBySignal, require
from utils.run_dir import RunDirectory
from utils.settings import flatten, from_settings

SHOWS_SOMETHING = (
    3,
    4,
)  # statuses of a collapsed or diverged run, which an ablation may be meant to show


def sweep(config: Pretrain) -> None:
    """Train once for each of `--seeds`, and write the report of all."""
    run_all(config, expand_seeds(config))


def ablate(config: Ablate) -> None:
    """Train each variant, for each seed, in a folder of its own, and compare them."""
    variants = [make_variant(config, variant) for variant in config.ablation.variants]
    run_all(config, [run for variant in variants for run in expand_seeds(variant)])


def make_variant(config: Ablate, variant: str) -> Pretrain:
    """A variant's run: all settings but its changes are the baseline's."""
    shared = {name: value for name, value in flatten(config).items() if name in PRETRAIN_DEFAULTS}
    changes = VARIANTS[variant][0]
    if "batch_size" in changes:  # the rate follows it, as in the paper
        shared["learning_rate"] = (
            config.optimizer.peak_rate * changes["batch_size"] / config.optimizer.batch_size
        )
    shared |= {"save_dir": str(config.run_dir), "exp_name": variant, "version": None}
    return from_settings(Pretrain, shared | changes)


def expand_seeds(config: Pretrain) -> list[Pretrain]:
    """The run of each of `--seeds`, in a folder `seed_N` of the run's own; without `--seeds` the run itself."""
    shared = flatten(config) | {
        "seeds": (),
        "save_dir": str(config.run_dir.parent),
        "exp_name": config.run_dir.name,
    }
    each = ({"seed": seed, "version": f"seed_{seed}"} for seed in config.run.seeds)
    return [from_settings(Pretrain, shared | own) for own in each] or [config]


def run_all(config: Pretrain, runs: Sequence[Pretrain]) -> None:
    """Train each run that is not finished yet, then write the report of all."""
    started = launch.cluster_environment()
    alone = started is None or started.world_size() == 1
    require(alone, "several runs: not by torchrun or srun; each has its own processes")
    one_by_one = config.device.accelerator == "cpu" or (config.device.devices or 1) > 1
    names = {str(run.run_dir.relative_to(config.run_dir)): run for run in runs}
    failed = run_processes(names, [] if one_by_one else list_gpus())
    trained = tuple(str(run.run_dir) for run in runs if RunDirectory(run.run_dir).rows())
    if trained and not config.run.dry_run:
        device = AcceleratorOptions(accelerator=config.device.accelerator)
        report(Report(report=ReportOptions(runs=trained), device=device))
    if failed:
        told = ", ".join(f"{name} (status {status})" for name, status in failed.items())
        raise RunError(f"not brought to their end: {told}", max(failed.values()))


def list_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name.strip() for name in named.split(",")]
        if named
        else list(map(str, range(torch.cuda.device_count())))
    )


def run_processes(runs: Mapping[str, Pretrain], gpus: list[str]) -> dict[str, int]:
    """Train the runs, one at a time on each GPU; with fewer than two, one at a time.

    Returns the statuses of those that collapsed or diverged, once all have ended. A signal to this process, and any
    other failure of a run, end all that still run.
    """
    waiting, places = list(runs.items()), gpus[: len(runs)] or [""]
    running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}  # by GPU
    failed, number = {}, int(signal.SIGTERM)
    try:
        while waiting or running:
            for gpu in [gpu for gpu in places if gpu not in running][: len(waiting)]:
                name, config = waiting.pop(0)
                print_line(f"\n{len(runs) - len(waiting)} of {len(runs)}: {name}")
                environment, silent = (
                    {**os.environ, launch.PARENT_VARIABLE: str(os.getpid())},
                    len(places) > 1,
                )
                if silent:  # the lines of several would be mixed
                    environment["CUDA_VISIBLE_DEVICES"] = gpu
                out = subprocess.DEVNULL if silent else None
                # In a session of its own: a Ctrl-C reaches it by this process alone.
                process = subprocess.Popen(
                    subprocess_args(config), env=environment, stdout=out, start_new_session=True
                )
                running[gpu] = name, process
            time.sleep(0.05)  # between two looks at all processes; a signal ends it
            for gpu, (name, process) in list(running.items()):
                if (status := process.poll()) is None:
                    continue
                del running[gpu]
                if status in SHOWS_SOMETHING:
                    failed[name] = status
                elif status > 0:
                    raise SystemExit(status)
                elif status < 0:
                    how = signal.Signals(-status).name
                    raise RunError(
                        f"{name} was ended by {how}; the same command goes on", 128 - status
                    )
                elif len(places) > 1:
                    print_line(f"done: {name}")
        return failed
    except StoppedBySignal as stopped:
        number = stopped.number
        raise SystemExit(128 + number) from None
    finally:
        for _, process in running.values():
            process.send_signal(number)
        for _, process in running.values():
            process.wait()
