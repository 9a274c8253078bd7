"""The start of the program: imports wait until they are needed; a missing package is named."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, SMALL


def modules_after(*args: str) -> set[str]:
    """The packages that main.py has imported when it ends."""
    code = f"import main, sys; main.main({list(args)!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics"} & set(
        done.stdout.split()
    )


def test_no_command_imports_packages_that_it_does_not_need(trained: Path, tmp_path: Path) -> None:
    again = [*SMALL, "--epochs", "2", "--save-dir", str(trained.parent), "--exp-name", trained.name]
    assert modules_after(*again) == set()  # it is finished already
    assert modules_after(*again, "--learning-rate", "0.1") == set()
    assert (
        modules_after("report", str(trained), "--no-pictures", "--output", str(tmp_path / "page"))
        == set()
    )
    assert modules_after("knn", str(trained), "--results-dir", str(tmp_path)) == {"torch"}


def test_training_imports_no_package_of_other_commands() -> None:
    code = "import simsiam.commands.pretrain, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    others = {"faiss", "jinja2", "kornia", "onnx", "optuna", "pandas", "skimage", "sklearn", "timm"}
    assert others & set(done.stdout.split()) == set()


def test_a_missing_package_is_named_with_its_install_command() -> None:
    bare = [sys.executable, "-S", "main.py", "--help"]  # without the folder of installed packages
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert (
        "is not installed" in done.stderr and f"{sys.executable} -m pip install -r" in done.stderr
    )


WINDOWS = """
import signal, sys
sys.modules.update(fcntl=None, resource=None, pwd=None, termios=None)
del signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
"""


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run([sys.executable, "-c", code], **options)


def test_windows_is_told_what_to_use_instead() -> None:
    done = run_code(WINDOWS + "import runpy; runpy.run_path('main.py', run_name='__main__')")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("main.py: needs Linux or macOS; on Windows, run it in WSL")


def test_windows_gets_a_sentence_for_the_parts_too() -> None:
    done = run_code(WINDOWS + "import utils.filesystem")
    assert done.stderr.splitlines()[-1].startswith("ImportError: this program needs Linux or macOS")


@pytest.mark.parametrize(("word", "error_lines"), [("nosuch", 1), ("--help", 0)])
def test_a_signal_during_the_exit_prints_nothing(word: str, error_lines: int) -> None:
    code = f"""
import atexit, os, runpy, sys
sys.path.insert(0, "")
atexit.register(os.kill, os.getpid(), 15)
sys.argv = ["main.py", {word!r}]
runpy.run_path("main.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == -signal.SIGTERM
        and done.stderr.count("\n") == error_lines
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [("module://no_such_package.backend", "agg"), ("module://json.tool", "module://json.tool")],
)
def test_only_a_matplotlib_backend_that_is_not_installed_is_replaced(given: str, used: str) -> None:
    code = f"""
import os, main
os.environ["MPLBACKEND"] = {given!r}
main.replace_missing_matplotlib_backend()
print(os.environ["MPLBACKEND"])
import matplotlib
"""
    done = run_code(code)
    assert (done.returncode, done.stdout.strip()) == (0, used), done.stderr
