"""The phases of a lease, which are processes with a time limit, and the results they leave."""

import hashlib
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

from utils.run_dir import HEAD_FILE, SUMMARY_FILE, RunDirectory

ROOT = Path(__file__).resolve().parents[2]
PART_BYTES = 15 * 2**20  # as `split -b 15M`
SAVE_EVERY = 5  # seconds between two copies of the rows
# Seconds that a process has to end after a SIGTERM. The training saves a checkpoint in this time.
KILL_AFTER = 2
KILL_TRAINING_AFTER = 15


class Stopped(BaseException):
    """A signal has ended the lease."""


class Lease:
    """The phases of a lease, and its results.

    Args:
        out: folder of the results.
        run: folder of the run, which need not exist yet.
        seconds: time of the lease from now on.
    """

    def __init__(self, out: Path, run: Path, seconds: float) -> None:
        self.out = out
        self.run = RunDirectory(run)
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
        self.say(f"---- {phase}: {self.left():.0f} s left, {max(reserve, 0):.0f} s are kept")
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
            time.sleep(0.05)  # between two polls of the process
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

    # ------------------------------------------------------------ results

    def save_rows(self) -> None:
        """Copy the rows of the run."""
        if self.run.metrics.exists():
            self.put(self.run.metrics.name, self.run.metrics.read_bytes())

    def save_figures(self) -> None:
        """Copy everything that is small: rows, settings, summaries, curves, results."""
        self.put("lease.json", json.dumps(self.facts, indent=1).encode())
        self.save_rows()
        archive = self.work / "figures.tar.gz"
        with tarfile.open(archive, "w:gz") as figures:
            names = (self.run.config.name, SUMMARY_FILE, self.run.views.name, "events.*")
            results = (f"results/*/{SUMMARY_FILE}", f"results/*/{HEAD_FILE}")
            for pattern in (*names, *results):
                for file in sorted(self.run.path.glob(pattern)):
                    figures.add(file, file.relative_to(self.run.path))
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
        backbone = self.run.backbone
        if not backbone.exists():
            if not self.run.resumable():
                self.say("---- there is no backbone: the run has saved no checkpoint")
                return False
            backbone = self.work / backbone.name
            output = ["--output", str(backbone), "--overwrite"]
            args = ["main.py", "export", "--checkpoint", str(self.run.path), *output]
            # It also runs after a signal, when no time may be left.
            if not self.run_phase("export", args, reserve=-math.inf):
                return False
        parts = split_file(backbone, self.out)
        self.say(f"---- {backbone} is saved in parts: {len(parts)}")
        return True


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
