"""The structure of the program: which package may import which, and how large files may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import ROOT

MAX_LINES = 300  # of a file
MAX_FILES = 20  # in a folder

# From top to bottom. A module may import from its own package and from those on lower floors.
FLOORS = (
    ("main",),
    ("simsiam.commands",),
    ("simsiam.report", "simsiam.callbacks"),
    ("simsiam.evaluation",),
    ("simsiam.data",),
    ("simsiam.module", "simsiam.augment", "simsiam.heavy_augment", "simsiam.loss"),
    (
        "simsiam.hparams",
        "simsiam.inputs",
        "simsiam.optimizer",
        "simsiam.resumable_module",
        "simsiam.image_ops",
        "simsiam.heavy_ops",
        "simsiam.crop_boxes",
        "simsiam.compilation",
    ),
    ("simsiam.config", "simsiam.collapse"),
    ("models", "utils"),
)
# Packages on the same floor that must not import each other.
APART = (
    {"simsiam.report", "simsiam.callbacks"},
    {"models", "utils"},
)
PACKAGES = ("simsiam", "models", "utils")
OURS = ("main", *PACKAGES, "tests")
PROGRAM = [ROOT / "main.py"]
for package in PACKAGES:
    PROGRAM += sorted((ROOT / package).rglob("*.py"))


class Import(NamedTuple):
    module: str
    in_function: bool


def name_of(file: Path) -> str:
    """Return the name under which a file is imported."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# simsiam/__init__.py imports each public name at its first use, so the rules do not apply to it.
CHECKED = [file for file in PROGRAM if name_of(file) != "simsiam"]


def is_module(name: str) -> bool:
    return (ROOT / f"{name.replace('.', '/')}.py").exists()


def imported_names(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports; for `from a import b`, a.b if it is a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return []
    names = []
    for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        names.append(submodule if is_module(submodule) else node.module)
    return names


def imports(file: Path) -> Iterator[Import]:
    """Yield the imports of our own modules in a file."""
    tree = ast.parse(file.read_text())
    nodes_in_functions = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            nodes_in_functions |= set(ast.walk(function))
    for node in ast.walk(tree):
        for name in imported_names(node):
            if name.split(".")[0] in OURS:
                yield Import(name, node in nodes_in_functions)


def floor_of(module: str) -> tuple[int, str]:
    """Return the number of the floor a module is on, 0 at the top, and its package."""
    for floor, packages in enumerate(FLOORS):
        for package in packages:
            if f"{module}.".startswith(f"{package}."):
                return floor, package
    raise AssertionError(f"{module} is on no floor: add it to FLOORS")


@pytest.mark.parametrize("file", CHECKED, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    floor, package = floor_of(name_of(file))
    for module, _ in imports(file):
        other_floor, other_package = floor_of(module)
        assert floor <= other_floor, module
        assert {package, other_package} not in APART, module


@pytest.mark.parametrize("file", PROGRAM, ids=name_of)
def test_no_import_hides_inside_a_function(file: Path) -> None:
    assert [module for module, in_function in imports(file) if in_function] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name_of(file): {module for module, _ in imports(file)} for file in CHECKED}
    # Remove the modules that import none of the remaining ones, again and again.
    while True:
        leaves = [name for name, imported in graph.items() if not imported & graph.keys()]
        if not leaves:
            break
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_no_file_is_too_long() -> None:
    for file in [*PROGRAM, *(ROOT / "tests").rglob("*.py")]:
        assert len(file.read_text().splitlines()) <= MAX_LINES, file


def test_no_folder_has_too_many_files() -> None:
    for folder in {file.parent for file in PROGRAM if file.parent != ROOT}:
        files = [file for file in folder.iterdir() if file.is_file() and file.name != "__init__.py"]
        assert len(files) <= MAX_FILES, folder


FILE_NAME = re.compile(r"\w+\.(yaml|json|jsonl|png|ckpt|safetensors)")


def strings(file: Path) -> Iterator[str]:
    """Yield the strings in a file that are not docstrings."""
    tree = ast.parse(file.read_text())
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or node in docstrings:
            continue
        if isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("file", PROGRAM, ids=name_of)
def test_only_one_file_spells_the_names_of_the_files_of_a_run(file: Path) -> None:
    run_dir = ROOT / "utils" / "run_dir.py"
    names = {text for text in strings(run_dir) if FILE_NAME.fullmatch(text)}
    assert {"config.yaml", "metrics.jsonl", "last.ckpt", "backbone.safetensors"} <= names
    if file != run_dir:
        parts = {part for text in strings(file) for part in text.split("/")}
        assert not parts & names


PRINT_HELP = """
import sys, main
try:
    main.main(["--help"])
except SystemExit:
    sys.exit("torch" in sys.modules)
"""


def test_help_does_not_import_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--learning-rate" in done.stdout
