"""Kill small runs at random moments, resume them to their end, and compare with an undisturbed run.

`python tests/benchmarks/faults.py --kills 100` prints a table. Of three kills (SIGKILL), one comes
at a random moment, one just after a checkpoint and one while a checkpoint is being written. After
every third kill, the next process gets SIGTERM, SIGINT or SIGHUP at a random moment. It must stop
and lose nothing. If there is /dev/shm, TMPDIR is there, so that it is on another file system than
the run.
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
from tests.helpers import TIMES, same_run
from tests.images import patterns, write_images
from tests.processes import Started
from utils.checkpoint_io import read_checkpoint
from utils.errors import UserError
from utils.run_dir import RunDirectory, previous

# TensorBoard logs a line for each resume.
logging.getLogger("tensorboard").setLevel(logging.ERROR)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CHECKPOINT_EVERY = 2  # epochs
# Epochs. A checkpoint may still be being written when the next one is due.
MAX_LOST = 2 * CHECKPOINT_EVERY
TRAIN_IMAGES = 300
TEST_IMAGES = 60
PATTERNS = f"--dataset patterns --train-images {TRAIN_IMAGES} --test-images {TEST_IMAGES}"
NETWORK = "--backbone resnet10 --width 2 --out-dim 16 --h-dim 8 --batch-size 50 --accelerator cpu"
MONITOR = f"--knn-k 20 --knn-every 2 --checkpoint-every {CHECKPOINT_EVERY}"
LABELS = {
    "kills": "kills",
    "in_a_save": "kills during a save",
    "resumes": "resumes from a checkpoint",
    "runs": "finished runs",
    "signals": "stops by SIGTERM, SIGINT or SIGHUP",
    "lost_to_signals": "epochs lost by these stops",
    "wrong_statuses": "wrong exit statuses of these stops",
    "most_lost": f"most epochs lost by one kill (limit {MAX_LOST})",
    "unreadable": "unreadable checkpoints",
    "mismatches": "mismatches of weights, rows, curves or summary",
}


@dataclass
class Tally:
    """The numbers of the table. LABELS says what they mean."""

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
        errors = self.mismatches + self.unreadable + self.lost_to_signals + self.wrong_statuses
        return errors == 0 and self.most_lost <= MAX_LOST


class Faults:
    """Trains runs below `folder`, and sends signals to them.

    Args:
        image_cache: train on image files with this value of `--image-cache`; None for `patterns`.
    """

    def __init__(
        self, folder: Path, epochs: int, seed: int = 0, image_cache: str | None = None
    ) -> None:
        self.folder = folder
        self.data = PATTERNS.split()
        if image_cache is not None:
            photos = folder / "photos"
            write_images(photos, patterns(TRAIN_IMAGES))
            write_images(photos, patterns(TEST_IMAGES, split=1), split="val")
            self.data = ["--dataset", "folder", "--data-dir", str(photos), "--image-size", "32"]
            self.data += ["--image-cache", image_cache, "--cache-dir", str(folder / "cache")]
        self.epochs = epochs
        self.random = random.Random(seed)
        self.tally = Tally()

        # After a first process, the server that forks processes has imported everything.
        Started(main.main, ["--help"]).communicate()
        begin = time.monotonic()
        self.undisturbed = RunDirectory(folder / "undisturbed")
        self.train_to_the_end(self.undisturbed)
        self.seconds = time.monotonic() - begin  # of a complete run

    def kill_runs(self, kills: int) -> Tally:
        """Kill this number of times, over as many runs as that takes."""
        while self.tally.kills < kills:
            run = RunDirectory(self.folder / f"killed_{self.tally.runs}")
            ended_by_signal = True
            while ended_by_signal and self.tally.kills < kills:
                ended_by_signal = self.interrupt(run)
            if run.state() != "finished":
                self.train_to_the_end(run)
            self.tally.runs += 1
            if not self.equals_undisturbed(run):
                self.tally.mismatches += 1
                print(f"{run.path} differs from {self.undisturbed.path}")
        return self.tally

    def start(self, run: RunDirectory) -> Started:
        if run.last.exists():
            self.tally.resumes += 1
        environment = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
        folder = ["--save-dir", str(run.path.parent), "--exp-name", run.path.name]
        settings = f"{NETWORK} {MONITOR} --epochs {self.epochs}".split()
        return Started(main.main, [*self.data, *settings, *folder], **environment)

    def train_to_the_end(self, run: RunDirectory) -> None:
        process = self.start(run)
        printed = process.communicate()
        assert process.returncode == 0, printed

    def interrupt(self, run: RunDirectory) -> bool:
        """Start or resume a run, and end it by a signal. Return False if it ended by itself."""
        if self.tally.signals < self.tally.kills // 3:
            return self.stop(run)
        return self.kill(run)

    def stop(self, run: RunDirectory) -> bool:
        """Start or resume a run, and stop it by one of STOP_SIGNALS at a random moment."""
        tally = self.tally
        number = STOP_SIGNALS[tally.signals % len(STOP_SIGNALS)]
        # The rows of epochs that the kill before has lost stay until training begins again.
        lost_before = self.count_lost_epochs(run)
        process = self.start(run)
        is_due = self.choose_moment(0.3, self.seconds / 2)

        def has_begun_and_is_due() -> bool:
            out, _ = process.printed()
            return is_due() and out != ""

        status = self.send(process, number, has_begun_and_is_due)
        if status is None:
            return False
        tally.signals += 1
        if status != 128 + number:
            tally.wrong_statuses += 1
        tally.lost_to_signals += max(0, self.count_lost_epochs(run) - lost_before)
        return True

    def kill(self, run: RunDirectory) -> bool:
        """Start or resume a run, and kill it at the kind of moment that is next."""
        tally = self.tally
        last_saved = save_time(run)
        partial_files = list_partial_files(run)
        process = self.start(run)

        def has_saved() -> bool:
            return save_time(run) > last_saved

        def is_saving() -> bool:
            return bool(list_partial_files(run) - partial_files)

        conditions = (self.choose_moment(0.05, self.seconds / 2), has_saved, is_saving)
        condition = conditions[tally.kills % 3]
        status = self.send(process, signal.SIGKILL, condition)
        assert status in (None, -signal.SIGKILL), process.printed()
        if status is None:
            return False
        if condition is is_saving:
            tally.in_a_save += 1
        tally.kills += 1
        tally.most_lost = max(tally.most_lost, self.count_lost_epochs(run))
        return True

    def choose_moment(self, earliest: float, latest: float) -> Callable[[], bool]:
        """Choose a random moment, in seconds from now. The result says whether it has passed."""
        moment = time.monotonic() + self.random.uniform(earliest, latest)
        return lambda: time.monotonic() >= moment

    def send(self, process: Started, number: int, condition: Callable[[], bool]) -> int | None:
        """Send a signal once the condition is true, and wait for the end of the process.

        Returns:
            The exit status, or None if the process was finished before the signal.
        """
        while process.returncode is None:
            if condition():
                process.send_signal(number)
                break
            time.sleep(0.0002)  # short, because a save is short
        process.communicate()
        return process.returncode or None

    def count_lost_epochs(self, run: RunDirectory) -> int:
        """Count the epochs in metrics.jsonl that are not in the newest readable checkpoint."""
        rows = len(run.rows())
        for path in (run.last, previous(run.last)):
            if path.exists():
                try:
                    return rows - read_checkpoint(path)["row"].get("epoch", 0)
                except UserError as error:
                    print(error)
                    self.tally.unreadable += 1
        return rows

    def equals_undisturbed(self, run: RunDirectory) -> bool:
        """Return whether weights, rows, curves and summary are equal to the bit."""
        summary = json.loads(run.summary.read_text())
        expected = json.loads(self.undisturbed.summary.read_text())
        for name in summary:
            if name not in TIMES and summary[name] != expected[name]:
                return False
        return same_run(run.path, self.undisturbed.path)


def save_time(run: RunDirectory) -> int:
    """Return when last.ckpt was written, in ns; 0 if there is none."""
    return run.last.stat().st_mtime_ns if run.last.exists() else 0


def list_partial_files(run: RunDirectory) -> set[Path]:
    """Return the files of checkpoints that are being written, or whose writing was cut off."""
    return set(run.checkpoints.glob(".*.partial"))


def command_line(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of each run")
    parser.add_argument(
        "--image-cache",
        choices=["on", "off"],
        help="train on image files, with this --image-cache; default: generated images",
    )
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # the network is too small for more threads
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".faults-") as folder:
        faults = Faults(Path(folder), args.epochs, args.seed, args.image_cache)
        tally = faults.kill_runs(args.kills)
    for name, label in LABELS.items():
        print(f"{label:<50} {getattr(tally, name):>5}")
    print(f"{'seconds':<50} {time.monotonic() - begin:>5.0f}")
    return 0 if tally.ok else 1


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
