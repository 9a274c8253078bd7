"""SimSiam from the command line: `python main.py` pre-trains; `python main.py --help` says what can be set."""

import gc
import importlib.util
import io
import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress

if sys.version_info < (3, 11):
    print(
        f"main.py: needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}",
        file=sys.stderr,
    )
    sys.exit(2)
INSTALL = f"{sys.executable} -m pip install -r {os.path.join(os.path.dirname(os.path.abspath(__file__)), 'req.txt')}"
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C during the imports needs no traceback
if importlib.util.find_spec("fcntl") is None:  # Windows, which lacks SIGHUP too
    needs = "needs Linux or macOS; on Windows, run it in WSL (wsl --install)"
    print(f"main.py: {needs}", file=sys.stderr)
    sys.exit(2)
try:
    from simsiam.config.commands import COMMANDS, Evaluation
    from simsiam.config.run_state import announce
    from utils.cli import iterate_options, parse
    from utils.errors import (
        RunError,
        StoppedBySignal,
        UserError,
        describe_os_error,
        is_missing_home,
        is_out_of_memory,
        require,
    )
except ModuleNotFoundError as missing:
    print(f"main.py: the package {missing.name} is not installed: {INSTALL}", file=sys.stderr)
    sys.exit(2)

# An option that saves memory -> how to use it.
LESS_MEMORY = {
    "batch_size": "a smaller --batch-size",
    "accumulate": "a larger --accumulate",
    "data_memory": "less --data-memory",
}
DEFAULTS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}

may_unwind = threading.Event()  # set once a signal may raise an exception


def main(args: list[str]) -> int:
    """Run one command; the exit status: 0, 2 for a mistake of the user (one line on stderr), see `utils.errors`."""
    prepare_streams()
    may_unwind.clear()
    for number, usual in DEFAULTS.items():
        if signal.getsignal(number) in (usual, signal.SIG_DFL):  # not nohup's
            signal.signal(number, stop)
    named = bool(args) and not args[0].startswith("-")
    name, rest = (args[0], args[1:]) if named else ("pretrain", args)
    try:
        require(
            name in COMMANDS,
            f"{name}: no such command; there are {', '.join(COMMANDS)}, each with --help",
        )
        if rest and not rest[0].startswith("-") and issubclass(COMMANDS[name], Evaluation):
            rest = ["--checkpoint", *rest]
        config = parse(COMMANDS[name], rest, prog=f"main.py {name}" if named else "main.py")
        if name == "pretrain" and config.run.seeds:
            name = "sweep"
        elif name == "pretrain" and not announce(config):
            return 0
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not on where its caches are
        gc.disable()  # nothing that is imported is garbage, and to look for it takes a fifth of the time
        command = importlib.import_module(
            f"simsiam.commands.{'sweep' if name == 'ablate' else name}"
        )  # and torch
        gc.freeze()
        gc.enable()
        silence_lightning()
        may_unwind.set()
        getattr(command, name)(config)
        return 0
    except (UserError, RunError, StoppedBySignal) as error:
        return fail(error, error.status)
    except ModuleNotFoundError as missing:
        return fail(f"the package {missing.name} is not installed: {INSTALL}")
    except (MemoryError, RuntimeError) as error:
        if is_missing_home(error):
            how = "set HOME, or give --cache-dir (without it ~/.cache/simsiam)"
            return fail(f"this user has no home folder, for which ~ stands: {how}")
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:100] or "of the program"
        return fail(f"out of memory ({reason}): {suggest_less_memory(name)}; what is saved stays")
    except BrokenPipeError:  # the reader of the output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no permission, no space
        return fail(describe_os_error(error))


def suggest_less_memory(name: str) -> str:
    """Return what a command can do with less memory: the flags that it has for that."""
    command = COMMANDS.get(name, COMMANDS["pretrain"])  # a sweep has the flags of a pre-training
    options = {field.name for _, field, _, _ in iterate_options(command)}
    ways = [way for option, way in LESS_MEMORY.items() if option in options]
    return f"give {', or '.join(ways)}" if ways else "free some memory"


def stop(number: int, frame: object) -> None:
    """Signal handler of commands that have nothing to save; pre-training installs its own."""
    stopped = StoppedBySignal(number, "; the same command goes on, or begins again")
    if may_unwind.is_set():
        raise stopped
    # Packages are being imported. Some would take an exception for a missing package and go on.
    fail(stopped)
    with suppress(Exception):  # the signal may have come while something was printed
        sys.stdout.flush()
    os._exit(stopped.status)


def fail(why: object, status: int = 2) -> int:
    """Print one line, in the first process of each machine; the status."""
    if (os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0") == "0":
        with suppress(OSError):  # after a SIGHUP there may be no terminal
            print(f"main.py: {why}", file=sys.stderr)
    return status


def prepare_streams() -> None:
    """Open the standard streams that are closed, and escape letters that stdout cannot encode."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # A file opened later would get this number, and with it all that C code prints.
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does by itself
        sys.stdout.reconfigure(errors="backslashreplace")


def silence_lightning() -> None:
    """This program prints itself what a person must know."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    warnings.filterwarnings(
        "ignore", message="TensorFloat32"
    )  # its three digits are too few for crops and cosines
    warnings.filterwarnings(
        "ignore", message="Image size .* exceeds limit"
    )  # refused by `read_image`
    warnings.filterwarnings(
        "ignore", message="Detected call of `lr_scheduler"
    )  # fp16's first steps may be skipped
    warnings.filterwarnings("ignore", message="CUDA initialization")  # `utils.nvidia` explains it
    threading.excepthook = ignore_full_disk


def ignore_full_disk(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread met a full disk: ResilientTensorBoardLogger reports it."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        for number in DEFAULTS:  # all is said and saved: a signal ends what is left, without a word
            signal.signal(
                number,
                signal.SIG_IGN if signal.getsignal(number) is signal.SIG_IGN else signal.SIG_DFL,
            )
        gc.freeze()  # else Python looks for garbage in all of torch, which takes more than a second
