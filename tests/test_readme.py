"""README.md and docs/: their commands and code run as they stand, their flags, links and folders exist."""

import re
import shlex
import shutil
import subprocess
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from simsiam.config import commands
from simsiam.config.commands import COMMANDS
from tests.helpers import ROOT, Program, patterns

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PROSE = {name: FENCE.sub("", page) for name, page in PAGES.items()}


def blocks(language: str) -> list[str]:
    """Fenced blocks of all pages."""
    return [
        content
        for page in PAGES.values()
        for name, content in FENCE.findall(page)
        if name == language
    ]


LINES = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
OURS = [
    shlex.split(line.split("main.py", 1)[1], comments=True) for line in LINES if "main.py" in line
]
FLAGS = list(dict.fromkeys(shlex.join(flags) for flags in OURS))  # some are on two pages
PRETRAIN = [flags for flags in FLAGS if not flags or flags.startswith("-")]
USE = [flags for flags in FLAGS if flags not in PRETRAIN]
CODE = blocks("python")


def test_every_command_and_the_main_ways_of_use_are_shown() -> None:
    assert len(PRETRAIN) >= 3 and {flags.split()[0] for flags in USE} == set(COMMANDS) - {
        "pretrain"
    }
    assert len(CODE) >= 6


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("flags", PRETRAIN)
def test_each_pretraining_is_accepted_and_says_what_it_would_train(
    flags: str, program: Program, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    np.savez(tmp_path / "images.npz", x_train=patterns(50).images.numpy())
    monkeypatch.setattr(
        "simsiam.commands.describe.estimate_seconds", lambda *_: 7200.0
    )  # other tests measure it
    fewer = (
        ["--batch-size", "50", "--cache-dir", str(tmp_path / "cache")]
        if "--data-dir" in flags
        else []
    )
    status, out, err = program(*shlex.split(flags), *fewer, "--dry-run")
    assert (status, err) == (0, "")
    assert "train and" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, in which `runs/simsiam_cifar10` is a finished run of a narrow network, on few images."""
    return make_run(
        tmp_path_factory.mktemp("readme"), "--width 4 --train-images 100 --batch-size 50"
    )


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the default backbone, for code that needs its shapes."""
    return make_run(
        tmp_path_factory.mktemp("wide"), "--train-images 4 --batch-size 2 --knn-every 0"
    )


def make_run(folder: Path, flags: str) -> Path:
    few = f"--dataset patterns --test-images 16 --knn-k 5 --epochs 1 --accelerator cpu --out-dim 32 --h-dim 16 {flags}"
    where = ["--save-dir", str(folder / "runs"), "--exp-name", "simsiam_cifar10"]
    assert main.main([*few.split(), *where]) == 0
    (folder / "photos").mkdir()
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(
        folder / "photo.jpg"
    )
    (folder / "photos" / "one.jpg").write_bytes((folder / "photo.jpg").read_bytes())
    return folder


SHORTER = {
    "finetune": "--epochs 1",
    "ablate": "--dry-run",
    "report": "--no-pictures",
    "augment": "--epochs 1",
}
PRINTED = {"report": "index.html", "ablate": "1 of "}


@pytest.mark.parametrize("flags", USE)
def test_each_further_command_runs_as_it_stands(
    flags: str, trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    if flags.startswith(
        "ablate"
    ):  # each run's process is an empty script: settings are read before it starts
        (tmp_path / "stub.py").write_text("")
        monkeypatch.setattr(commands, "MAIN", tmp_path / "stub.py")
    command = shlex.split(flags)
    shorter = SHORTER.get("augment" if "--augment" in command else command[0], "").split()
    status, out, err = program(*command, *shorter)
    assert (status, err) == (0, "") and PRINTED.get(command[0], "summary.json") in out


def test_make_demo_and_the_command_that_stands_for_it_are_the_same() -> None:
    recipes = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    recipe = next(line for line in recipes if "main.py" in line)
    assert shlex.split(recipe.split("main.py")[1].replace("--overwrite", "")) in map(
        shlex.split, PRETRAIN
    )


def test_pip_and_uv_install_the_same() -> None:
    lines = (ROOT / "req.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(
        r"(?:^|`)make ([a-z-]+)", "\n".join([*LINES, *PROSE.values()]), flags=re.MULTILINE
    ):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_other_programs_that_are_named_exist_and_know_their_flags() -> None:
    for line in [*LINES, *re.findall(r"`([^`\n]+)`", "\n".join(PROSE.values()))]:
        if script := re.search(r"(?:python|bash) (tests/\S+)(.*)", line):
            source = (ROOT / script[1]).read_text()
            assert all(f'"{flag}"' in source for flag in re.findall(r"--[a-z-]+", script[2])), line
    for script in ROOT.glob("tests/benchmarks/*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("code", CODE)
def test_each_piece_of_code_runs(
    code: str,
    trained: Path,
    full_width: Path,
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(
        full_width if "resnet18" in code else trained, tmp_path, dirs_exist_ok=True
    )  # not the commands' own
    monkeypatch.chdir(tmp_path)
    for file, made_by in (
        ("runs/simsiam_cifar10/results/linear/head.safetensors", "linear "),
        ("features.npz", "embed "),
    ):
        if file in code and not Path(file).exists():  # what the code reads
            maker = [flags for flags in USE if flags.startswith(made_by)]
            assert (
                program(*shlex.split(next((flags for flags in maker if file in flags), maker[0])))[
                    0
                ]
                == 0
            )
    with warnings.catch_warnings():
        if "pl.Trainer" in code:
            warnings.simplefilter("ignore")  # Lightning's advice
        exec(
            code.replace("train_images=1000, test_images=200", "train_images=100, test_images=50"),
            {},
        )


# ---------------------------------------------------------------- facts that a change elsewhere would make wrong


def test_the_readme_has_at_most_200_lines_and_no_page_over_300() -> None:
    lengths = {name: len(page.splitlines()) for name, page in PAGES.items()}
    assert lengths["README.md"] <= 200 and max(lengths.values()) <= 300, lengths


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_resolves(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        headings = re.findall(
            r"^#+ (.+)$", PROSE.get(page.resolve().relative_to(ROOT).as_posix(), ""), re.MULTILINE
        )
        assert not anchor or anchor in [
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
        ], target


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    for name in PAGES:
        assert name == "README.md" or f"({name}" in PAGES["README.md"], name


def test_every_flag_that_is_named_exists(program: Program) -> None:
    known = set(
        re.findall(
            r"--[a-z][a-z-]*", "".join(program(command, "--help")[1] for command in COMMANDS)
        )
    )
    spans = re.findall(r"`([^`\n]+)`", "\n".join(PROSE.values()))
    ours = [
        span.split("main.py")[-1]
        for span in spans
        if "main.py" in span or span.startswith(("--", *COMMANDS))
    ]
    named = set(re.findall(r"--[a-z][a-z-]*", "\n".join(ours)))
    assert len(named) > 40 and named <= known, named - known


def test_every_folder_is_in_the_layout() -> None:
    layout = next(block for block in blocks("") if block.startswith("main.py"))
    for package in ("simsiam", "models", "utils", "tests", "docs"):
        assert re.search(rf"^{package}/", layout, flags=re.MULTILINE), package
    for room in (ROOT / "simsiam").glob("*/__init__.py"):
        assert f"  {room.parent.name}/" in layout, room
    for name in re.findall(r"\w+\.py", layout):
        assert (ROOT / name).exists() or (ROOT / "simsiam" / name).exists(), name


def test_the_licence_is_there() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License") and "(LICENSE)" in PAGES[
        "README.md"
    ]
