"""The program inside another program: a notebook or prompt survives it, and threads may call it."""

import gc
import importlib
import json
import runpy
import signal
import sys
import threading
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import main
from simsiam.callbacks.signals import STOP_SIGNALS
from tests.at_steps import send_signals_before_steps, to_json
from tests.helpers import ROOT, SMALL, Program
from tests.processes import Started

IMPORT_MODULE = importlib.import_module
EPOCHS = ["--epochs", "3"]  # of 4 steps each


def in_ipython(args: list[str]) -> None:
    """Run main.py as a cell with %run does."""
    if not InteractiveShell.initialized():
        InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell = InteractiveShell.instance()
    shell.run_cell(f"%run {ROOT}/main.py {' '.join(args)}")


def at_a_prompt(args: list[str]) -> None:
    """Run main.py as a person at Python's own prompt may do."""
    sys.ps1 = ">>> "
    sys.argv = ["main.py", *args]
    try:
        runpy.run_path(f"{ROOT}/main.py", run_name="__main__")
    except SystemExit as end:
        print(f"SystemExit: {end.code}")


RUNNERS = {"IPython": in_ipython, "prompt": at_a_prompt}


def run_twice(args: list[str]) -> int:
    """Run main.py twice in an interactive process, with signals in the first run.

    Args:
        args: the name of the runner, the signals before each step as JSON ("import" for the signals
            during the imports), and the arguments of main.py.
    """
    run = RUNNERS[args[0]]
    events: dict[str, list[str]] = json.loads(args[1])
    import_signals = events.pop("import", [])
    send_signals_before_steps(events)
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    frozen = gc.get_freeze_count()

    def import_with_signals(name: str, *rest: str) -> object:
        if name.startswith("simsiam.commands."):
            while import_signals:
                signal.raise_signal(signal.Signals[import_signals.pop()])
        return IMPORT_MODULE(name, *rest)

    importlib.import_module = import_with_signals
    run(args[2:])
    print("first run ended")
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    assert gc.get_freeze_count() == frozen
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("KeyboardInterrupt at the prompt")
    run(args[2:])
    return 0


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({6: ["SIGINT"]}, "in epoch 2, step 6,"),
        ({6: ["SIGINT", "SIGINT"]}, "at once; the same command resumes from the last checkpoint"),
        ({6: ["SIGTERM"]}, "stopped by SIGTERM in epoch 2, step 6,"),
        ({"import": ["SIGINT"]}, "stopped by SIGINT; the same command resumes, or starts again"),
    ],
    ids=["once", "twice", "SIGTERM", "during the imports"],
)
def test_a_signal_ends_the_run_and_not_the_prompt(
    events: dict, message: str, runner: str, tmp_path: Path
) -> None:
    flags = [*SMALL, *EPOCHS, "--save-dir", str(tmp_path / "runs")]
    process = Started(
        run_twice, [runner, to_json(events), *flags], IPYTHONDIR=str(tmp_path / "ipython")
    )
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    first, second = out.split("first run ended\n")
    assert message in err
    assert "SystemExit" in first and "finished 3 epochs" not in first
    assert second.startswith("KeyboardInterrupt at the prompt\n")
    assert "finished 3 epochs" in second


@pytest.mark.parametrize("flags", [["--dry-run"], ["--epochs", "0"]], ids=["success", "error"])
def test_main_gives_the_handlers_back(flags: list[str], program: Program) -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        signal.signal(signal.SIGTERM, print)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        program(*SMALL, *flags)
        assert signal.getsignal(signal.SIGTERM) is print
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_garbage_is_collected_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError):
        main.import_without_gc("simsiam.commands.nothing")
    assert gc.isenabled()


def test_each_command_runs_in_a_thread(tmp_path: Path) -> None:
    run = tmp_path / "simsiam_patterns"
    lines = [
        [*SMALL, "--epochs", "1", "--save-dir", str(tmp_path)],
        ["knn", str(run)],
        ["linear", str(run)],
        ["finetune", str(run), "--epochs", "1"],
        ["neighbours", str(run)],
        ["embed", str(run)],
        ["export", str(run)],
        ["report", str(run), "--no-pictures"],
    ]
    statuses: list[int] = []

    def run_all() -> None:
        for line in lines:
            statuses.append(main.main(line))

    thread = threading.Thread(target=run_all)
    thread.start()
    thread.join()
    assert statuses == [0] * len(lines)
