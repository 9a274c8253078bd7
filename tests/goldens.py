"""Small runs whose results are stored, to show that a change computes the same as before.

`python tests/goldens.py --write` writes a file in tests/golden/ for each run. It has a digest and
the norms of the weights, metrics.jsonl without times, the names of the files in the run's folder,
and what was printed. tests/test_goldens.py repeats the runs and compares.

tests/golden/before_the_move.ckpt is not written by this script. It is a checkpoint of a version
before classes and files were moved and renamed. A test resumes it.

Floating-point sums depend on the processor and on torch. `rounding` is a digest of a fixed
computation. If it is the same as on the machine that wrote the files, all results must be equal to
the bit. Otherwise numbers must agree within TOLERANCE.
"""

import argparse
import hashlib
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torchvision.models import resnet18

from tests.at_steps import start_with_events
from tests.helpers import load_weights, read_rows
from tests.images import patterns, write_images
from tests.processes import Started, start, start_pair

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = 1e-5

SIZES = "--backbone resnet10 --width 4 --out-dim 32 --h-dim 16 --batch-size 20 --knn-k 20"
CPU = "--accelerator cpu --precision 32 --checkpoint-every 1000"
NETWORK = f"{SIZES} {CPU}".split()
PATTERNS = ["--dataset", "patterns", "--train-images", "80", "--test-images", "40"]
FLAGS = [*PATTERNS, *NETWORK, "--epochs", "2"]

# Patterns of printed text that differs between two runs, and the text that replaces it.
MASKS = (
    (r"[\d,]+ images/s", "N images/s"),
    (r"\b\d:\d\d:\d\d\b", "H:MM:SS"),
    (r"(in|of) [\d.]+ s\b", r"\1 N s"),
    (r"cache/[0-9a-f]{16}", "cache/HASH"),
    (r"\S*python -m", "python -m"),
    (r"about \d+ \w+ on this CPU", "about N on this CPU"),
    (r"python main\.py|\S+python \S*main\.py", "python main.py"),
)

Record = dict[str, Any]


# ---------------------------------------------------------------- the runs
# Each function trains a run and returns what the run printed. `save` has the flags --save-dir and
# --exp-name of the run. `folder` is a temporary folder for other files.


def finish(*processes: Started) -> str:
    """Wait for the processes, check that all ended well, and return the stdout of the first one."""
    printed = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), printed
    return printed[0][0]


def plain(folder: Path, save: list[str]) -> str:
    return finish(start(*FLAGS, *save))


def three_views_without_predictor(folder: Path, save: list[str]) -> str:
    return finish(start(*FLAGS, *save, "--views", "3", "--no-predictor"))


def streamed_folder(folder: Path, save: list[str]) -> str:
    photos = folder / "photos"
    write_images(photos, patterns(80))
    write_images(photos, patterns(40, split=1), split="val")
    data = ["--dataset", "folder", "--data-dir", str(photos), "--image-size", "32"]
    streamed = ["--cache-dir", str(folder / "cache"), "--data-memory", "0"]
    return finish(start(*NETWORK, *data, *streamed, "--epochs", "1", *save))


def resumed_in_the_middle_of_an_epoch(folder: Path, save: list[str]) -> str:
    stopped = start_with_events({6: ["SIGTERM"]}, *FLAGS, *save)  # an epoch has four steps
    out, _ = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    return out + finish(start(*FLAGS, *save))


def two_processes(folder: Path, save: list[str]) -> str:
    return finish(*start_pair(*FLAGS, *save))


RUNS: dict[str, Callable[[Path, list[str]], str]] = {
    "plain": plain,
    "three_views_without_predictor": three_views_without_predictor,
    "streamed_folder": streamed_folder,
    "resumed_in_the_middle_of_an_epoch": resumed_in_the_middle_of_an_epoch,
    "two_processes": two_processes,
}


# ---------------------------------------------------------------- their results


def record(name: str, folder: Path) -> Record:
    """Train a run below `folder`, and return its results."""
    printed = RUNS[name](folder, ["--save-dir", str(folder / "runs"), "--exp-name", "run"])
    printed = printed.replace(str(folder), "FOLDER")
    for pattern, mask in MASKS:
        printed = re.sub(pattern, mask, printed)

    run = folder / "runs" / "run"
    state = load_weights(run)
    digest = hashlib.sha256()
    norms = {}
    for key in sorted(state):
        digest.update(key.encode() + state[key].numpy().tobytes())
        norms[key] = state[key].double().norm().item()

    files = []
    for file in run.rglob("*"):
        if file.is_file():
            path = str(file.relative_to(run))
            files.append(re.sub(r"tfevents\..*", "tfevents", path))
    return {
        "weights": digest.hexdigest(),
        "norms": norms,
        "rows": read_rows(run),
        "files": sorted(files),
        "printed": printed.splitlines(),
    }


def rounding() -> str:
    """Return a digest that shows how this machine and this version of torch round.

    The computation is three steps of torchvision's ResNet-18 on one thread.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = resnet18(num_classes=16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    for _ in range(3):
        network(torch.randn(20, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    digest = hashlib.sha256(torch.__version__.encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read(name: str) -> Record:
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str, content: Record) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def command_line() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", required=True, help="replace the files in tests/golden/"
    )
    parser.parse_args()
    write("machine", {"torch": torch.__version__, "rounding": rounding()})
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            write(name, record(name, Path(folder)))
        print(f"wrote {FOLDER / name}.json")


if __name__ == "__main__":
    command_line()
