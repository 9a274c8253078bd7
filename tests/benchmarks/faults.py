"""Kills a small run at random moments, resumes it until it ends, and compares it with an undisturbed one.

`python tests/benchmarks/faults.py --kills 100` prints a table. Each start is a process of its own, forked from one that
has imported everything, and is ended by SIGKILL; every third kill waits for a checkpoint to be on its way to the disk,
to hit inside a save. After every third kill the next start is told to stop by SIGTERM, SIGINT or SIGHUP, at a random
moment too, and must lose nothing. TMPDIR is on another file system than the run where there is one (/dev/shm).
"""

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
import simsiam.commands.pretrain  # noqa: F401  (before any fork, so that a start takes no time)
from utils.checkpoint_io import previous, read_checkpoint
from utils.errors import UserError
from utils.run_dir import RunDirectory

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each purge, which is what resuming does
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TIMES = ("seconds", "images_per_second")
TAGS = ("train_loss", "kNN_accuracy", "z_std", "learning_rate")
EVERY = 2  # epochs between two checkpoints
RUN = [
    *("--dataset", "patterns", "--train-images", "300", "--test-images", "60", "--knn-k", "20", "--knn-every", "2"),
    *("--backbone", "resnet10", "--width", "2", "--out-dim", "16", "--h-dim", "8", "--batch-size", "50"),
    *("--accelerator", "cpu", "--checkpoint-every", str(EVERY)),
]
LONGEST = 120  # seconds that anything here may take


@dataclass
class Tally:
    """What the table shows."""

    kills: int = 0
    in_a_save: int = 0
    resumes: int = 0
    runs: int = 0
    signals: int = 0
    lost_to_signals: int = 0  # epochs
    wrong_statuses: int = 0
    most_lost: int = 0  # epochs between the last one recorded and the newest whole checkpoint
    unreadable: int = 0
    mismatches: int = 0

    def rows(self) -> list[tuple[str, int]]:
        return [
            ("kills", self.kills),
            ("of them inside a save", self.in_a_save),
            ("resumes from a checkpoint", self.resumes),
            ("runs brought to their end", self.runs),
            ("told to stop by SIGTERM, SIGINT or SIGHUP", self.signals),
            ("epochs lost by these", self.lost_to_signals),
            ("wrong exit statuses of these", self.wrong_statuses),
            (f"most epochs lost at once (interval: {EVERY})", self.most_lost),
            ("checkpoints that could not be read", self.unreadable),
            ("mismatches: weights, rows or curves", self.mismatches),
        ]


def start(save_dir: Path, name: str, log: Path) -> int:
    """Fork a process that runs the program; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs begin without
        status = main.main([*RUN, "--save-dir", str(save_dir), "--exp-name", name])
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(child: int) -> int | None:
    """The exit status, once there is one."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(child: int) -> int:
    deadline = time.monotonic() + LONGEST
    while (status := ended(child)) is None:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)  # between two looks at the process
    return status


def kill_somewhere(
    child: int, run: RunDirectory, chance: random.Random, longest: float, in_a_save: bool
) -> bool | None:
    """Kill at a random moment, or inside a save; whether it was inside one, None if the process was faster."""
    until = time.monotonic() + (LONGEST if in_a_save else chance.uniform(0.05, longest))
    seen = set(run.checkpoints.glob(".*.partial"))
    hit = False
    while time.monotonic() < until and not hit:
        if ended(child) is not None:
            return None
        hit = in_a_save and bool(set(run.checkpoints.glob(".*.partial")) - seen)
        time.sleep(0.0002)  # between two looks: short, to hit a save while it is on its way
    os.kill(child, signal.SIGKILL)
    wait(child)
    return hit


def stop_somewhere(child: int, number: int, after: float) -> int | None:
    """Send a signal at a moment; the exit status that it led to, None if the process was faster."""
    until = time.monotonic() + after
    while time.monotonic() < until:
        if ended(child) is not None:
            return None
        time.sleep(0.0002)  # between two looks: short, to hit a save while it is on its way
    os.kill(child, number)
    return wait(child)


def whole_epochs(run: RunDirectory, tally: Tally) -> int:
    """Epochs in the newest whole checkpoint."""
    for path in (run.last, previous(run.last)):
        if path.exists():
            try:
                return read_checkpoint(path)["row"].get("epoch", 0)
            except UserError as error:
                print(error)
                tally.unreadable += 1
    return 0


def record(run: RunDirectory) -> dict[str, Any]:
    """All that a run leaves which has no time in it."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in run.rows()]
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in TAGS}
    summary = {k: v for k, v in json.loads(run.summary.read_text()).items() if k not in TIMES}
    weights = torch.load(run.last, weights_only=True)["state_dict"]
    return {"rows": rows, "curves": curves, "summary": summary, "weights": weights}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    weights = all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    return weights and all(a[part] == b[part] for part in ("rows", "curves", "summary"))


def disturb(run: RunDirectory, tally: Tally, chance: random.Random, longest: float, log: Path) -> bool:
    """Start or resume a run, and end it by a signal; whether that was before it ended by itself."""
    tally.resumes += run.last.exists()
    child = start(run.path.parent, run.path.name, log)
    if tally.signals < tally.kills // 3:
        number = STOPPING[tally.signals % len(STOPPING)]
        status = stop_somewhere(child, number, chance.uniform(0.3, longest / 2))
        if status is None:
            return False
        tally.signals += 1
        tally.wrong_statuses += status != 128 + number
        tally.lost_to_signals += len(run.rows()) - whole_epochs(run, tally)
        return True
    hit = kill_somewhere(child, run, chance, longest / 2, in_a_save=tally.kills % 3 == 2)
    if hit is None:
        return False
    tally.kills += 1
    tally.in_a_save += hit
    tally.most_lost = max(tally.most_lost, len(run.rows()) - whole_epochs(run, tally))
    return True


def measure(kills: int, seed: int, folder: Path) -> Tally:
    """Kill so many times, over as many runs as that takes."""
    chance, tally, log = random.Random(seed), Tally(), folder / "log.txt"
    begun = time.monotonic()
    if wait(start(folder, "undisturbed", log)) != 0:
        raise SystemExit(log.read_text())
    longest = time.monotonic() - begun
    expected = record(RunDirectory(folder / "undisturbed"))
    while tally.kills < kills:
        run = RunDirectory(folder / f"killed_{tally.runs}")
        while tally.kills < kills and disturb(run, tally, chance, longest, log):
            pass
        if run.state() != "finished" and wait(start(folder, run.path.name, log)) != 0:
            raise SystemExit(log.read_text()[-2000:])
        tally.runs += 1
        if not same(expected, record(run)):
            tally.mismatches += 1
            print(f"{run.path} is not what {folder / 'undisturbed'} is")
    return tally


def command_line(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=24, help="of each run")
    args = parser.parse_args(argv)
    RUN.extend(["--epochs", str(args.epochs)])
    torch.set_num_threads(1)  # before any fork: a pool of threads does not survive one
    if Path("/dev/shm").is_dir():
        os.environ["TMPDIR"] = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".faults-") as folder:
        begun = time.monotonic()
        tally = measure(args.kills, args.seed, Path(folder))
    for name, value in tally.rows():
        print(f"{name:<50} {value:>5}")
    print(f"{'seconds':<50} {time.monotonic() - begun:>5.0f}")
    wrong = tally.mismatches + tally.unreadable + tally.lost_to_signals + tally.wrong_statuses
    return int(wrong > 0 or tally.most_lost > EVERY)


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
