"""A fractional factorial of the 15-minute recipe: 16 runs on single cores and a table of effects.

`python tests/benchmarks/factorial.py --root FOLDER --data-dir DIR` trains what is not finished yet;
the same command again continues after any interruption. `--table` prints the effects so far.
Flags after `--` go to main.py, for example for a rehearsal:
`--epochs 2 -- --train-images 600 --held-out-images 200 --knn-k 20`.

Six factors at two levels each in 2^(6-2) = 16 runs. The first four (A to D) take all 16
combinations; the others are products of their signs:

    E = ABC, F = BCD; defining relation I = ABCE = BCDF = ADEF; resolution IV

So a main effect is an alias of interactions of three factors, but not of another main effect or of
an interaction of two. The interactions of two factors are aliases of each other, in seven groups:

    AB = CE, AC = BE, AD = EF, AE = BC = DF, AF = DE, BD = CF, BF = CD

A is the initialisation and B the rate. Their interaction AB is an alias of CE, the interaction of
grayscale and the predictor's rate, which is not expected to exist. The eight runs with ABD = +1
come first. They alone are a design of resolution III, so that main effects can be estimated early.

Accuracy is kNN (k = 200, T = .1) of 5,000 held-out training images in a bank of the other 45,000,
after the last epoch. The test images are not used.

`--confirm BE --root ANOTHER` then trains the recipe with the higher levels of B and E and today's
recipe, with four fresh seeds each, and `--table` compares them.
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
from contextlib import suppress
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.factorial_design import describe_confirmation, describe_results
from tests.benchmarks.factorial_jobs import Job, collect_results, is_busy, make_jobs, read_results
from utils.errors import UserError
from utils.filesystem import lock_folder, write_json

EPOCHS = 20  # of a run with two views
MAX_SAVE_SECONDS = 300  # a stopped run that still saves after this time is killed
MAX_TRIES = 3  # starts of one run in one call of this script
UNFINISHED = 3  # exit status if the same command continues


class Stop:
    """True once a signal or the deadline asks this script to stop."""

    def __init__(self, deadline: float | None) -> None:
        self.reason = ""
        self.ends = float("inf")
        if deadline is not None:
            self.ends = time.monotonic() + deadline
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def __bool__(self) -> bool:
        if not self.reason and time.monotonic() > self.ends:
            self.reason = "the deadline"
        return bool(self.reason)


def start(job: Job, core: int, nice: int) -> "subprocess.Popen[bytes]":
    """Start main.py on one core with a priority, `nice`. It prints to run_NN.log."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        os.sched_setaffinity(0, {core})  # as taskset does
        os.nice(nice)
        # Linux divides the processor among sessions first, and a nice value counts only within one.
        # Each session has a nice value of its own.
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))
        # PR_SET_PDEATHSIG: the run saves and ends if this script is killed.
        libc.prctl(1, signal.SIGTERM)

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(job.root / f"{job.folder.path.name}.log", "ab") as log:
        return subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this script, which then stops its runs
            preexec_fn=prepare,
        )


def stop_runs(running: Mapping[int, tuple[Job, "subprocess.Popen[bytes]"]]) -> None:
    """Let all runs save and end. Kill those that take longer than MAX_SAVE_SECONDS."""
    for _, process in running.values():
        process.terminate()
    ends = time.monotonic() + MAX_SAVE_SECONDS
    for job, process in running.values():
        try:
            process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            limit = f"{MAX_SAVE_SECONDS} s"
            print(f"run {job.number} did not end within {limit} and was killed", flush=True)


def train(jobs: Sequence[Job], cores: Sequence[int], nice: int, stop: Stop) -> int:
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
            if tries[job.number] < MAX_TRIES:
                waiting.append(job)
            else:
                failed.append(job.number)
        for core in cores:
            # If an earlier call of this script was killed, its run may still be saving.
            free = [job for job in waiting if not is_busy(job)]
            if core in running or not free:
                continue
            job = free[0]
            waiting.remove(job)
            tries[job.number] += 1
            running[core] = (job, start(job, core, nice))
            print(f"run {job.number} starts on core {core}", flush=True)
        time.sleep(1)  # between two looks at runs that take many minutes
    if stop:
        print(f"stopped by {stop.reason}: the same command continues", flush=True)
        stop_runs(running)
        collect_results(root, jobs)
        return UNFINISHED
    if failed:
        print(f"runs {failed} failed {MAX_TRIES} times each", flush=True)
        return 1
    return 0


def check_same_experiment(root: Path, args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Write the experiment to the folder, or check that it is the one written there.

    Raises:
        UserError: the folder has the runs of another experiment.
    """
    file = root / "experiment.json"
    ours = {"epochs": args.epochs, "flags": list(extra)}
    if args.confirm is not None:
        ours["confirm"] = args.confirm
    if not file.exists():
        write_json(file, ours)
    theirs = json.loads(file.read_text())
    if theirs != ours:
        raise UserError(f"--root {root} has runs with {theirs}, not {ours}. Use another folder.")


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--data-dir", default="./data", help="folder of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="length of a run with two views")
    parser.add_argument(
        "--confirm", metavar="LETTERS", help="confirm the recipe with these factors' higher levels"
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="train these runs only")
    parser.add_argument(
        "--cores", type=int, nargs="+", help="cores to use (default: the first two)"
    )
    parser.add_argument(
        "--nice", type=int, default=19, help="priority of the runs: 19 is the lowest, 0 the usual"
    )
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="stop after this time")
    parser.add_argument("--table", action="store_true", help="print the effects so far, and exit")
    parser.add_argument("--list", action="store_true", help="print the runs, and exit")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:end]), arguments[end + 1 :]


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
        results = collect_results(args.root, jobs)
        describe = describe_results if args.confirm is None else describe_confirmation
        print(describe(results))
        return 0
    stop = Stop(args.deadline)
    if args.only:
        jobs = [job for job in jobs if job.number in args.only]
    cores = args.cores or sorted(os.sched_getaffinity(0))[:2]
    try:
        with lock_folder(args.root, f"--root {args.root}: this script is already running there"):
            check_same_experiment(args.root, args, extra)
            collect_results(args.root, jobs)
            return train(jobs, cores, args.nice, stop)
    except UserError as error:
        print(f"factorial.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
