"""Fixtures of all tests (the folder of CIFAR-10, small runs), and rules for the mark `slow`."""

import os
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import main
from tests.helpers import ROOT, SMALL, TINY, Program
from tests.images import CIFAR_FOLDER, patterns, write_images
from tests.processes import end_all

CIFAR10 = Path(os.environ.get("CIFAR10_DIR", "data"))
NO_CIFAR10 = (
    f"real CIFAR-10 is not in {CIFAR10}: set CIFAR10_DIR to the folder that contains {CIFAR_FOLDER}"
)


# ---------------------------------------------------------------- the quick suite and the full one

LEFT_OUT = pytest.StashKey[int]()  # number of tests that were deselected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Require a reason for each mark `slow`."""
    for item in items:
        for mark in item.iter_markers("slow"):
            has_reason = len(mark.args) == 1 and isinstance(mark.args[0], str)
            if not has_reason:
                raise pytest.UsageError(
                    f"{item.nodeid} is marked slow without a reason. Write slow('REASON')."
                )


def pytest_deselected(items: list[pytest.Item]) -> None:
    config = items[0].config
    config.stash[LEFT_OUT] = len(items)
    # A process of pytest-xdist has `workeroutput`, which it sends to the main process at its end.
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Read in the main process what a process of pytest-xdist has sent."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out > 0:
        terminalreporter.write_line(
            f"{left_out} tests were left out; `make test-all` runs them too"
        )


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> Iterator[None]:
    """Start the process from which others are forked, so that it imports torch during the tests."""
    folder = os.getcwd()
    os.chdir(ROOT)
    forkserver.ensure_running()
    os.chdir(folder)
    yield
    end_all()


# ---------------------------------------------------------------- data and runs


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """Return the folder of the real CIFAR-10, or skip the test.

    The images are not part of the repository. CI unpacks them before the tests.
    """
    if not (CIFAR10 / CIFAR_FOLDER).is_dir():
        pytest.skip(NO_CIFAR10)
    return CIFAR10.absolute()


@pytest.fixture(scope="session")
def real_images(cifar10_dir: Path) -> torch.Tensor:
    """Return the test split of CIFAR-10: (10,000, 3, 32, 32) uint8."""
    from torchvision.datasets import CIFAR10

    images = torch.from_numpy(CIFAR10(str(cifar10_dir), train=False).data)
    return images.permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run main.py in this process, with runs below tmp_path/runs.

    The fixture is a function. It takes the arguments and returns (exit status, stdout, stderr).
    """

    def run(*flags: str) -> tuple[int, str, str]:
        pretrains = not flags or flags[0].startswith("-") or flags[0] == "pretrain"
        writes_elsewhere = any(flag.startswith("--save-dir") for flag in flags)
        writes_nothing = any(flag.startswith("--help") for flag in flags)
        if pretrains and not writes_elsewhere and not writes_nothing:
            flags = (*flags, "--save-dir", str(tmp_path / "runs"))
        try:
            status = main.main(list(flags))
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Make a folder once for all test processes. Tests must not change it.

    The fixture is a function. It takes the folder's name and a function that fills the folder.
    """
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent  # the folder that all processes of pytest-xdist share

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = base / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = folder.with_name(f"{name}.{worker_id}")
                partial.mkdir()
                fill(partial)
                partial.rename(folder)
        return folder

    return make


def run_filler(*flags: str) -> Callable[[Path], None]:
    """Return a function for `make_once`, which trains a run in the folder."""

    def fill(folder: Path) -> None:
        assert main.main([*SMALL, *flags, "--save-dir", str(folder)]) == 0

    return fill


@pytest.fixture(scope="session")
def trained(make_once: MakeOnce) -> Path:
    """Return the folder of a finished run on patterns."""
    runs = make_once("trained", run_filler("--epochs", "2"))
    return runs / "simsiam_patterns"


@pytest.fixture(scope="session")
def cifar10_run(make_once: MakeOnce, cifar10_dir: Path) -> Path:
    """Return the folder of a finished run on a part of CIFAR-10, with the network of SMALL."""
    data = ["--dataset", "cifar10", "--data-dir", str(cifar10_dir)]
    images = ["--train-images", "1000", "--test-images", "500"]
    fill = run_filler(*data, *images, "--epochs", "2", "--knn-k", "200")
    runs = make_once("cifar10_run", fill)
    return runs / "simsiam_cifar10"


# ---------------------------------------------------------------- runs on a folder of images


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of generated images in torchvision's layout: 200 in train/, 60 in val/."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, patterns(200))
    write_images(folder, patterns(60, split=1), split="val")
    return folder


@pytest.fixture
def train_on_folder(program: Program, tmp_path: Path) -> Program:
    """Pre-train the network of TINY on a folder of images, with the cache in tmp_path/cache.

    The fixture is a function. It takes the folder and further flags, and returns the same as
    `program`.
    """

    def run(folder: Path, *flags: str) -> tuple[int, str, str]:
        data = ["--dataset", "folder", "--data-dir", str(folder)]
        cache = ["--cache-dir", str(tmp_path / "cache")]
        if "--image-size" not in flags:
            flags = ("--image-size", "32", *flags)
        return program(*TINY, *data, *cache, *flags)

    return run


@pytest.fixture(scope="session")
def folder_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run on `photos`, which read its images from the cache."""
    folder = tmp_path_factory.mktemp("folder_run")
    data = ["--dataset", "folder", "--data-dir", str(photos), "--image-size", "32"]
    cache = ["--cache-dir", str(folder / "cache"), "--data-memory", "0"]
    run = ["--save-dir", str(folder), "--exp-name", "run"]
    assert main.main([*TINY, *data, *cache, *run]) == 0
    return folder / "run"
