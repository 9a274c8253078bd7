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
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
PART_BYTES = 15 * 2**20  # as `split -b 15M`
STEPS_SECONDS = 75  # limit of the measurement of steps
EVALUATION_SECONDS = 55  # for the saving of the backbone, kNN and a linear classifier
KNN_SECONDS = 30  # of these, without the linear classifier: it is given up for a late run
HOME_SECONDS = 5  # for the last copy of the results
SAVE_EVERY = 5  # seconds between two copies of the rows
# Seconds that a process has to end after a SIGTERM. The training saves a checkpoint in this time.
KILL_AFTER = 2
KILL_TRAINING_AFTER = 15
# An epoch takes a little longer than its steps: kNN of some epochs, checkpoints, the loop.
EPOCH_TO_STEPS_RATIO = 1.04
# If no step can be measured: 200 epochs in 470 s, and the time of a start with compilation.
FALLBACK_EPOCH_SECONDS = 2.35
FALLBACK_STARTUP_SECONDS = 45.0
RUN_TO_WARMUP_RATIO = 10  # a warm-up takes at most a tenth of the run

# What each lease trains, and which steps it measures. The first step is that of the run.
RUN_FLAGS = "--views 4 --batch-size 128 --learning-rate 0.06 --knn-every 10 --pictures-every 0"
RUNS = {"lease1": f"{RUN_FLAGS} --seed 0", "lease3": f"{RUN_FLAGS} --seed 1"}
OTHER_STEPS = {"lease1": ["--views 2 --batch-size 512"], "lease3": []}


class Stopped(BaseException):
    """A signal has ended the lease."""


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


def split_file(file: Path, folder: Path) -> list[Path]:
    """Write a file in parts, and its checksum with the command that joins them."""
    content = file.read_bytes()
    parts = []
    for number, begin in enumerate(range(0, len(content), PART_BYTES)):
        part = folder / f"{file.name}.part{number}"
        part.write_bytes(content[begin : begin + PART_BYTES])
        parts.append(part)
    digest = hashlib.sha256(content).hexdigest()
    checksum = f"{file.stem}.sha256"
    command = f"cat {file.name}.part* > {file.name} && sha256sum --check {checksum}"
    (folder / checksum).write_text(f"# {command}\n{digest}  {file.name}\n")
    return parts


class Lease:
    """The phases of a lease, and its results.

    Args:
        out: folder of the results.
        run: folder of the run, which need not exist yet.
        seconds: time of the lease from now on.
    """

    def __init__(self, out: Path, run: Path, seconds: float) -> None:
        self.out = out
        self.run_dir = run
        self.seconds = seconds
        self.begin = time.monotonic()
        self.work = run.with_name(f"{run.name}-lease")  # for files that do not come home
        self.facts: dict[str, Any] = {"steps": [], "phases": []}
        self.has_failed = False
        for folder in (out, self.work):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Return the seconds until the end of the lease."""
        return self.seconds - (time.monotonic() - self.begin)

    def say(self, line: str) -> None:
        """Print a line, and add it to the log."""
        with suppress(OSError):  # nobody may read stdout any more
            print(line, flush=True)
        with (self.out / "log.txt").open("a") as log:
            log.write(line + "\n")

    # ------------------------------------------------------------ phases

    def run_phase(
        self, phase: str, args: Iterable[str], reserve: float, kill_after: float = KILL_AFTER
    ) -> bool:
        """Run Python with arguments, and stop it when only `reserve` seconds are left.

        Returns:
            Whether it ended by itself and without an error.
        """
        if self.left() <= reserve:
            self.finish_phase(phase, 0, "left out")
            return False
        self.say(f"---- {phase}: {self.left():.0f} s left, of which {reserve:.0f} s are kept")
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        reader = Thread(target=self.copy_output, args=(process.stdout,), daemon=True)
        reader.start()
        result = "stopped by a signal"
        try:
            result = self.wait(process, reserve)
        except Stopped:
            self.save_figures()  # at once, because the process may take long to end
            raise
        finally:
            end_process(process, kill_after)
            reader.join(timeout=1)
            self.finish_phase(phase, time.monotonic() - begin, result)
        return result == "done"

    def wait(self, process: subprocess.Popen[str], reserve: float) -> str:
        """Wait for a process, save the figures meanwhile, and return how it ended."""
        next_save = time.monotonic() + SAVE_EVERY
        while process.poll() is None:
            if self.left() <= reserve:
                return "out of time"
            if time.monotonic() >= next_save:
                self.save_rows()
                next_save = time.monotonic() + SAVE_EVERY
            time.sleep(0.05)
        return "done" if process.returncode == 0 else f"failed with status {process.returncode}"

    def copy_output(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.say(line.rstrip("\n"))

    def finish_phase(self, phase: str, seconds: float, result: str) -> None:
        """Print and note how a phase ended."""
        self.say(f"---- {phase}: {result}, {seconds:.1f} s; {self.left():.0f} s left")
        if result != "done":
            self.has_failed = True
        self.facts["phases"].append(
            {"phase": phase, "seconds": round(seconds, 1), "result": result}
        )
        self.save_figures()

    def measure_steps(self, flags: list[str]) -> None:
        """Measure a step with each of these flags, and note the results."""
        results = self.work / "steps.jsonl"
        results.unlink(missing_ok=True)
        reserve = max(self.left() - STEPS_SECONDS, 0)
        started = ["--started", str(time.time()), "--output", str(results)]
        # The flags begin with dashes, so they come after a "--".
        args = ["tests/benchmarks/pretrain_step.py", *started, "--", *flags]
        self.run_phase("steps", args, reserve)
        if results.exists():
            lines = results.read_text().splitlines()
            self.facts["steps"] = [json.loads(line) for line in lines]

    def plan(self, most: int) -> int:
        """Choose the number of epochs from the measured step, print and note it."""
        epoch_seconds = FALLBACK_EPOCH_SECONDS
        startup = FALLBACK_STARTUP_SECONDS
        if self.facts["steps"]:
            step = self.facts["steps"][0]
            steps_seconds = step["step_seconds"] * step["steps_per_epoch"]
            epoch_seconds = EPOCH_TO_STEPS_RATIO * steps_seconds
            startup = step["startup_seconds"]
        left = self.left()
        epochs = choose_epochs(left, EVALUATION_SECONDS, startup, epoch_seconds, most)
        self.say(
            f"---- plan: {left:.0f} s left, {EVALUATION_SECONDS} s for the evaluation, "
            f"{startup:.0f} s for the start, {epoch_seconds:.3f} s an epoch: {epochs} epochs "
            f"(at most {most}) in {epochs * epoch_seconds:.0f} s"
        )
        self.facts["plan"] = {
            "seconds_left": left,
            "startup_seconds": startup,
            "epoch_seconds": epoch_seconds,
            "epochs": epochs,
        }
        self.save_figures()
        return epochs

    def evaluate(self) -> None:
        """Measure the run, the most important result first."""
        run = str(self.run_dir)
        self.run_phase("knn", ["main.py", "knn", "--checkpoint", run], HOME_SECONDS)
        self.run_phase("linear", ["main.py", "linear", "--checkpoint", run], HOME_SECONDS)
        if (self.run_dir / "summary.json").exists():
            self.run_phase("race", ["tests/benchmarks/race.py", run], HOME_SECONDS)

    # ------------------------------------------------------------ results

    def save_rows(self) -> None:
        """Copy the rows of the run."""
        rows = self.run_dir / "metrics.jsonl"
        if rows.exists():
            self.put("metrics.jsonl", rows.read_bytes())

    def save_figures(self) -> None:
        """Copy everything that is small: rows, settings, summaries, curves, results."""
        self.put("lease.json", json.dumps(self.facts, indent=1).encode())
        self.save_rows()
        archive = self.work / "figures.tar.gz"
        with tarfile.open(archive, "w:gz") as figures:
            names = ["config.yaml", "summary.json", "views.png", "events.out.tfevents.*"]
            patterns = [*names, "results/*/summary.json", "results/*/head.safetensors"]
            for pattern in patterns:
                for file in sorted(self.run_dir.glob(pattern)):
                    figures.add(file, file.relative_to(self.run_dir))
        self.put("figures.tar.gz", archive.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        """Write a result. Its earlier version stays until the new one is complete."""
        partial = self.out / f"{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, self.out / name)

    def save_backbone(self) -> bool:
        """Write the backbone in parts. If the run is not finished, export the last checkpoint.

        Returns:
            Whether there is a backbone.
        """
        backbone = self.run_dir / "backbone.safetensors"
        if not backbone.exists():
            if not any(self.run_dir.glob("checkpoints/last*.ckpt")):
                self.say("---- there is no backbone: the run has saved no checkpoint")
                return False
            backbone = self.work / "backbone.safetensors"
            output = ["--output", str(backbone), "--overwrite"]
            args = ["main.py", "export", "--checkpoint", str(self.run_dir), *output]
            # It also runs after a signal, when no time may be left.
            if not self.run_phase("export", args, reserve=-math.inf):
                return False
        parts = split_file(backbone, self.out)
        self.say(f"---- {backbone} is saved in parts: {len(parts)}")
        return True


def end_process(process: subprocess.Popen[str], kill_after: float) -> None:
    """End a process by SIGTERM, or by SIGKILL if it still runs after `kill_after` seconds."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def raise_stopped(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the results are brought home undisturbed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stopped


def train_and_evaluate(lease: Lease, args: argparse.Namespace, flags: list[str]) -> None:
    own_flags = RUNS[args.lease].split()
    if "CIFAR10_DIR" in os.environ:
        own_flags += ["--data-dir", os.environ["CIFAR10_DIR"]]
    run_flags = [*own_flags, *flags]
    steps = [shlex.join(run_flags)]
    for other in OTHER_STEPS[args.lease]:
        steps.append(shlex.join([*own_flags, *other.split(), *flags]))
    lease.measure_steps(steps)
    epochs = lease.plan(args.epochs)
    if epochs == 0:
        lease.say("---- there is no time for an epoch")
        lease.has_failed = True
        return
    warmup = min(args.warmup_epochs, epochs / RUN_TO_WARMUP_RATIO)
    length = ["--epochs", str(epochs), "--warmup-epochs", f"{warmup:g}"]
    folder = ["--save-dir", str(lease.run_dir.parent), "--exp-name", lease.run_dir.name]
    command = ["main.py", *run_flags, *length, *folder]
    lease.run_phase("train", command, KNN_SECONDS, KILL_TRAINING_AFTER)
    if lease.save_backbone():
        lease.evaluate()


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
    lease.save_figures()
    if status and not (lease.out / "backbone.sha256").exists():
        lease.save_backbone()
    lease.say(f"---- the end: {lease.left():.0f} s left, results in {lease.out}")
    shutil.rmtree(lease.work, ignore_errors=True)
    return status or int(lease.has_failed)


if __name__ == "__main__":
    sys.exit(main())
