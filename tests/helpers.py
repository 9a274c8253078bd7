"""Shared by the tests: small runs, what a run leaves behind, and processes forked from a warm one."""

import atexit
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import main
from simsiam.data.dataset import ImageDataset
from simsiam.data.synthetic import CLASSES, make_patterns

ROOT = Path(__file__).parent.parent
Program = Callable[..., tuple[int, str, str]]
TIMES = ("seconds", "images_per_second")
TAGS, CIFAR_FOLDER = (
    ("kNN_accuracy", "rankme", "train_loss", "z_std", "learning_rate"),
    "cifar-10-batches-py",
)


def limit_memory(room: int) -> None:
    """Have the kernel give this process no more than `room` bytes beyond what it has."""
    limit = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


# ---------------------------------------------------------------- small runs

CHEAP = (
    "--image-schedule",
    "8:1000",
    "--checkpoint-every",
    "1000",
)  # small views; no checkpoint by the clock
SMALL = [
    *("--dataset", "patterns", "--train-images", "200", "--test-images", "100", "--knn-k", "20"),
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
        "50",
    ),
    *("--accelerator", "cpu", "--precision", "32", "--pictures-every", "50", *CHEAP),
]
TINY = [
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
        "50",
    ),
    *("--accelerator", "cpu", "--precision", "32", "--knn-k", "20", "--epochs", "1", *CHEAP),
]


def is_announcement(out: str) -> bool:
    """Whether nothing is printed beyond what is asked for."""
    return out == "" or (out.startswith("SimSiam on ") and out.count("\n") == 4)


# ---------------------------------------------------------------- processes

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["tests.helpers", "simsiam.commands.pretrain"])


class Started:
    """A process forked from one that has imported the program already, used like a `subprocess.Popen`.

    A fresh start of Python with torch and Lightning takes 4 to 7 s of processor time, a fork none. What is inherited
    (arguments, environment, signal handlers, standard streams) is set as a fresh start would find it.

    Args:
        function: takes the arguments, returns the exit status; found again by its name in the new process.
        environment: variables beside those of this process.
    """

    def __init__(
        self, function: Callable[[list[str]], int], args: list[str], **environment: str
    ) -> None:
        self._streams = [Path(tempfile.mkstemp(dir=_streams_folder())[1]) for _ in ("out", "err")]
        self._process = WARM.Process(
            target=_run,
            args=(function, args, {**os.environ, **environment}, self._streams),
            daemon=False,
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def printed(self) -> tuple[str, str]:
        """stdout and stderr so far."""
        out, err = (stream.read_text() for stream in self._streams)
        return out, err

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.printed()}")
        return self.printed()


@cache
def _streams_folder() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def _run(
    function: Callable[[list[str]], int],
    args: list[str],
    environment: dict[str, str],
    files: list[Path],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, tempfile.tempdir = ["main.py", *args], None
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    for number, handler in main.DEFAULTS.items():
        signal.signal(number, handler)
    sys.exit(function(args))


def start(*args: str, **environment: str) -> Started:
    """`python main.py ARGS`."""
    return Started(main.main, list(args), **environment)


def as_nobody(args: list[str]) -> int:
    """main.py as a user who owns nothing; only root can become one."""
    importlib.import_module("simsiam.commands.knn")  # while its file may be read
    importlib.import_module("PIL.PngImagePlugin")
    os.setresuid(65534, 65534, 65534)
    return main.main(args)


def start_small(name: str, tmp_path: Path, *flags: str, **environment: str) -> Started:
    """A run of SMALL in tmp_path/runs/NAME."""
    return start(
        *SMALL, "--save-dir", str(tmp_path / "runs"), "--exp-name", name, *flags, **environment
    )


def start_pair(*args: str) -> list[Started]:
    """`python main.py ARGS` in two processes, as torchrun starts them, but without torchrun."""
    return [start(*args, **told) for told in torchrun_environments()]


def end_all() -> None:
    """Kill what a failed test has left running."""
    for process in multiprocessing.active_children():
        process.kill()


def wait_for(process: Started, there: Callable[[], bool]) -> None:
    """Return as soon as a condition holds while a process runs; polled every 2 ms, for four minutes."""
    deadline = time.monotonic() + 240
    while not there():
        assert process.returncode is None, process.printed()
        assert time.monotonic() < deadline
        time.sleep(0.002)  # between two polls


def children(process: Started) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def torchrun_environments() -> list[dict[str, str]]:
    """The environment that torchrun gives to each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }
    shared |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


# ---------------------------------------------------------------- what a run leaves behind


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same_weights(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each point in TensorBoard, by tag."""
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in TAGS}


def same_run(run: Path, undisturbed: Path) -> bool:
    """Weights, rows and curves, to the bit; no point of a curve twice or missing."""
    same_curves = curves(run) == curves(undisturbed)
    return same_curves and rows(run) == rows(undisturbed) and same_weights(run, undisturbed)


# ---------------------------------------------------------------- images


def patterns(n: int, split: int = 0) -> ImageDataset:
    return ImageDataset(*make_patterns(n, split), classes=CLASSES)


def write_images(
    folder: Path,
    images: ImageDataset,
    layout: str = "{split}/{name}/{i:05d}.png",
    split: str = "train",
) -> None:
    """A PNG file of each image."""
    names = images.names(images.labels.tolist())
    for i, (image, name) in enumerate(zip(images.images, names, strict=True)):
        file = folder / layout.format(split=split, name=name, i=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, compress_level=1)


def picture(size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Smooth, so that a lossy format keeps it, and different in each corner and channel."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    return Image.fromarray((255 * np.stack([x, y, 1 - x], axis=2)).astype(np.uint8))


def bad_folder(folder: Path) -> dict[str, str]:
    """Bad file -> what is said of it; among them lies one good image."""
    picture().save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    content = {
        "empty.png": b"",
        "text.jpg": b"not an image at all",
        "truncated.png": whole[: len(whole) // 2],
    }
    content["page.webp"] = b"<!DOCTYPE html><html></html>"
    content["script.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    Image.fromarray(np.random.default_rng(0).random((9, 9)).astype(np.float32)).save(
        folder / "float.tif"
    )
    return {
        **dict.fromkeys(("empty.png", "text.jpg", "page.webp", "script.png"), "not an image"),
        "truncated.png": "truncated",
        "dangling.png": "No such file",
        "float.tif": "no known scale",
    }


def linked(cifar10_dir: Path, root: Path, without: tuple[str, ...] = ()) -> Path:
    """A data folder of links to the real files of CIFAR-10."""
    (root / CIFAR_FOLDER).mkdir(parents=True)
    for file in (cifar10_dir / CIFAR_FOLDER).iterdir():
        if file.name not in without:
            (root / CIFAR_FOLDER / file.name).symlink_to(file)
    return root


def cifar_stem(network: nn.Module) -> nn.Module:
    """torchvision's or timm's ResNet with the stem for small images and without a classifier."""
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network.to(
        memory_format=torch.channels_last
    )  # ours has it: the same kernels, the same order of sums


# ---------------------------------------------------------------- bad files

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch HACKED",)


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
