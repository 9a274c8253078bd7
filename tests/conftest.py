"""Shared by all tests: where CIFAR-10 is, and small runs of the real program."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from simsiam.patterns import CLASSES, make_patterns
from simsiam.splits import Images

Program = Callable[..., tuple[int, str, str]]
CIFAR10 = Path(os.environ.get("CIFAR10_DIR", "data"))
NO_CIFAR10 = f"real CIFAR-10 is not in {CIFAR10}: set CIFAR10_DIR to the folder that holds cifar-10-batches-py"

SMALL = [
    *("--dataset", "patterns", "--train-images", "400", "--test-images", "100", "--knn-k", "20"),
    *("--backbone", "resnet10", "--width", "4", "--out-dim", "32", "--h-dim", "16", "--batch-size", "100"),
    *("--accelerator", "cpu"),
]


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    if not (CIFAR10 / "cifar-10-batches-py").is_dir():
        pytest.skip(NO_CIFAR10)  # the images are nobody's to commit; `-rs` prints this line, and CI unpacks them
    return CIFAR10.absolute()


@pytest.fixture(scope="session")
def real_images(cifar10_dir: Path) -> torch.Tensor:
    """(10,000, 3, 32, 32) uint8: the test split of CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return torch.from_numpy(CIFAR10(str(cifar10_dir), train=False).data).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run main.py in this process, with runs below tmp_path/runs: (exit status, stdout, stderr)."""

    def run(*flags: str) -> tuple[int, str, str]:
        given = any(f.startswith(("--save-dir", "--help")) for f in flags)
        other = bool(flags) and not flags[0].startswith("-") and flags[0] != "pretrain"
        save_dir = [] if given or other else ["--save-dir", str(tmp_path / "runs")]
        try:
            status = main.main([*flags, *save_dir])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on patterns. Tests read it; what they write goes elsewhere."""
    folder = tmp_path_factory.mktemp("trained")
    assert main.main([*SMALL, "--epochs", "2", "--save-dir", str(folder)]) == 0
    return folder / "simsiam_patterns"


@pytest.fixture(scope="session")
def cifar10_run(tmp_path_factory: pytest.TempPathFactory, cifar10_dir: Path) -> Path:
    """A finished run on a part of the real CIFAR-10, as small as SMALL."""
    folder = tmp_path_factory.mktemp("cifar10")
    images = ["--dataset", "cifar10", "--data-dir", str(cifar10_dir), "--train-images", "2000", "--test-images", "500"]
    assert main.main([*SMALL, *images, "--epochs", "2", "--knn-k", "200", "--save-dir", str(folder)]) == 0
    return folder / "simsiam_cifar10"


# ---------------------------------------------------------------- one's own images

TINY = [
    *("--backbone", "resnet10", "--width", "4", "--out-dim", "32", "--h-dim", "16", "--batch-size", "50"),
    *("--accelerator", "cpu", "--knn-k", "20", "--epochs", "1"),
]


def write_images(
    folder: Path, images: Images, layout: str = "{split}/{name}/{i:05d}.png", split: str = "train"
) -> None:
    """A PNG file of each image."""
    names = images.names(images.labels.tolist())
    for i, (image, name) in enumerate(zip(images.images, names, strict=True)):
        file = folder / layout.format(split=split, name=name, i=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, compress_level=1)


def patterns(n: int, split: int = 0) -> Images:
    return Images(*make_patterns(n, split), classes=CLASSES)


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
        given = ("--dataset", "folder", "--data-dir", str(folder), "--cache-dir", str(tmp_path / "cache"))
        return program(*TINY, *given, *flags)

    return run


@pytest.fixture(scope="session")
def own_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("own_run")
    given = ["--dataset", "folder", "--data-dir", str(photos), "--image-size", "32", "--exp-name", "run"]
    given += ["--cache-dir", str(where / "cache"), "--data-memory", "0"]
    assert main.main([*TINY, *given, "--save-dir", str(where)]) == 0
    return where / "run"
