"""The runs of tests/benchmarks/factorial.py, and their results."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.factorial_design import Levels, flags_of, make_confirmation, make_design
from utils.filesystem import is_locked, write_text
from utils.run_dir import RunDirectory

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = ("data_dir", "save_dir", "exp_name")  # settings that say nothing on another machine
SEED = 100  # run N has seed SEED + N; seeds 0 to 2 were used to choose the recipe


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
        folder = ["--save-dir", str(self.root), "--exp-name", self.folder.path.name]
        return [sys.executable, str(REPOSITORY / "main.py"), *self.flags, *folder]


def make_jobs(args: argparse.Namespace, extra: Sequence[str]) -> list[Job]:
    """Return the runs of the design, or those of the confirmation."""
    if args.confirm is not None:
        runs = make_confirmation(args.confirm)
    else:
        runs = [(SEED + number, levels) for number, levels in enumerate(make_design(), 1)]
    jobs: list[Job] = []
    for number, (seed, levels) in enumerate(runs, 1):
        flags = [*flags_of(levels, args.epochs), "--seed", str(seed)]
        flags += ["--data-dir", args.data_dir, "--held-out-images", "5000", *extra]
        jobs.append(Job(number, levels, args.root, tuple(flags)))
    return jobs


def is_busy(job: Job) -> bool:
    """Return whether a process trains or saves the run."""
    path = job.folder.path
    return path.exists() and is_locked(path)


def read_results(root: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of results.jsonl by the number of the run."""
    file = root / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["run"]: row for row in rows}


def collect_results(root: Path, jobs: Sequence[Job]) -> dict[int, dict[str, Any]]:
    """Add each finished run to results.jsonl, and return its lines by the number of the run.

    A line stays if the folder of its run is removed.
    """
    results = read_results(root)
    before = len(results)
    for job in jobs:
        if job.number not in results and job.folder.summary.exists():
            results[job.number] = describe_result(job)
    results = dict(sorted(results.items()))
    if len(results) > before:
        lines = [json.dumps(row) + "\n" for row in results.values()]
        write_text(root / "results.jsonl", "".join(lines))
    return results


def describe_result(job: Job) -> dict[str, Any]:
    """Return the line of results.jsonl of a finished run."""
    run = job.folder
    summary = json.loads(run.summary.read_text())
    config = yaml.safe_load(run.config.read_text())
    settings = dict(config["settings"])
    for name in PLACES:
        settings.pop(name, None)
    last = run.rows()[-1]
    return {
        "run": job.number,
        "levels": dict(job.levels),
        "seed": settings["seed"],
        **{name: summary[name] for name in ("epochs", "step", "kNN_accuracy", "kNN_untrained")},
        **{name: summary[name] for name in ("train_loss", "z_std", "seconds")},
        "rankme": last.get("rankme"),
        "settings": settings,
        "resolved": config["resolved"],
        "versions": config["versions"],
    }
