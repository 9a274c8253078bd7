"""Unfriendly shells: closed streams, encodings, no temporary folder, signals at the start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, SMALL, Program
from utils.run_dir import RunDirectory

ONE = [*SMALL, "--epochs", "1"]


def run_in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which `$main` is the program."""
    environment = {**os.environ, "main": f"{sys.executable} main.py", **environment}
    return run(["sh", "-c", line], env=environment)


def run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    options = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, **options)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_changes_nothing(closed: str) -> None:
    done = run_in_shell(f"$main --help {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_in_shell(f"$main --bogus {closed}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == (0 if "2>" in closed else 1)


@pytest.mark.slow("a fresh start; that streams are open is a quick test")
def test_a_run_without_streams_is_whole(tmp_path: Path) -> None:
    done = run_in_shell(f"$main {' '.join(ONE)} --save-dir {tmp_path} 0<&- 1>&- 2>&-")
    assert done.returncode == 0 and (tmp_path / "simsiam_patterns" / "summary.json").exists()


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    code = "import main, os; main.prepare_streams(); number = os.open('/dev/null', os.O_RDONLY); "
    code += "print(number, file=open(3, 'w'))"
    done = run_in_shell(f'{sys.executable} -c "{code}" 3>&1 0<&- 1>&- 2>&-')
    assert int(done.stdout) > 3


def test_letters_that_stdout_lacks_are_escaped() -> None:
    code = "import main; main.prepare_streams(); print(chr(233), chr(0xDCE9))"
    done = run_in_shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii")
    assert done.stdout == "\\xe9 \\udce9\n"


def test_a_folder_whose_name_is_not_utf8_is_refused(program: Program, tmp_path: Path) -> None:
    status, out, err = program(*ONE, "--save-dir", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert (status, out) == (2, "") and err.count("\n") == 1 and "is not UTF-8" in err
    assert list(tmp_path.iterdir()) == []


def test_config_yaml_is_utf8_in_any_locale(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pathlib asks this function for the locale's encoding.
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "latin-1")
    run, settings = RunDirectory(tmp_path), {"exp_name": "caf\u00e9 \u732b"}
    run.create({"settings": settings})
    assert "caf\u00e9 \u732b" in run.config.read_bytes().decode("utf-8")
    assert run.settings() == settings


def test_without_a_temporary_folder_tmpdir_is_named(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("simsiam.commands.describe.describe_hardware", refuse)
    status, _, err = program(*ONE)
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("main.py: No usable temporary directory") and "set TMPDIR" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["rich", "numpy"])
def test_a_signal_during_imports_needs_no_traceback(number: signal.Signals, moment: str) -> None:
    """The signal arrives while `moment` is imported: rich before our handlers, numpy after."""
    code = f"""
import os, sys, runpy, signal, time
usual = signal.default_int_handler if {int(number)} == signal.SIGINT else signal.SIG_DFL
signal.signal({int(number)}, usual)  # nohup and jobs in the background ignore some signals
class Send:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), {int(number)})
            time.sleep(0.01)  # a bytecode, after which Python runs the handler
sys.meta_path.insert(0, Send())
sys.path.insert(0, "")
sys.argv = ["main.py", "knn", "/no/such", "--accelerator", "cpu"]
runpy.run_path("main.py", run_name="__main__")
"""
    done = run([sys.executable, "-c", code])
    if moment == "rich":
        assert (done.returncode, done.stderr) == (-number, "")
    else:
        assert done.returncode == 128 + number
        stopped = f"stopped by {number.name}; the same command resumes, or starts again"
        assert done.stderr == f"main.py: {stopped}\n"
