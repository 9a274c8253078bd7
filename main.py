"""The program: `python main.py` pre-trains a network, `python main.py --help` lists the flags."""

import gc
import importlib.util
import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from types import FrameType

REQUIREMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "req.txt")
INSTALL = f"{sys.executable} -m pip install -r {REQUIREMENTS}"

# An older Python must be able to compile this file and run it up to here, to print this message.
if sys.version_info < (3, 11):  # noqa: UP036  (ruff takes 3.11 for granted)
    version = sys.version.split()[0]
    print(f"main.py needs Python 3.11 or newer; {sys.executable} is {version}.", file=sys.stderr)
    sys.exit(2)

# Windows has no fcntl, and no SIGHUP either.
if importlib.util.find_spec("fcntl") is None:
    message = "main.py: needs Linux or macOS; on Windows, run it in WSL (wsl --install)"
    print(message, file=sys.stderr)
    sys.exit(2)

# An older Python cannot import this module, so it comes after the check of the version.
from utils.process import (  # noqa: E402  (after the check above)
    is_interactive,
    is_main_thread,
    prepare_streams,
    replace_missing_matplotlib_backend,
    restored_handlers,
)

# A Ctrl-C during the imports below ends the process without a traceback. A notebook in which %run
# runs this file must not end.
is_own_process = __name__ == "__main__" and not is_interactive() and is_main_thread()
if is_own_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    from simsiam.config.commands import COMMANDS
    from simsiam.config.run_state import announce
    from utils.cli import parse
    from utils.errors import (
        RunError,
        StoppedBySignal,
        UserError,
        describe_os_error,
        is_missing_home,
        is_out_of_memory,
    )
    from utils.settings import iterate_options
except ModuleNotFoundError as missing:
    print(f"main.py: the package {missing.name} is not installed: {INSTALL}", file=sys.stderr)
    sys.exit(2)

# An option that saves memory -> what to do with it.
LESS_MEMORY = {
    "batch_size": "a smaller --batch-size",
    "accumulate": "a larger --accumulate",
    "data_memory": "less --data-memory",
}
# Each signal that ends the program, with Python's own handler of it.
DEFAULT_SIGNAL_HANDLERS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}

# Set once `run_command` has imported the command's module. Until then the signal handler ends the
# process; afterwards it raises StoppedBySignal.
may_raise = threading.Event()
# Signals that an interactive process received during the imports.
postponed_signals: list[int] = []


def main(args: list[str]) -> int:
    """Run one command.

    Args:
        args: a command and its flags, or the flags of `pretrain` alone.

    Returns:
        The exit status: 0, or the status of an error (`utils.errors`). One line on stderr then says
        what is wrong.
    """
    prepare_streams()
    with restored_handlers(DEFAULT_SIGNAL_HANDLERS):
        install_signal_handlers()
        return run_and_report(args)


def run_and_report(args: list[str]) -> int:
    """Run one command, and print its error, if there is one, in one line.

    Returns:
        The exit status.
    """
    name = "pretrain"
    flags = args
    prog = "main.py"
    if args and not args[0].startswith("-"):
        name = args[0]
        flags = args[1:]
        prog = f"main.py {name}"
    try:
        run_command(name, flags, prog)
        return 0
    except (UserError, RunError, StoppedBySignal) as error:
        return fail(error, error.status)
    except ModuleNotFoundError as error:
        return fail(f"the package {error.name} is not installed: {INSTALL}")
    except (MemoryError, RuntimeError) as error:
        if is_missing_home(error):
            return fail(
                "this user has no home folder, for which ~ stands. "
                "Set HOME, or give --cache-dir, which is a folder in ~ by default."
            )
        if not is_out_of_memory(error):
            raise
        message = "out of memory"
        reason = " ".join(str(error).split())[:100]  # empty for most MemoryErrors of Python
        if reason:
            message += f" ({reason})"
        advice = suggest_less_memory(name)
        return fail(f"{message}. {advice}. What is saved stays.")
    except BrokenPipeError:
        # The reader of the output, such as `| head`, has ended. Python would complain once more
        # when it flushes stdout at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # such as no permission or no space
        return fail(describe_os_error(error))


def run_command(name: str, flags: list[str], prog: str) -> None:
    """Parse the flags of a command, and run it."""
    if name not in COMMANDS:
        names = ", ".join(COMMANDS)
        raise UserError(f"{name}: no such command. There are {names}, each with --help.")
    command = COMMANDS[name]
    config = parse(command, flags, prog)

    module_name = name
    function_name = name
    if name == "ablate":
        module_name = "sweep"
    elif name == "pretrain" and config.run.seeds:
        module_name = "sweep"
        function_name = "sweep"
    elif name == "pretrain":
        # The announcement comes before the slow imports, so that the user sees an answer at once.
        is_something_to_do = announce(config)
        if not is_something_to_do:
            return

    replace_missing_matplotlib_backend()
    module = import_without_gc(f"simsiam.commands.{module_name}")
    silence_libraries()
    may_raise.set()
    if postponed_signals:
        raise_stopped(postponed_signals[0], None)
    run = getattr(module, function_name)
    run(config)


def import_without_gc(module_name: str) -> object:
    """Import a module, and with it torch.

    Nothing that is imported is garbage. Looking for garbage would take a fifth of the time: 4.7 s
    in place of 3.7 s for `simsiam.commands.pretrain`.
    """
    if is_interactive():  # gc.freeze would keep a notebook's own objects for ever
        return importlib.import_module(module_name)
    gc.disable()
    try:
        module = importlib.import_module(module_name)
        gc.freeze()
    finally:
        gc.enable()
    return module


def suggest_less_memory(name: str) -> str:
    """Return advice on how to need less memory: the flags for it that a command has, if any."""
    options = {option.field.name for option in iterate_options(COMMANDS[name])}
    ways = [way for option, way in LESS_MEMORY.items() if option in options]
    if not ways:
        return "Free some memory"
    return f"Give {', or '.join(ways)}"


def fail(message: object, status: int = 2) -> int:
    """Print an error in the first process of each machine, and return the exit status."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if local_rank == "0":
        with suppress(OSError):  # after a SIGHUP there may be no terminal
            print(f"main.py: {message}", file=sys.stderr)
    return status


# ---------------------------------------------------------------- signals


def install_signal_handlers() -> None:
    """Let signals end the program with one line, except those that are ignored, as by nohup.

    In a thread, where Python allows no handlers, signals keep the handlers that they have.
    """
    may_raise.clear()
    postponed_signals.clear()
    if not is_main_thread():
        return
    for number, default_handler in DEFAULT_SIGNAL_HANDLERS.items():
        # SIGINT has SIG_DFL since the imports at the top of this file.
        if signal.getsignal(number) in (default_handler, signal.SIG_DFL):
            signal.signal(number, raise_stopped)


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """Handle a signal, in commands that have nothing to save; pre-training has its own handler."""
    stopped = StoppedBySignal(number, "; the same command resumes, or starts again")
    if may_raise.is_set():
        raise stopped
    # Packages are being imported. Some would take the exception for a missing package and continue.
    if is_interactive():
        postponed_signals.append(number)
        return
    fail(stopped)
    with suppress(Exception):  # the signal may have interrupted a write to stdout
        sys.stdout.flush()
    os._exit(stopped.status)


# ---------------------------------------------------------------- output


def silence_libraries() -> None:
    """Turn off messages of libraries that this program replaces, or that need no action."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # To compile for a CPU, torch does not need the GPU that it looks for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # Broken metadata do not matter.
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|PIL")
    # torch recommends TensorFloat32. Its three digits are too few for the matrix products
    # that crop images and compare features, so this program leaves it off.
    warnings.filterwarnings("ignore", message="TensorFloat32")
    # `read_image` refuses such an image.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    # With fp16, some of the first optimizer steps are skipped. That is expected.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler")
    # `utils.nvidia` explains why a GPU cannot be used.
    warnings.filterwarnings("ignore", message="CUDA initialization")
    threading.excepthook = print_thread_error


def print_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of an error in a thread, except for an OSError.

    The writer thread of TensorBoard raises an OSError on a full disk, which
    ResilientTensorBoardLogger reports.
    """
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        if not is_interactive():
            # Otherwise Python looks for garbage in all of torch at the exit: 1 to 3 s.
            gc.freeze()
