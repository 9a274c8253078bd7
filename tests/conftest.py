"""Fixtures of all tests: where CIFAR-10 is, and small runs of the real program. And what is left out of `make test`."""

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import main
from tests.helpers import ROOT, SMALL, TINY, Program, end_all, patterns, write_images

CIFAR10 = Path(os.environ.get("CIFAR10_DIR", "data"))
NO_CIFAR10 = f"real CIFAR-10 is not in {CIFAR10}: set CIFAR10_DIR to the folder that holds cifar-10-batches-py"


# ---------------------------------------------------------------- the quick suite and the full one

LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("slow"):
            if not (len(mark.args) == 1 and isinstance(mark.args[0], str)):
                raise pytest.UsageError(
                    f"{item.nodeid}: a reason must stand beside the mark `slow`"
                )


def pytest_deselected(items: list[pytest.Item]) -> None:
    config = items[0].config
    config.stash[LEFT_OUT] = len(items)
    if hasattr(config, "workeroutput"):  # of a process that pytest-xdist has started
        config.workeroutput["left_out"] = len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{left_out} tests were left out; `make test-all` runs them too"
        )


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> Iterator[None]:
    """The process that others are forked from is started at once: it imports while the first tests run."""
    here = os.getcwd()
    os.chdir(ROOT)
    forkserver.ensure_running()
    os.chdir(here)
    yield
    end_all()


# ---------------------------------------------------------------- runs to look at


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    if not (CIFAR10 / "cifar-10-batches-py").is_dir():
        pytest.skip(
            NO_CIFAR10
        )  # the images are nobody's to commit; `-rs` prints this line, and CI unpacks them
    return CIFAR10.absolute()


@pytest.fixture(scope="session")
def real_images(cifar10_dir: Path) -> torch.Tensor:
    """(10,000, 3, 32, 32) uint8: the test split of CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return (
        torch.from_numpy(CIFAR10(str(cifar10_dir), train=False).data)
        .permute(0, 3, 1, 2)
        .contiguous()
    )


@pytest.fixture
def program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run main.py in this process, with runs below tmp_path/runs: (exit status, stdout, stderr)."""

    def run(*flags: str) -> tuple[int, str, str]:
        given = any(f.startswith(("--save-dir", "--help")) for f in flags)
        other = bool(flags) and not flags[0].startswith("-") and flags[0] != "pretrain"
        save_dir = [] if given or other else ["--save-dir", str(tmp_path / "runs")]
        try:
            status = main.main([*flags, *save_dir])
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            for number, usual in main.DEFAULTS.items():  # a Ctrl-C is for pytest again
                if signal.getsignal(number) is main.stop:
                    signal.signal(number, usual)
        return status, *capsys.readouterr()

    return run


Made = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Made:
    """A folder of that name, filled by a function: once for all workers. Tests only read it."""
    base = tmp_path_factory.getbasetemp()

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = (base if worker_id == "master" else base.parent) / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = folder.with_name(f"{name}.{worker_id}")
                partial.mkdir()
                fill(partial)
                partial.rename(folder)
        return folder

    return make


def train(*flags: str) -> Callable[[Path], None]:
    """Fills a folder with a run."""

    def fill(folder: Path) -> None:
        assert main.main([*SMALL, *flags, "--save-dir", str(folder)]) == 0

    return fill


@pytest.fixture(scope="session")
def trained(made: Made) -> Path:
    """A finished run on patterns."""
    return made("trained", train("--epochs", "2")) / "simsiam_patterns"


@pytest.fixture(scope="session")
def cifar10_run(made: Made, cifar10_dir: Path) -> Path:
    """A finished run on a part of the real CIFAR-10, as small as SMALL."""
    images = [
        "--dataset",
        "cifar10",
        "--data-dir",
        str(cifar10_dir),
        "--train-images",
        "1000",
        "--test-images",
        "500",
    ]
    return (
        made("cifar10_run", train(*images, "--epochs", "2", "--knn-k", "200")) / "simsiam_cifar10"
    )


# ---------------------------------------------------------------- one's own images


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in torchvision's layout: 200 to train on, 60 in val/."""
    where = tmp_path_factory.mktemp("photos")
    write_images(where, patterns(200))
    write_images(where, patterns(60, 1), split="val")
    return where


@pytest.fixture
def own(program: Program, tmp_path: Path) -> Program:
    """Pre-train the tiny network on a folder, decoded below tmp_path/cache."""

    def run(folder: Path, *flags: str) -> tuple[int, str, str]:
        flags = ("--image-size", "32", *flags) if "--image-size" not in flags else flags
        given = (
            "--dataset",
            "folder",
            "--data-dir",
            str(folder),
            "--cache-dir",
            str(tmp_path / "cache"),
        )
        return program(*TINY, *given, *flags)

    return run


@pytest.fixture(scope="session")
def own_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("own_run")
    given = [
        "--dataset",
        "folder",
        "--data-dir",
        str(photos),
        "--image-size",
        "32",
        "--exp-name",
        "run",
    ]
    given += ["--cache-dir", str(where / "cache"), "--data-memory", "0"]
    assert main.main([*TINY, *given, "--save-dir", str(where)]) == 0
    return where / "run"
