"""The README's commands and code, as they stand."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
Program = Callable[..., tuple[int, str, str]]


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in fences if name == language]


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
OURS = [line.split("main.py", 1)[1] for line in COMMANDS if "main.py" in line]
CODE = blocks("python")


def test_there_is_something_to_check() -> None:
    assert len(OURS) >= 3
    assert len(CODE) >= 3


@pytest.mark.parametrize("flags", OURS)
def test_each_command_is_accepted_and_says_what_it_would_train(flags: str, program: Program, tmp_path: Path) -> None:
    status, out, err = program(*shlex.split(flags), "--data-dir", str(tmp_path / "none"), "--dry-run")
    assert (status, err) == (0, "")
    assert "train and" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/simsiam_cifar10` is a finished run of the default network (on few images)."""
    folder = tmp_path_factory.mktemp("readme")
    few = "--dataset patterns --train-images 64 --test-images 16 --knn-k 5 --batch-size 32 --epochs 1 --accelerator cpu"
    where = ["--save-dir", str(folder / "runs"), "--exp-name", "simsiam_cifar10"]
    assert main.main([*few.split(), *where]) == 0
    return folder


@pytest.mark.parametrize("code", CODE)
def test_each_piece_of_code_runs(code: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    exec(code, {})


def test_every_file_in_the_layout_exists_and_every_file_is_in_it() -> None:
    layout = next(block for block in blocks("") if block.startswith("main.py"))
    for package in ("simsiam", "models", "utils"):
        for file in (ROOT / package).glob("*.py"):
            assert file.name in layout or file.name == "__init__.py", file
    for name in re.findall(r"\b(\w+\.py)", layout):
        assert list(ROOT.glob(name)) or list(ROOT.glob(f"*/{name}")), name


def test_every_flag_that_the_readme_names_exists(program: Program) -> None:
    _, page, _ = program("--help")
    for flag in set(re.findall(r"`(--[a-z-]+)", README)):
        assert re.search(rf"{flag}\b", page), flag


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", "\n".join(COMMANDS)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
