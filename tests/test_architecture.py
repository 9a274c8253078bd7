"""The house: imports run one way, main -> simsiam -> {models, utils} -> torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

ALLOWED = {
    "main.py": {"simsiam", "utils"},
    "simsiam": {"simsiam", "models", "utils"},
    "models": {"models"},
    "utils": {"utils"},
}
OURS = {"main", "simsiam", "models", "utils", "tests"}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_run_one_way(place: str) -> None:
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) & OURS <= ALLOWED[place], file


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, main\ntry: main.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--learning-rate" in done.stdout
