"""Small runs whose results are kept, so that a change which is to compute the same can prove that it does.

`python tests/goldens.py --write` makes the files in tests/golden/, one a run: digest and norms of the weights,
metrics.jsonl without times, the files in the run's folder and what was printed. tests/test_goldens.py compares.

tests/golden/before_the_move.ckpt is no leaving of a run: it is a checkpoint of an older version of the program, which a
test goes on from.

Floating-point sums depend on the processor and on torch. Where a fixed computation gives the digest that it gave where
the files were written, all must be equal to the bit; elsewhere numbers must agree within TOLERANCE.
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
from tests.helpers import Started, patterns, rows, start, start_pair, weights, write_images

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = 1e-5
NETWORK = [
    *(
        "--backbone",
        "resnet10",
        "--width",
        "4",
        "--out-dim",
        "32",
        "--h-dim",
        "16",
        "--batch-size",
        "20",
    ),
    *("--accelerator", "cpu", "--precision", "32", "--knn-k", "20", "--checkpoint-every", "1000"),
]
PATTERNS = ["--dataset", "patterns", "--train-images", "80", "--test-images", "40"]
FLAGS = [*PATTERNS, *NETWORK, "--epochs", "2"]
MASKS = (
    (r"\d+ images/s", "N images/s"),
    (r"\b\d:\d\d:\d\d\b", "H:MM:SS"),
    (r"(in|of) [\d.]+ s\b", r"\1 N s"),
    (r"cache/[0-9a-f]{16}", "cache/HASH"),
    (r"\S*python -m", "python -m"),
    (r"about \d+ \w+ on this CPU", "about N on this CPU"),
    (r"python main\.py|\S+python \S*main\.py", "python main.py"),
)

Record = dict[str, Any]


def finish(*processes: Started) -> str:
    """What the first of them printed, once all have ended well."""
    printed = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), printed
    return printed[0][0]


def plain(folder: Path, save: list[str]) -> str:
    return finish(start(*FLAGS, *save))


def three_views_without_predictor(folder: Path, save: list[str]) -> str:
    return finish(start(*FLAGS, *save, "--views", "3", "--no-predictor"))


def streamed_folder(folder: Path, save: list[str]) -> str:
    write_images(folder / "photos", patterns(80))
    write_images(folder / "photos", patterns(40, 1), split="val")
    images = [
        "--dataset",
        "folder",
        "--data-dir",
        str(folder / "photos"),
        "--cache-dir",
        str(folder / "cache"),
    ]
    streamed = ("--image-size", "32", "--data-memory", "0", "--epochs", "1")
    return finish(start(*NETWORK, *images, *streamed, *save))


def resumed_in_the_middle_of_an_epoch(folder: Path, save: list[str]) -> str:
    stopped = start_with_events({6: ["SIGTERM"]}, *FLAGS, *save)  # of four steps an epoch
    out, _ = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    return out + finish(start(*FLAGS, *save))


def two_processes(folder: Path, save: list[str]) -> str:
    return finish(*start_pair(*FLAGS, *save))


RUNS: dict[str, Callable[[Path, list[str]], str]] = {
    run.__name__: run
    for run in (
        plain,
        three_views_without_predictor,
        streamed_folder,
        resumed_in_the_middle_of_an_epoch,
        two_processes,
    )
}


def record(name: str, folder: Path) -> Record:
    """Train a run below `folder`; what it gave."""
    printed = RUNS[name](folder, ["--save-dir", str(folder / "runs"), "--exp-name", "run"])
    run = folder / "runs" / "run"
    state = weights(run)
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].numpy().tobytes())
    printed = printed.replace(str(folder), "FOLDER")
    for pattern, mask in MASKS:
        printed = re.sub(pattern, mask, printed)
    files = (str(file.relative_to(run)) for file in run.rglob("*") if file.is_file())
    return {
        "weights": digest.hexdigest(),
        "norms": {key: state[key].double().norm().item() for key in sorted(state)},
        "rows": rows(run),
        "files": sorted(re.sub(r"tfevents\..*", "tfevents", file) for file in files),
        "printed": printed.splitlines(),
    }


def rounding() -> str:
    """A digest of how this machine and this torch round: three steps of torchvision's ResNet-18 on one thread."""
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


def write(name: str, content: Any) -> None:
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
