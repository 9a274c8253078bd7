"""The commands of README.md and docs/ run, and what these pages name exists."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from models.choices import BackboneName
from simsiam.config import commands
from simsiam.config.commands import COMMANDS
from simsiam.config.options import Dataset
from simsiam.data.files.cache_choice import estimate_bytes
from tests.helpers import ROOT, Program
from tests.images import patterns
from tests.pages import (
    CODE,
    FENCE,
    OTHER_COMMANDS,
    PAGES,
    PRETRAININGS,
    SHELL_LINES,
    arguments_of_main,
    blocks,
    make_run,
)
from utils.option_group import to_flag
from utils.settings import flatten

MAX_LINES_OF_README = 200
MAX_LINES_OF_PAGE = 300

FLAG = re.compile(r"--[a-z][a-z-]*")
PROSE = {name: FENCE.sub("", page) for name, page in PAGES.items()}
ALL_PROSE = "\n".join(PROSE.values())
SPANS = re.findall(r"`([^`\n]+)`", ALL_PROSE)  # `code` in a sentence


def test_every_command_is_shown() -> None:
    shown = {flags.split()[0] for flags in OTHER_COMMANDS}
    assert shown == set(COMMANDS) - {"pretrain"}
    assert len(PRETRAININGS) >= 3
    assert len(CODE) >= 6


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("flags", PRETRAININGS)
def test_each_pretraining_passes_a_dry_run(
    flags: str, program: Program, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    paths = [f"photos/{file.relative_to(photos)}" for file in sorted(photos.rglob("*.png"))]
    (tmp_path / "images.csv").write_text("\n".join(["path", *paths]))
    np.savez(tmp_path / "images.npz", x_train=patterns(50).images.numpy())
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    # Other tests measure how long a run takes.
    monkeypatch.setattr("simsiam.commands.describe.estimate_seconds", lambda *_: 7200.0)
    arguments = shlex.split(flags)
    if "--data-dir" in flags:
        arguments += ["--batch-size", "50", "--cache-dir", str(tmp_path / "cache")]
    status, out, err = program(*arguments, "--dry-run")
    assert (status, err) == (0, "")
    assert "train and" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `runs/simsiam_cifar10` of a narrow network, and photos."""
    folder = tmp_path_factory.mktemp("readme")
    return make_run(folder, "--width 4 --train-images 100 --batch-size 50")


SHORTER = {  # flags that make a command faster, by its name or its flag --augment
    "finetune": "--epochs 1",
    "ablate": "--dry-run",
    "search": "--dry-run",
    "report": "--no-pictures",
    "--augment": "--epochs 1",
}
# What a command prints. Other commands print summary.json.
PRINTED = {
    "report": "index.html",
    "ablate": "1 of ",
    "cache": "no cache in",
    "search": "base_learning_rate",
}


@pytest.mark.parametrize("flags", OTHER_COMMANDS)
def test_each_other_command_runs(
    flags: str, trained: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    # The command `cache` must not remove the caches of the user who runs the tests.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = shlex.split(flags)
    command = arguments[0]
    if command == "ablate":
        # It checks the settings before it starts processes. These run an empty script.
        (tmp_path / "stub.py").write_text("")
        monkeypatch.setattr(commands, "MAIN", tmp_path / "stub.py")
    if command == "search":  # a batch needs two images
        shutil.copy("photo.jpg", "photos/two.jpg")
    for name, shorter in SHORTER.items():
        if name in arguments:
            arguments += shorter.split()
    status, out, err = program(*arguments)
    assert (status, err) == (0, "")
    assert PRINTED.get(command, "summary.json") in out


def test_make_demo_runs_the_command_in_the_readme() -> None:
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    commands_of_make = [line.replace("--overwrite", "") for line in lines if "main.py" in line]
    (demo,) = arguments_of_main(commands_of_make)
    assert demo in PRETRAININGS


def test_pip_and_uv_install_the_same() -> None:
    lines = (ROOT / "req.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join([*SHELL_LINES, ALL_PROSE])
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_named_scripts_exist_and_have_the_named_flags() -> None:
    for line in [*SHELL_LINES, *SPANS]:
        script = re.search(r"(?:python|bash) (tests/\S+)(.*)", line)
        if script is None:
            continue
        source = (ROOT / script[1]).read_text()
        own_flags = re.sub(r'"[^"]*"', "", script[2])  # without those that go to main.py
        for flag in FLAG.findall(own_flags):
            assert f'"{flag}"' in source, line


def test_shell_scripts_have_no_syntax_errors() -> None:
    for script in ROOT.glob("tests/benchmarks/*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


# ---------------------------------------------------------------- what the pages name


def test_no_page_is_too_long() -> None:
    for name, page in PAGES.items():
        limit = MAX_LINES_OF_README if name == "README.md" else MAX_LINES_OF_PAGE
        assert len(page.splitlines()) <= limit, name


def anchors(prose: str) -> list[str]:
    """Return GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_resolves(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(PROSE[page.resolve().relative_to(ROOT).as_posix()]), target


def test_the_readme_links_every_page_of_docs() -> None:
    for name in PAGES:
        assert name == "README.md" or f"({name}" in PAGES["README.md"], name


def test_every_named_flag_exists(program: Program) -> None:
    existing: set[str] = set()
    for command in COMMANDS:
        _, help_text, _ = program(command, "--help")
        existing |= set(FLAG.findall(help_text))
    named: set[str] = set()
    for span in SPANS:
        if "main.py" in span or span.startswith(("--", *COMMANDS)):
            named |= set(FLAG.findall(span.split("main.py")[-1]))
    assert len(named) > 40
    assert named <= existing, named - existing


def test_every_flag_of_pretraining_is_documented() -> None:
    named = set(FLAG.findall(" ".join(SPANS)))
    for name in flatten(commands.Pretrain()):
        flag = to_flag(name)
        assert flag in named or flag.replace("--", "--no-", 1) in named, flag


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("--dataset", get_args(Dataset)),
        ("--backbone", [name.removeprefix("resnet") for name in get_args(BackboneName)]),
    ],
)
def test_the_table_of_flags_names_every_choice(flag: str, choices: Iterable[str]) -> None:
    (row,) = [line for line in PAGES["README.md"].splitlines() if line.startswith(f"| `{flag}`")]
    for choice in choices:
        assert re.search(rf"(\b|resnet){choice}\b", row), choice


def test_the_layout_names_every_folder() -> None:
    (layout,) = [block for block in blocks("") if block.startswith("main.py")]
    for package in ("simsiam", "models", "utils", "tests", "docs"):
        assert re.search(rf"^{package}/", layout, flags=re.MULTILINE), package
    for package in (ROOT / "simsiam").glob("*/__init__.py"):
        assert f"  {package.parent.name}/" in layout, package


def test_files_in_the_layout_exist() -> None:
    (layout,) = [block for block in blocks("") if block.startswith("main.py")]
    for name in re.findall(r"\w+\.py", layout):
        assert (ROOT / name).exists() or (ROOT / "simsiam" / name).exists(), name


def test_the_sizes_of_the_cache_are_those_of_the_code(tmp_path: Path) -> None:
    Image.new("RGB", (500, 375)).save(tmp_path / "photo.png")
    (row,) = [line for line in PAGES["docs/scaling.md"].splitlines() if "| storage per im" in line]
    for size in (96, 224):
        number = estimate_bytes(tmp_path, ["photo.png"], size, 2 * size)
        assert f"| {number / 2**10:.0f} KiB; {number / 1e3:.0f} GB |" in row


def test_the_licence_is_linked() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert "(LICENSE)" in PAGES["README.md"]
