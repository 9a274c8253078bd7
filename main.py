"""SimSiam from the command line: `python main.py` pre-trains; `python main.py --help` says what can be set."""

import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress

from simsiam.config.commands import COMMANDS
from utils.cli import parse
from utils.errors import RunFailure, Stopped, UserError, check, is_out_of_memory

DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


def main(args: list[str]) -> int:
    """Run one command; the exit status is 0, or 2 for a mistake that a person can mend (one line on stderr)."""
    former = {n: signal.signal(n, stop) for n, usual in DEFAULTS.items() if signal.getsignal(n) is usual}  # not nohup's
    named = bool(args) and not args[0].startswith("-")
    name, rest = (args[0], args[1:]) if named else ("pretrain", args)
    try:
        check(name in COMMANDS, f"{name}: no such command; there are {', '.join(COMMANDS)}, each with --help")
        config = parse(COMMANDS[name], rest, prog=f"main.py {name}" if named else "main.py")
        if name == "pretrain" and config.run.seeds:
            name = "sweep"
        command = importlib.import_module(f"simsiam.commands.{name}")  # now: --help need not wait for torch
        quiet()
        getattr(command, name)(config)
    except UserError as error:
        return fail(error, 2)
    except RunFailure as failure:
        return fail(failure, failure.status)
    except Stopped as stopped:
        return fail(stopped, 128 + stopped.number)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:100] or "of the program"
        how = "a smaller --batch-size, --accumulate, or less --data-memory; what is saved stays"
        return fail(UserError(f"out of memory ({why}): give {how}"), 2)
    except BrokenPipeError:  # whoever read the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # no permission, no room: what a program cannot foresee and a person can mend
        return fail(UserError(f"{error.filename or 'a file'}: {error.strerror or error}"), 2)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return 0


def stop(number: int, frame: object) -> None:
    """What ends a command that has nothing to save; a pre-training catches the same signals and saves itself."""
    raise Stopped(number, "; the same command goes on, or begins again")


def fail(error: BaseException, status: int) -> int:
    rank, here = (
        int(os.environ.get(name) or os.environ.get(slurm, 0))
        for name, slurm in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"))
    )
    if rank > 0 if isinstance(error, RunFailure | Stopped) else here > 0:
        return status  # all processes come to that together: the first one says it; of a mistake, that of each machine
    with suppress(OSError):  # after a SIGHUP there may be no terminal to write to
        print(f"main.py: {error}", file=sys.stderr)
    return status


def quiet() -> None:
    """Leave out what Lightning says of itself: what a person must know, this program prints."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    threading.excepthook = in_a_thread
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # we refuse such an image, in our words


def in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """A full disk that TensorBoard's thread met is told where its next point is logged: once is enough."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
