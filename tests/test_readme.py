"""The README's commands and code, as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import main
from simsiam.config import commands
from tests.helpers import ROOT, Program

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in fences if name == language]


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
OURS = [line.split("main.py", 1)[1] for line in COMMANDS if "main.py" in line]
CODE = blocks("python")


def test_there_is_something_to_check() -> None:
    assert len(PRETRAIN) >= 3 and {flags.split()[0] for flags in USE} == set(commands.COMMANDS) - {"pretrain"}
    assert len(CODE) >= 3


PRETRAIN = [flags for flags in OURS if flags.split()[:1] == [] or flags.split()[0].startswith("-")]
USE = [flags for flags in OURS if flags not in PRETRAIN]


@pytest.mark.parametrize("flags", PRETRAIN)
def test_each_command_is_accepted_and_says_what_it_would_train(flags: str, program: Program, tmp_path: Path) -> None:
    status, out, err = program(*shlex.split(flags), "--data-dir", str(tmp_path / "none"), "--dry-run")
    assert (status, err) == (0, "")
    assert "train and" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, in which `runs/simsiam_cifar10` is a finished run of a narrow network, on few images."""
    return make_run(tmp_path_factory.mktemp("readme"), "--width 4 --train-images 200 --batch-size 50")


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the default network, for code that wants its shapes."""
    return make_run(tmp_path_factory.mktemp("wide"), "--train-images 6 --batch-size 2 --knn-every 0")


def make_run(folder: Path, flags: str) -> Path:
    few = f"--dataset patterns --test-images 16 --knn-k 5 --epochs 1 --accelerator cpu {flags}"
    where = ["--save-dir", str(folder / "runs"), "--exp-name", "simsiam_cifar10"]
    assert main.main([*few.split(), *where]) == 0
    (folder / "photos").mkdir()
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "photo.jpg")
    (folder / "photos" / "one.jpg").write_bytes((folder / "photo.jpg").read_bytes())
    return folder


@pytest.mark.parametrize("flags", USE)
def test_each_further_command_runs_as_it_stands(
    flags: str, trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    shorter = ["--epochs", "1"] if "finetune" in flags or "--augment" in flags else []
    if "ablate" in flags:
        shorter += ["--dry-run"]
        (tmp_path / "stub.py").write_text("")  # in the place of each run's process: settings are read before that
        monkeypatch.setattr(commands, "MAIN", tmp_path / "stub.py")
    status, out, err = program(*shlex.split(flags), *shorter)
    made = {"report": "index.html", "ablate": "1 of "}.get(flags.split()[0], "summary.json")
    assert (status, err) == (0, "") and made in out


@pytest.mark.parametrize("code", CODE)
def test_each_piece_of_code_runs(
    code: str, trained: Path, full_width: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_width if "resnet18" in code else trained)
    for file, made_by in (("head.safetensors", " linear "), ("features.npz", " embed ")):  # what the code reads
        if file in code and not list(trained.rglob(file)):  # should this test be run alone
            assert program(*shlex.split(next(flags for flags in USE if made_by in flags)))[0] == 0
    exec(code, {})


def test_every_folder_is_in_the_layout() -> None:
    layout = next(block for block in blocks("") if block.startswith("main.py"))
    for package in ("simsiam", "models", "utils", "tests"):
        assert f"{package}/" in layout
    for room in (ROOT / "simsiam").glob("*/__init__.py"):
        assert f"{room.parent.name}/" in layout, room


def test_every_flag_that_the_readme_names_exists(program: Program) -> None:
    page = "".join(program(command, "--help")[1] for command in commands.COMMANDS)
    for flag in set(re.findall(r"`(--[a-z-]+)", README)):
        assert re.search(rf"{flag}\b", page), flag


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", "\n".join(COMMANDS)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
