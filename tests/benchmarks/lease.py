"""Train and evaluate one run on a GPU that is there for a few minutes, and bring its files home.

Run `bash tests/benchmarks/h200.sh lease1 [--data-dir DIR] [other flags of main.py]`. What matters
most comes first: the backbone is saved before anything is evaluated, and kNN is measured before a
linear classifier is trained. The number of epochs is chosen so that the cosine ends in time.

The results are at most eight files in $OUT, each of at most 15 MiB:

  log.txt             everything that was printed
  lease.json          the measured steps, the plan, and the seconds of each phase
  metrics.jsonl       the rows of the run, copied every few seconds
  figures.tar.gz      the run's settings, summaries, curves, and the results of its evaluation
  backbone.sha256     the checksum of the backbone, and the command that joins its parts
  backbone.safetensors.part0, part1, ...   the backbone (fp32)

A SIGTERM ends the lease early, with the same files. If the run is not finished, the backbone is
that of its last checkpoint.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.lease_phases import KILL_TRAINING_AFTER, Lease, Stopped

STEPS_SECONDS = 75  # limit of the measurement of steps
EVALUATION_SECONDS = 55  # for the saving of the backbone, kNN and a linear classifier
KNN_SECONDS = 30  # of these, without the linear classifier: it is given up for a late run
HOME_SECONDS = 5  # for the last copy of the results
# An epoch takes a little longer than its steps: kNN of some epochs, checkpoints, the loop.
EPOCH_TO_STEPS_RATIO = 1.04
# If no step can be measured: 200 epochs in 470 s, and the time of a start with compilation.
FALLBACK_EPOCH_SECONDS = 2.35
FALLBACK_STARTUP_SECONDS = 45.0
RUN_TO_WARMUP_RATIO = 10  # a warm-up takes at most a tenth of the run

# What each lease trains, and which steps it measures. The first step is that of the run.
RUN_FLAGS = "--batch-size 128 --learning-rate 0.06 --knn-every 10 --pictures-every 0"
RUNS = {
    "lease1": f"--views 4 {RUN_FLAGS} --seed 0",
    "lease2": f"--views 2 --heavy-views 2 {RUN_FLAGS} --seed 0",
    "lease3": f"--views 4 {RUN_FLAGS} --seed 1",
}
OTHER_STEPS = {"lease1": ["--views 2 --batch-size 512"], "lease2": [], "lease3": []}


def choose_epochs(
    seconds_left: float, reserve: float, startup: float, epoch_seconds: float, most: int
) -> int:
    """Return the largest number of epochs that end in time.

    Args:
        seconds_left: seconds until the end of the lease.
        reserve: seconds to leave for what follows the run.
        startup: seconds before the first epoch: imports, images and compilation.
        epoch_seconds: predicted seconds of an epoch.
        most: largest number to return.

    Returns:
        A number from 0 to `most`. With 0 there is no time for an epoch.
    """
    seconds = seconds_left - reserve - startup
    return max(0, min(most, math.floor(seconds / epoch_seconds)))


def measure_steps(lease: Lease, flags: list[str]) -> None:
    """Measure a step with each of these flags, and note the results."""
    results = lease.work / "steps.jsonl"
    results.unlink(missing_ok=True)
    reserve = max(lease.left() - STEPS_SECONDS, 0)
    started = ["--started", str(time.time()), "--output", str(results)]
    # The flags begin with dashes, so they come after a "--".
    args = ["tests/benchmarks/pretrain_step.py", *started, "--", *flags]
    lease.run_phase("steps", args, reserve)
    if results.exists():
        lines = results.read_text().splitlines()
        lease.facts["steps"] = [json.loads(line) for line in lines]


def plan_epochs(lease: Lease, most: int) -> int:
    """Choose the number of epochs from the measured step, print and note it."""
    epoch_seconds = FALLBACK_EPOCH_SECONDS
    startup = FALLBACK_STARTUP_SECONDS
    if lease.facts["steps"]:
        step = lease.facts["steps"][0]
        steps_seconds = step["step_seconds"] * step["steps_per_epoch"]
        epoch_seconds = EPOCH_TO_STEPS_RATIO * steps_seconds
        startup = step["startup_seconds"]
    left = lease.left()
    epochs = choose_epochs(left, EVALUATION_SECONDS, startup, epoch_seconds, most)
    lease.say(
        f"---- plan: {left:.0f} s left, {EVALUATION_SECONDS} s for the evaluation, "
        f"{startup:.0f} s for the start, {epoch_seconds:.3f} s an epoch: {epochs} epochs "
        f"(at most {most}) in {epochs * epoch_seconds:.0f} s"
    )
    lease.facts["plan"] = {
        "seconds_left": left,
        "startup_seconds": startup,
        "epoch_seconds": epoch_seconds,
        "epochs": epochs,
    }
    lease.save_figures()
    return epochs


def evaluate(lease: Lease) -> None:
    """Measure the run, the most important result first."""
    run = str(lease.run.path)
    lease.run_phase("knn", ["main.py", "knn", "--checkpoint", run], HOME_SECONDS)
    lease.run_phase("linear", ["main.py", "linear", "--checkpoint", run], HOME_SECONDS)
    if lease.run.summary.exists():
        lease.run_phase("race", ["tests/benchmarks/race.py", run], HOME_SECONDS)


def train_and_evaluate(lease: Lease, args: argparse.Namespace, flags: list[str]) -> None:
    own_flags = RUNS[args.lease].split()
    if "CIFAR10_DIR" in os.environ:
        own_flags += ["--data-dir", os.environ["CIFAR10_DIR"]]
    run_flags = [*own_flags, *flags]
    steps = [shlex.join(run_flags)]
    for other in OTHER_STEPS[args.lease]:
        steps.append(shlex.join([*own_flags, *other.split(), *flags]))
    measure_steps(lease, steps)
    epochs = plan_epochs(lease, args.epochs)
    if epochs == 0:
        lease.say("---- there is no time for an epoch")
        lease.has_failed = True
        return
    warmup = min(args.warmup_epochs, epochs / RUN_TO_WARMUP_RATIO)
    length = ["--epochs", str(epochs), "--warmup-epochs", f"{warmup:g}"]
    folder = ["--save-dir", str(lease.run.path.parent), "--exp-name", lease.run.path.name]
    command = ["main.py", *run_flags, *length, *folder]
    lease.run_phase("train", command, KNN_SECONDS, KILL_TRAINING_AFTER)
    if lease.save_backbone():
        evaluate(lease)


def raise_stopped(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the results are brought home undisturbed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stopped


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("lease", choices=[*RUNS])
    parser.add_argument("--seconds", type=float, required=True, help="time of the lease")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--epochs", type=int, default=200, help="the most epochs to train")
    parser.add_argument("--warmup-epochs", type=float, default=2.5)
    args, flags = parser.parse_known_args()
    args.out = args.out.resolve()
    args.run = args.run.resolve()
    for earlier in (args.run, args.out / "lease.json"):
        if earlier.exists():
            print(f"lease.py: {earlier} exists. Set another NAME or OUT.", file=sys.stderr)
            return 2
    lease = Lease(args.out, args.run, args.seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, raise_stopped)
    status = 0
    try:
        train_and_evaluate(lease, args, flags)
    except Stopped:
        lease.say("---- the lease was stopped by a signal")
        status = 128 + signal.SIGTERM
    except Exception:  # noqa: BLE001  (the results must come home before the machine is gone)
        lease.say(traceback.format_exc())
        status = 1
    lease.save_figures()
    if status and not (lease.out / "backbone.sha256").exists():
        lease.save_backbone()
    lease.say(f"---- the end: {lease.left():.0f} s left, results in {lease.out}")
    shutil.rmtree(lease.work, ignore_errors=True)
    return status or int(lease.has_failed)


if __name__ == "__main__":
    sys.exit(main())
