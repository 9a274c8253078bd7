"""Searches whose trials are a script that computes nothing, so that a test needs no training.

The script does what a run does as far as a search can see it: it locks its folder, writes a row of
metrics.jsonl for each epoch, resumes after the rows that it finds, and ends with a signal or with
the process that has started it.
"""

import json
from pathlib import Path
from typing import Any

from tests.at_steps import run_with_child_script
from tests.helpers import NETWORK
from tests.processes import Started

SCRIPT = """
import fcntl, json, math, os, sys, time
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:] if "=" in flag)
study = flags["save-dir"]
folder = os.path.join(study, flags["exp-name"])
metrics = os.path.join(folder, "metrics.jsonl")
parent = os.getppid()
os.makedirs(folder, exist_ok=True)
lock = os.open(folder, os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

rows = []
if os.path.exists(metrics):
    rows = [json.loads(line) for line in open(metrics)]
with open(os.path.join(study, "starts"), "a") as file:
    file.write(f"{flags['exp-name']} {parent} {len(rows)}\\n")
if os.path.exists(os.path.join(study, "fail")):
    sys.exit("main.py: it does not work")

rate = float(flags.get("base-learning-rate", 0.03))
collapsed = float(flags.get("weight-decay", 5e-4)) > 2e-3
for epoch in range(len(rows) + 1, int(flags["epochs"]) + 1):
    rows.append({
        "epoch": epoch, "train_loss": -0.8, "z_std": 0.01 if collapsed else 0.9,
        "rankme": 1.0 if collapsed else 50.0,
        "kNN_accuracy": 10 * epoch - 10 * abs(math.log10(rate / 0.1)), "seconds": 0.01,
    })
    with open(metrics + ".partial", "w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows)
    os.replace(metrics + ".partial", metrics)
    while os.path.exists(os.path.join(study, "pause")):
        time.sleep(0.005)  # between two looks at the file
        if os.getppid() != parent:
            sys.exit(143)
"""


def search_flags(folder: Path, *flags: str) -> list[str]:
    data = "--dataset patterns --train-images 100 --test-images 16 --accelerator cpu"
    where = ["--save-dir", str(folder), "--exp-name", "study"]
    length = ["--epochs", "8", "--trial-epochs", "4"]
    return ["search", *data.split(), *NETWORK.split(), *where, *length, *flags]


def start_search(tmp_path: Path, *flags: str) -> Started:
    """Start a search in tmp_path/study, whose trials run SCRIPT."""
    script = tmp_path / "stub.py"
    script.write_text(SCRIPT)
    return Started(run_with_child_script, [str(script), *search_flags(tmp_path, *flags)])


def pause(tmp_path: Path) -> None:
    """Let each trial wait after its next epoch, until `go_on`."""
    (tmp_path / "study").mkdir(exist_ok=True)
    (tmp_path / "study" / "study.lock").touch()  # marks the folder as that of a search
    (tmp_path / "study" / "pause").touch()


def go_on(tmp_path: Path) -> None:
    (tmp_path / "study" / "pause").unlink()


def starts(tmp_path: Path) -> list[tuple[str, int, int]]:
    """Return run, process id of the worker, and epochs found, of each start of a trial."""
    file = tmp_path / "study" / "starts"
    found: list[tuple[str, int, int]] = []
    if file.exists():
        for line in file.read_text().splitlines():
            name, parent, epochs = line.split()
            found.append((name, int(parent), int(epochs)))
    return found


def epochs_of(tmp_path: Path, name: str) -> list[int]:
    """Return the epochs in the metrics of a trial."""
    file = tmp_path / "study" / name / "metrics.jsonl"
    if not file.exists():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["epoch"] for row in rows]
