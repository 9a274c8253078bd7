"""The house: which room may import which, no circles, no hidden imports, nothing too large to read."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

MOST_LINES = 300  # of a file
MOST_FILES = 20  # in a folder

# From the top down: a module may import from its own room and from those below.
FLOORS = (
    ("main",),
    ("simsiam.commands",),
    ("simsiam.report", "simsiam.callbacks"),
    ("simsiam.evaluation",),
    ("simsiam.data",),
    ("simsiam.module", "simsiam.augment", "simsiam.loss", "simsiam.config"),
    ("simsiam.inputs", "simsiam.optimizer", "simsiam.resumable_module", "simsiam.image_ops"),
    ("models", "utils"),
)
APART = (
    ("simsiam.report", "simsiam.callbacks"),
    ("simsiam.callbacks", "simsiam.report"),
    ("models", "utils"),
    ("utils", "models"),
)
OURS = ("main", "simsiam", "models", "utils", "tests")
PROGRAM = [
    ROOT / "main.py",
    *(file for room in OURS[1:4] for file in sorted((ROOT / room).rglob("*.py"))),
]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module of ours that a file imports, whether inside a function); `from room import module` names the module."""
    tree = ast.parse(file.read_text())
    inner = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if (ROOT / f"{name.replace('.', '/')}.py").exists() else str(node.module)
                for name in below
            ]
        yield from ((name, node in inner) for name in names if name.split(".")[0] in OURS)


def floor_of(module: str) -> tuple[int, str]:
    """How far down a module is, and its room."""
    return next(
        (i, room)
        for i, rooms in enumerate(FLOORS)
        for room in rooms
        if f"{module}.".startswith(f"{room}.")
    )


@pytest.mark.parametrize("file", PROGRAM, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    if name_of(file) == "simsiam":  # it hands names on, and imports them when they are first used
        return
    floor, room = floor_of(name_of(file))
    for module, _ in imports(file):
        below, their_room = floor_of(module)
        assert floor <= below and (room, their_room) not in APART, module


@pytest.mark.parametrize("file", PROGRAM, ids=name_of)
def test_no_import_hides_inside_a_function(file: Path) -> None:
    assert [module for module, hidden in imports(file) if hidden] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name_of(file): {module for module, _ in imports(file)}
        for file in PROGRAM
        if name_of(file) != "simsiam"
    }
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_no_file_is_too_long_and_no_folder_too_full() -> None:
    for file in [*PROGRAM, *(ROOT / "tests").rglob("*.py")]:
        assert len(file.read_text().splitlines()) <= MOST_LINES, file
    for folder in {file.parent for file in PROGRAM if file.parent != ROOT}:
        files = [file for file in folder.iterdir() if file.is_file() and file.name != "__init__.py"]
        assert len(files) <= MOST_FILES, folder


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, main\ntry: main.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--learning-rate" in done.stdout
