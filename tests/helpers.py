"""Small runs of the program, and what a run leaves in its folder.

tests/processes.py starts processes, and tests/images.py makes images.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.processes import Started, start

ROOT = Path(__file__).parent.parent
Program = Callable[..., tuple[int, str, str]]  # the fixture `program`


# ---------------------------------------------------------------- small runs

NETWORK = "--backbone resnet10 --width 4 --out-dim 32 --h-dim 16 --batch-size 50 --knn-k 20"
CPU = "--accelerator cpu --precision 32"
CHEAP = "--image-schedule 8:1000 --checkpoint-every 1000"  # small views, no checkpoint by the clock
PATTERNS = "--dataset patterns --train-images 200 --test-images 100 --pictures-every 50"
SMALL = f"{PATTERNS} {NETWORK} {CPU} {CHEAP}".split()
TINY = f"{NETWORK} {CPU} --epochs 1 {CHEAP}".split()


def start_small(name: str, tmp_path: Path, *flags: str, **environment: str) -> Started:
    """Start a run with the flags of SMALL in tmp_path/runs/NAME."""
    folder = ["--save-dir", str(tmp_path / "runs"), "--exp-name", name]
    return start(*SMALL, *folder, *flags, **environment)


def prints_only_header(out: str) -> bool:
    """Return whether the program printed nothing, or only the four lines at a run's start."""
    return out == "" or (out.startswith("SimSiam on ") and out.count("\n") == 4)


def limit_memory(room: int) -> None:
    """Let the kernel give this process at most `room` more bytes than it has now."""
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.split("VmData:")[1].split()[0])
    limit = 1024 * kibibytes + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


# ---------------------------------------------------------------- what a run leaves in its folder

TIMES = ("seconds", "images_per_second")
TAGS = ("kNN_accuracy", "rankme", "train_loss", "z_std", "learning_rate")


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def read_summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of last.ckpt."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_weights(a: Path, b: Path) -> bool:
    x = load_weights(a)
    y = load_weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each point in TensorBoard, by tag."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in TAGS}


def same_run(run: Path, undisturbed: Path) -> bool:
    """Return whether weights, rows and curves are equal to the bit.

    So no point of a curve is missing or there twice.
    """
    same_curves = read_curves(run) == read_curves(undisturbed)
    same_rows = read_rows(run) == read_rows(undisturbed)
    return same_curves and same_rows and same_weights(run, undisturbed)


# ---------------------------------------------------------------- networks


def with_cifar_stem(network: nn.Module) -> nn.Module:
    """Give torchvision's or timm's ResNet the stem for small images, and remove its classifier."""
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    # Our networks use channels_last. With it, these use the same kernels and sum in the same order.
    return network.to(memory_format=torch.channels_last)


def measure_alone(code: str, *args: object) -> list[int]:
    """Run code in a new process, and return the numbers that it prints.

    Memory is measured in this way, because what else happens in this process allocates too.

    Args:
        args: `sys.argv[1:]` of the code.
    """
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(number) for number in result.stdout.split()]
