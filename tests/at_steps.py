"""Start runs in which something happens before given steps, such as a signal.

With these, no test needs to wait for the right moment of a run.
"""

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
from tests.helpers import ROOT, SMALL
from tests.processes import Started

# The events before a step of SGD, by the number of the step, which is counted from 1.
Events = Mapping[int, Sequence[str | Path]]

# Flags in addition to SMALL: an epoch has 6 steps, and a checkpoint is saved every 12 steps.
LONG = (
    *("--train-images", "60", "--batch-size", "10", "--epochs", "6"),
    *("--checkpoint-every", "2", "--knn-every", "2", "--image-schedule", "16:2", "24:2"),
)


def run_with_events(args: list[str]) -> int:
    """Run main.py, and make events happen before steps of SGD.

    Args:
        args: the first one is a JSON object of lists of events by step. The others are the
            arguments of main.py. An event is the name of a signal or the path of a file. The
            process sends the signal to itself. It creates the file, and waits until the file is
            removed or a signal comes.
    """
    events: dict[str, list[str]] = json.loads(args[0])
    steps = itertools.count(1)

    # Python writes a byte into this pipe whenever a signal with a handler comes.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            return
        step = next(steps)
        for event in events.get(str(step), ()):
            if event.startswith("SIG"):
                signal.raise_signal(signal.Signals[event])
            else:
                wait_for_removal(Path(event))

    def wait_for_removal(file: Path) -> None:
        file.touch()
        signalled = False
        while file.exists() and not signalled:
            readable, _, _ = select.select([reading], [], [], 0.002)
            signalled = bool(readable)

    register_optimizer_step_pre_hook(before_step)
    return main.main(args[1:])


def send_signals_before_steps(signals: Mapping[str, Sequence[str]]) -> None:
    """Let this process send signals to itself before steps of SGD, which are counted from 1."""
    steps = itertools.count(1)

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if isinstance(optimizer, torch.optim.SGD):
            for name in signals.get(str(next(steps)), ()):
                signal.raise_signal(signal.Signals[name])

    register_optimizer_step_pre_hook(before_step)


def start_with_events(events: Events, *args: str, **environment: str) -> Started:
    """Start `python main.py ARGS` with events."""
    return Started(run_with_events, [to_json(events), *args], **environment)


def to_json(events: Events) -> str:
    texts = {}
    for step, events_of_step in events.items():
        texts[step] = [str(event) for event in events_of_step]
    return json.dumps(texts)


def run_with_child_script(args: list[str]) -> int:
    """Run main.py. The processes that it starts run the script ARGS[0] instead of main.py."""
    commands.MAIN = Path(args[0])
    return main.main(args[1:])


SCRIPT_WITH_EVENTS = """\
import sys
sys.path.insert(0, {root!r})
from tests.at_steps import run_with_events
sys.exit(run_with_events([{events!r}, *sys.argv[1:]]))
"""


def start_with_events_below(
    tmp_path: Path, events: Events, *args: str, **environment: str
) -> Started:
    """Start a command that starts processes (`ablate`, `--devices 2`), with events in each."""
    script = tmp_path / "with_events.py"
    script.write_text(SCRIPT_WITH_EVENTS.format(root=str(ROOT), events=to_json(events)))
    return Started(run_with_child_script, [str(script), *args], **environment)


def start_small_with_events(
    name: str, tmp_path: Path, events: Events, *flags: str, **environment: str
) -> Started:
    """Start a run with the flags of SMALL in tmp_path/runs/NAME, with events."""
    folder = ("--save-dir", str(tmp_path / "runs"), "--exp-name", name)
    return start_with_events(events, *SMALL, *folder, *flags, **environment)


def steps_saved(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]
