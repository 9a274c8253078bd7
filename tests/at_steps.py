"""Runs in which things happen at given steps, so that no test has to hit a moment of a process that runs."""

import itertools
import json
import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import main
from simsiam.config import commands
from tests.helpers import ROOT, SMALL, Started

Events = Mapping[int, Sequence[str | Path]]  # by step of SGD, counted from 1
LONG = (  # beside SMALL: six steps an epoch, a checkpoint every twelve
    *("--train-images", "60", "--batch-size", "10", "--epochs", "6"),
    *("--checkpoint-every", "2", "--knn-every", "2", "--image-schedule", "16:2", "24:2"),
)


def run_with_events(args: list[str]) -> int:
    """main.py with the rest of ARGS; ARGS[0] is JSON, step -> events before it.

    An event is the name of a signal, which the process sends to itself, or the path of a file: the
    file is made, and the step waits until somebody has removed it or a signal has come.
    """
    events: dict[str, list[str]] = json.loads(args[0])
    steps = itertools.count(1)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # a signal that a handler takes note of leaves a byte in the pipe

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            return
        for event in events.get(str(next(steps)), ()):
            if event.startswith("SIG"):
                signal.raise_signal(signal.Signals[event])
                continue
            file = Path(event)
            file.touch()
            while file.exists() and not select.select([reading], [], [], 0.002)[0]:
                pass

    register_optimizer_step_pre_hook(before_step)
    return main.main(args[1:])


def start_with_events(events: Events, *args: str, **environment: str) -> Started:
    """`python main.py ARGS`, with events."""
    return Started(run_with_events, [to_json(events), *args], **environment)


def to_json(events: Events) -> str:
    return json.dumps({step: list(map(str, some)) for step, some in events.items()})


def run_with_main(args: list[str]) -> int:
    """main.py with the rest of ARGS, whose own processes run the script ARGS[0] in its place."""
    commands.MAIN = Path(args[0])
    return main.main(args[1:])


def start_with_events_below(
    tmp_path: Path, events: Events, *args: str, **environment: str
) -> Started:
    """A command that starts processes of its own (`ablate`, `--devices 2`), with events in each."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from tests.at_steps import run_with_events\n"
    code += f"sys.exit(run_with_events([{to_json(events)!r}, *sys.argv[1:]]))\n"
    (tmp_path / "with_events.py").write_text(code)
    return Started(run_with_main, [str(tmp_path / "with_events.py"), *args], **environment)


def start_small_with_events(
    name: str, tmp_path: Path, events: Events, *flags: str, **environment: str
) -> Started:
    """A run of SMALL in tmp_path/runs/NAME, with events."""
    where = ("--save-dir", str(tmp_path / "runs"), "--exp-name", name)
    return start_with_events(events, *SMALL, *where, *flags, **environment)


def steps_saved(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]
