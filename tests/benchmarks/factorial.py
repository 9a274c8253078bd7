"""A fractional factorial of the 15-minute recipe: 16 runs on single cores and a table of effects.

`python tests/benchmarks/factorial.py --root FOLDER --data-dir DIR` trains what is not finished yet;
the same command again continues after any interruption. `--table` prints the effects so far.
Flags after `--` go to main.py, for example for a rehearsal:
`--epochs 2 -- --train-images 600 --held-out-images 200 --knn-k 20`.

Six factors at two levels each in 2^(6-2) = 16 runs. The first four (A to D) take all 16
combinations; the others are products of their signs:

    E = ABC, F = BCD; defining relation I = ABCE = BCDF = ADEF; resolution IV

So no main effect is an alias of another one or of an interaction of two factors (only of three).
The interactions of two factors are aliases of each other, in seven groups:

    AB = CE, AC = BE, AD = EF, AE = BC = DF, AF = DE, BD = CF, BF = CD

A is the initialisation and B the rate: their interaction (AB) shares its contrast with that of
grayscale and the predictor's rate (CE), which nobody expects to interact. The runs with ABD = +1
come first: these eight alone are a design of resolution III, so that main effects show early.

Accuracy is kNN (k = 200, T = .1) of 5,000 held-out training images in a bank of the other 45,000,
after the last epoch. The test images are not used.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.factorial_design import Levels, describe_results, flags_of, make_design
from utils.errors import UserError
from utils.filesystem import is_locked, lock_folder, write_json, write_text
from utils.run_dir import RunDirectory

REPOSITORY = Path(__file__).resolve().parents[2]
EPOCHS = 20  # of a run with two views
SEED = 100  # run N has seed SEED + N; seeds 0 to 2 were used to choose the recipe
SAVE_SECONDS = 300  # that a stopped run has for saving, before it is killed
TRIES = 3  # starts of one run in one call
UNFINISHED = 3  # exit status: the same command continues


@dataclass(frozen=True)
class Job:
    """One run of the design."""

    number: int  # from 1
    levels: Levels
    root: Path
    flags: tuple[str, ...]

    @property
    def folder(self) -> RunDirectory:
        return RunDirectory(self.root / f"run_{self.number:02d}")

    @property
    def command(self) -> list[str]:
        place = ["--save-dir", str(self.root), "--exp-name", self.folder.path.name]
        return [sys.executable, str(REPOSITORY / "main.py"), *self.flags, *place]


def make_jobs(args: argparse.Namespace, extra: Sequence[str]) -> list[Job]:
    jobs = []
    for number, levels in enumerate(make_design(), 1):
        flags = [*flags_of(levels, args.epochs), "--seed", str(SEED + number)]
        flags += ["--data-dir", args.data_dir, "--held-out-images", "5000", *extra]
        jobs.append(Job(number, levels, args.root, tuple(flags)))
    return jobs


# ---------------------------------------------------------------- results


def read_results(root: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of results.jsonl by the number of the run."""
    file = root / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["run"]: row for row in rows}


def collect_results(root: Path, jobs: Sequence[Job]) -> dict[int, dict[str, Any]]:
    """Add each finished run to results.jsonl. A line stays when the folder of its run is gone."""
    results = read_results(root)
    before = len(results)
    for job in jobs:
        if job.number not in results and job.folder.summary.exists():
            results[job.number] = describe_result(job)
    results = dict(sorted(results.items()))
    if len(results) > before:
        write_text(
            root / "results.jsonl", "".join(json.dumps(row) + "\n" for row in results.values())
        )
    return results


def describe_result(job: Job) -> dict[str, Any]:
    """Return the line of results.jsonl of a finished run."""
    run = job.folder
    summary = json.loads(run.summary.read_text())
    config = yaml.safe_load(run.config.read_text())
    last = run.rows()[-1]
    return {
        "run": job.number,
        "levels": dict(job.levels),
        "seed": config["settings"]["seed"],
        **{name: summary[name] for name in ("epochs", "step", "kNN_accuracy", "kNN_untrained")},
        **{name: summary[name] for name in ("train_loss", "z_std", "seconds")},
        "rankme": last.get("rankme"),
        "settings": config["settings"],
        "resolved": config["resolved"],
        "versions": config["versions"],
    }


# ---------------------------------------------------------------- running


class Stop:
    """Whether a signal or the deadline asks to stop."""

    def __init__(self, deadline: float | None) -> None:
        self.reason = ""
        self.ends = float("inf") if deadline is None else time.monotonic() + deadline
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        if not self.reason and time.monotonic() > self.ends:
            self.reason = "the deadline"
        return bool(self.reason)


def start(job: Job, core: int) -> "subprocess.Popen[bytes]":
    """Start main.py on one core, with the lowest priority, printing to run_NN.log."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        os.sched_setaffinity(0, {core})  # as taskset does
        os.nice(19)
        # Linux shares the processor by session, so among sessions a nice value counts for little.
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: when this script is killed, save and end

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(job.root / f"{job.folder.path.name}.log", "ab") as log:
        return subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this script alone, which stops its runs
            preexec_fn=prepare,
        )


def stop_runs(running: Mapping[int, tuple[Job, "subprocess.Popen[bytes]"]]) -> None:
    """Have all runs save and end."""
    for _, process in running.values():
        process.terminate()
    ends = time.monotonic() + SAVE_SECONDS
    for job, process in running.values():
        try:
            process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            print(
                f"run {job.number} did not end within {SAVE_SECONDS} s and was killed", flush=True
            )


def train(jobs: Sequence[Job], cores: Sequence[int], stop: Stop) -> int:
    """Train the unfinished jobs, one on each core; return the exit status."""
    root = jobs[0].root
    results = read_results(root)
    waiting = [job for job in jobs if job.number not in results]
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}  # by core
    tries = dict.fromkeys((job.number for job in jobs), 0)
    failed: list[int] = []
    while (waiting or running) and not stop:
        for core, (job, process) in list(running.items()):
            if process.poll() is None:
                continue
            del running[core]
            if job.number in collect_results(root, jobs):
                row = read_results(root)[job.number]
                print(f"run {job.number} is finished: kNN {row['kNN_accuracy']:.2f} %", flush=True)
                continue
            log = root / f"{job.folder.path.name}.log"
            print(f"run {job.number} ended with status {process.returncode}: {log}", flush=True)
            if tries[job.number] < TRIES:
                waiting.append(job)
            else:
                failed.append(job.number)
        for core in cores:
            # A run whose process has outlived a killed script is still saving.
            free = [job for job in waiting if not is_busy(job)]
            if core in running or not free:
                continue
            job = free[0]
            waiting.remove(job)
            tries[job.number] += 1
            running[core] = (job, start(job, core))
            print(f"run {job.number} starts on core {core}", flush=True)
        time.sleep(1)
    if stop:
        print(f"stopped by {stop.reason}: the same command continues", flush=True)
        stop_runs(running)
        collect_results(root, jobs)
        return UNFINISHED
    if failed:
        print(f"runs {failed} failed {TRIES} times each", flush=True)
        return 1
    return 0


def is_busy(job: Job) -> bool:
    path = job.folder.path
    return path.exists() and is_locked(path)


def check_same_experiment(root: Path, args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Raise UserError if the folder has the runs of another experiment; else note this one."""
    file = root / "experiment.json"
    ours = {"epochs": args.epochs, "flags": list(extra)}
    if not file.exists():
        write_json(file, ours)
    theirs = json.loads(file.read_text())
    if theirs != ours:
        raise UserError(f"--root {root}: has runs with {theirs}, not {ours}. Use another folder")


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--data-dir", default="./data", help="folder of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="length of a run with two views")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="train these runs only")
    parser.add_argument(
        "--cores", type=int, nargs="+", help="cores to use (default: the first two)"
    )
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="stop after this time")
    parser.add_argument("--table", action="store_true", help="print the effects so far, and exit")
    parser.add_argument("--list", action="store_true", help="print the runs, and exit")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:end]), given[end + 1 :]


def main() -> int:
    args, extra = parse_args()
    args.root = args.root.expanduser().absolute()
    jobs = make_jobs(args, extra)
    if args.list:
        for job in jobs:
            print(f"{job.number:2}  {' '.join(job.flags)}")
        return 0
    args.root.mkdir(parents=True, exist_ok=True)
    if args.table:
        print(describe_results(collect_results(args.root, jobs)))
        return 0
    stop = Stop(args.deadline)
    if args.only:
        jobs = [job for job in jobs if job.number in args.only]
    cores = args.cores or sorted(os.sched_getaffinity(0))[:2]
    try:
        with lock_folder(args.root, f"--root {args.root}: this script is already running there"):
            check_same_experiment(args.root, args, extra)
            collect_results(args.root, jobs)
            return train(jobs, cores, stop)
    except UserError as error:
        print(f"factorial.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
