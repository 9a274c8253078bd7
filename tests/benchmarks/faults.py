"""Kills a small run at random moments, resumes it until it ends, and compares it with an undisturbed one.

`python tests/benchmarks/faults.py --kills 100` prints a table. Of three kills (SIGKILL) one comes at a random moment,
one just after a checkpoint and one while a checkpoint is being written. After every third kill the next process is told
to stop by SIGTERM, SIGINT or SIGHUP, at a random moment too, and must lose nothing. TMPDIR is on another file system
than the run where there is one (/dev/shm).
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main
from tests.helpers import TIMES, Started, same_run
from utils.checkpoint_io import read_checkpoint
from utils.errors import UserError
from utils.run_dir import RunDirectory, previous

logging.getLogger("tensorboard").setLevel(
    logging.ERROR
)  # it reports each purge, which is what resuming does
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EVERY = 2  # epochs between two checkpoints
MOST_LOST = 2 * EVERY  # epochs: a checkpoint may still be being written when the next one is due
RUN = [
    *(
        "--dataset",
        "patterns",
        "--train-images",
        "300",
        "--test-images",
        "60",
        "--knn-k",
        "20",
        "--knn-every",
        "2",
    ),
    *(
        "--backbone",
        "resnet10",
        "--width",
        "2",
        "--out-dim",
        "16",
        "--h-dim",
        "8",
        "--batch-size",
        "50",
    ),
    *("--accelerator", "cpu", "--checkpoint-every", str(EVERY)),
]
LABELS = {
    "kills": "kills",
    "in_a_save": "of them inside a save",
    "resumes": "resumes from a checkpoint",
    "runs": "runs brought to their end",
    "signals": "told to stop by SIGTERM, SIGINT or SIGHUP",
    "lost_to_signals": "epochs lost by these",
    "wrong_statuses": "wrong exit statuses of these",
    "most_lost": f"most epochs lost at once (at most {MOST_LOST})",
    "unreadable": "checkpoints that could not be read",
    "mismatches": "mismatches: weights, rows or curves",
}


@dataclass
class Tally:
    """The figures of the table, as in LABELS."""

    kills: int = 0
    in_a_save: int = 0
    resumes: int = 0
    runs: int = 0
    signals: int = 0
    lost_to_signals: int = 0
    wrong_statuses: int = 0
    most_lost: int = 0
    unreadable: int = 0
    mismatches: int = 0

    @property
    def ok(self) -> bool:
        wrong = self.mismatches + self.unreadable + self.lost_to_signals + self.wrong_statuses
        return wrong == 0 and self.most_lost <= MOST_LOST


class Faults:
    """Runs of so many epochs below `folder`, and the signals that they get."""

    def __init__(self, folder: Path, epochs: int, seed: int = 0) -> None:
        self.folder, self.epochs = folder, epochs
        self.random, self.tally = random.Random(seed), Tally()
        Started(
            main.main, ["--help"]
        ).communicate()  # the server that forks processes has now imported everything
        begun = time.monotonic()
        self.undisturbed = RunDirectory(folder / "undisturbed")
        self.train_to_the_end(self.undisturbed)
        self.seconds = time.monotonic() - begun  # of a whole run

    def kill_runs(self, kills: int) -> Tally:
        """Kill so many times, over as many runs as that takes."""
        while self.tally.kills < kills:
            run = RunDirectory(self.folder / f"killed_{self.tally.runs}")
            while self.tally.kills < kills and self.interrupt(run):
                pass
            if run.state() != "finished":
                self.train_to_the_end(run)
            self.tally.runs += 1
            if not self.is_as_undisturbed(run):
                self.tally.mismatches += 1
                print(f"{run.path} is not what {self.undisturbed.path} is")
        return self.tally

    def start(self, run: RunDirectory) -> Started:
        self.tally.resumes += run.last.exists()
        elsewhere = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
        where = ["--save-dir", str(run.path.parent), "--exp-name", run.path.name]
        return Started(main.main, [*RUN, "--epochs", str(self.epochs), *where], **elsewhere)

    def train_to_the_end(self, run: RunDirectory) -> None:
        process = self.start(run)
        printed = process.communicate()
        assert process.returncode == 0, printed

    def interrupt(self, run: RunDirectory) -> bool:
        """Start or resume a run, and end it by a signal; False if it ended by itself before."""
        tally, last = self.tally, run.last.stat().st_mtime_ns if run.last.exists() else 0
        already = self.lost_epochs(
            run
        )  # to the kill before; their rows stay until training begins again
        process = self.start(run)
        if tally.signals < tally.kills // 3:
            number, due = (
                STOPPING[tally.signals % len(STOPPING)],
                self.moment(0.3, self.seconds / 2),
            )
            status = self.send(
                process, number, lambda: due() and bool(process.printed()[0])
            )  # else not begun yet
            if status is None:
                return False
            tally.signals += 1
            tally.wrong_statuses += status != 128 + number
            tally.lost_to_signals += max(0, self.lost_epochs(run) - already)
            return True
        conditions: tuple[Callable[[], bool], ...] = (
            self.moment(0.05, self.seconds / 2),
            lambda: run.last.exists() and run.last.stat().st_mtime_ns > last,
            lambda before=set(run.checkpoints.glob(".*.partial")): bool(
                set(run.checkpoints.glob(".*.partial")) - before
            ),
        )
        status = self.send(process, signal.SIGKILL, conditions[tally.kills % 3])
        assert status in (None, -signal.SIGKILL), process.printed()
        if status is None:
            return False
        tally.in_a_save += tally.kills % 3 == 2
        tally.kills += 1
        tally.most_lost = max(tally.most_lost, self.lost_epochs(run))
        return True

    def moment(self, earliest: float, latest: float) -> Callable[[], bool]:
        """Whether a random moment, in seconds from now, is past."""
        at = time.monotonic() + self.random.uniform(earliest, latest)
        return lambda: time.monotonic() >= at

    def send(self, process: Started, number: int, condition: Callable[[], bool]) -> int | None:
        """Send a signal once the condition holds; the exit status, None if the process was faster."""
        while process.returncode is None:
            if condition():
                process.send_signal(number)
                break
            time.sleep(0.0002)  # between two polls: short, to hit a save
        process.communicate()
        return process.returncode or None

    def lost_epochs(self, run: RunDirectory) -> int:
        """Epochs recorded in metrics.jsonl but not in the newest whole checkpoint."""
        for path in (run.last, previous(run.last)):
            if path.exists():
                try:
                    return len(run.rows()) - read_checkpoint(path)["row"].get("epoch", 0)
                except UserError as error:
                    print(error)
                    self.tally.unreadable += 1
        return len(run.rows())

    def is_as_undisturbed(self, run: RunDirectory) -> bool:
        """Whether weights, rows, curves and summary equal those of the undisturbed run, to the bit."""
        a, b = (json.loads(each.summary.read_text()) for each in (run, self.undisturbed))
        return same_run(run.path, self.undisturbed.path) and all(
            a[name] == b[name] for name in a if name not in TIMES
        )


def command_line(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=24, help="of each run")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: the network is too small for more
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".faults-") as folder:
        tally = Faults(Path(folder), args.epochs, args.seed).kill_runs(args.kills)
    for name, label in LABELS.items():
        print(f"{label:<50} {getattr(tally, name):>5}")
    print(f"{'seconds':<50} {time.monotonic() - begun:>5.0f}")
    return 0 if tally.ok else 1


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
