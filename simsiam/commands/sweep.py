"""Several runs by one command: one for each of `--seeds`, or one for each variant of an ablation.

Each run has a process of its own. If there are several GPUs, each GPU trains one run at a time.
Otherwise the runs train one after another.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import IO

import torch

from simsiam.commands import launch
from simsiam.commands.report import report
from simsiam.config.ablations import VARIANTS
from simsiam.config.commands import (
    PRETRAIN_DEFAULTS,
    Ablate,
    Pretrain,
    data_may_be_small,
    subprocess_args,
)
from simsiam.config.evaluation_commands import Report
from simsiam.config.evaluation_options import ReportOptions
from simsiam.config.run_options import AcceleratorOptions
from simsiam.config.run_state import check_folder
from utils.console import print_line
from utils.errors import (
    COLLAPSED_STATUS,
    NOT_FINITE_STATUS,
    RunError,
    StoppedBySignal,
    require,
)
from utils.run_dir import RunDirectory, seed_folder
from utils.settings import flatten, from_settings

# An ablation may be meant to show that a run collapses or diverges. So after one of these exit
# statuses, the other runs continue.
INFORMATIVE_STATUSES = (COLLAPSED_STATUS, NOT_FINITE_STATUS)
POLL_SECONDS = 0.05  # between two checks whether a run has ended

# A slot trains one run at a time. It is the name of the GPU to train on. If it is None, the run
# chooses its device.
Slot = str | None


def sweep(config: Pretrain) -> None:
    """Train a run for each of `--seeds`, and write a report about all of them."""
    run_all(config, expand_seeds(config))


def ablate(config: Ablate) -> None:
    """Train each variant, with each of `--seeds`, and write a report that compares them."""
    require(
        config.run.ckpt_dir is None,
        "--ckpt-dir resumes one run, and its settings fit one variant only. Drop the flag.",
    )
    runs: list[Pretrain] = []
    for variant in config.ablation.variants:
        runs += expand_seeds(make_variant(config, variant))
    run_all(config, runs)


def make_variant(config: Ablate, variant: str) -> Pretrain:
    """Return the run of a variant: the settings of `config` with the changes of the variant.

    Raises:
        UserError: the variant is refused, or its learning rate is proportional to a batch size that
            will be known only when the images are.
    """
    settings = {name: value for name, value in flatten(config).items() if name in PRETRAIN_DEFAULTS}
    settings.update(save_dir=str(config.run_dir), exp_name=variant, version=None)
    changes = VARIANTS[variant].changes
    if "batch_size" in changes:
        # The peak learning rate is proportional to the batch size, as in the paper.
        optimizer = config.optimizer
        rate = optimizer.learning_rate
        is_known = optimizer.batch_size is not None or not data_may_be_small(settings)
        require(
            is_known or rate == "auto",
            f"--variants {variant}: its learning rate follows the batch size, but --learning-rate "
            f"{rate} is for a batch that will be fitted to the images. Give its --batch-size too, "
            "or --learning-rate auto.",
        )
        batch_size = changes["batch_size"]
        factor = batch_size / optimizer.images_per_step
        settings["learning_rate"] = optimizer.peak_rate * factor
        del settings["base_learning_rate"]  # it goes with the rate `auto` alone
    settings.update(changes)
    return from_settings(Pretrain, settings)


def expand_seeds(config: Pretrain) -> list[Pretrain]:
    """Return a run for each of `--seeds`, or without `--seeds` the run itself.

    The run of seed N has the folder `seed_N` inside the folder of `config`.
    """
    if not config.run.seeds:
        return [config]
    settings = flatten(config)
    settings.update(seeds=(), save_dir=str(config.run_dir.parent), exp_name=config.run_dir.name)
    runs: list[Pretrain] = []
    for seed in config.run.seeds:
        settings.update(seed=seed, version=seed_folder(seed))
        runs.append(from_settings(Pretrain, settings))
    return runs


def run_all(config: Pretrain, runs: Sequence[Pretrain]) -> None:
    """Train each run that is not finished yet, then write a report about all runs.

    Raises:
        UserError: if torchrun or srun started this command in several processes, or the folder of
            a run cannot be used. No run is started then.
        RunError: if a run collapsed or diverged; raised after the report is written.
        SystemExit: if a run failed otherwise, with the status of the run.
    """
    cluster = launch.cluster_environment()
    is_single_process = cluster is None or cluster.world_size() == 1
    require(
        is_single_process,
        "this command starts a process for each of its runs. Call it without torchrun or srun.",
    )

    for run in runs:  # otherwise a run would fail only after those before it are trained
        check_folder(run, RunDirectory(run.run_dir))

    run_by_name = {str(run.run_dir.relative_to(config.run_dir)): run for run in runs}
    failed = run_processes(run_by_name, choose_slots(config, len(runs)))

    # Runs that have not finished an epoch have nothing to report.
    trained = tuple(str(run.run_dir) for run in runs if RunDirectory(run.run_dir).rows())
    if trained and not config.run.dry_run:
        device = AcceleratorOptions(accelerator=config.device.accelerator)
        report(Report(report=ReportOptions(runs=trained), device=device))
    if failed:
        statuses = ", ".join(f"{name} (status {status})" for name, status in failed.items())
        raise RunError(f"runs that collapsed or diverged: {statuses}", max(failed.values()))


def choose_slots(config: Pretrain, num_runs: int) -> list[Slot]:
    """Return a slot for each GPU, or [None] if only one run may train at a time."""
    uses_cpu = config.device.accelerator == "cpu"
    each_run_uses_several_gpus = (config.device.devices or 1) > 1
    if uses_cpu or each_run_uses_several_gpus:
        return [None]
    gpus = list_gpus()[:num_runs]
    if len(gpus) < 2:
        return [None]
    return [*gpus]


def list_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores what follows the first entry that is no GPU.
        return list(takewhile(lambda name: name != "" and not name.startswith("-"), names))
    return [str(index) for index in range(torch.cuda.device_count())]


def run_processes(runs: Mapping[str, Pretrain], slots: Sequence[Slot]) -> dict[str, int]:
    """Train the runs, each in a process of its own, and wait until all have ended.

    A signal to this process ends all runs that are still training. So does a run that fails, unless
    it has collapsed or diverged.

    Args:
        runs: by name, in the order in which they start.
        slots: from `choose_slots`.

    Returns:
        The exit statuses, by name, of the runs that collapsed or diverged.

    Raises:
        SystemExit: with the status of a run that failed, or after a signal to this process.
        RunError: if a signal ended a run.
    """
    waiting = list(runs.items())
    is_parallel = len(slots) > 1
    running: dict[Slot, tuple[str, subprocess.Popen[bytes]]] = {}  # name and process, by slot
    failed: dict[str, int] = {}
    stop_signal = int(signal.SIGTERM)  # for the other runs when one has failed
    try:
        while waiting or running:
            for slot in slots:
                if slot not in running and waiting:
                    name, config = waiting.pop(0)
                    print_line(f"\n{len(runs) - len(waiting)} of {len(runs)}: {name}")
                    running[slot] = (name, start_process(config, slot))

            time.sleep(POLL_SECONDS)  # the handler of a signal raises StoppedBySignal here

            for slot, (name, process) in list(running.items()):
                status = process.poll()
                if status is None:  # the run is still training
                    continue
                del running[slot]
                if status in INFORMATIVE_STATUSES:
                    failed[name] = status
                elif status > 0:
                    raise SystemExit(status)  # the run has printed the reason
                elif status < 0:
                    signal_name = signal.Signals(-status).name
                    command = runs[name].run.resume_command
                    advice = f"{command} resumes it and trains the runs that are left"
                    raise RunError(f"{name} was ended by {signal_name}; {advice}", 128 - status)
                elif is_parallel:  # a run that trains alone prints its own messages
                    print_line(f"done: {name}")
        return failed
    except StoppedBySignal as stopped:
        # The runs get the same signal below, and each prints where it stopped: no message here.
        stop_signal = stopped.number
        raise SystemExit(128 + stopped.number) from None
    finally:
        # If all runs have ended, `running` is empty. Otherwise the runs save before they end.
        for _, process in running.values():
            process.send_signal(stop_signal)
        for _, process in running.values():
            process.wait()


def start_process(
    config: Pretrain, slot: Slot, output: IO[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the process of a run, which may use no other GPU than that of its slot.

    Args:
        output: file for what the run prints, errors included; None for the terminal.
    """
    environment = os.environ.copy()
    environment[launch.PARENT_VARIABLE] = str(os.getpid())  # the run ends if this process dies
    stdout: IO[str] | int | None = None  # the stdout of this process
    if slot is not None:  # other runs train at the same time
        environment["CUDA_VISIBLE_DEVICES"] = slot
        # The progress of several runs would be mixed up. Errors still appear: they go to stderr.
        stdout = subprocess.DEVNULL
    stderr = None
    if output is not None:
        stdout = output
        stderr = subprocess.STDOUT
    return subprocess.Popen(
        subprocess_args(config),
        env=environment,
        stdout=stdout,
        stderr=stderr,
        # A Ctrl-C in the terminal reaches only this process, which passes it on to each run once.
        start_new_session=True,
    )
