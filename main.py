"""SimSiam from the command line: `python main.py` pre-trains; `python main.py --help` says what can be set."""

import logging
import sys
import warnings

from simsiam.config import COMMANDS, parse
from utils.errors import RunFailure, UserError


def main(args: list[str]) -> int:
    """Run one command; the exit status is 0, or 2 for a mistake that a person can mend (one line on stderr)."""
    name, rest = (args[0], args[1:]) if args[:1] and args[0] in COMMANDS else ("pretrain", args)
    try:
        config = parse(COMMANDS[name], rest, prog="main.py")
        from simsiam.pretrain import pretrain  # here, so that --help and a wrong flag need not wait for torch

        quiet()
        pretrain(config)
    except UserError as error:
        return fail(error, 2)
    except RunFailure as failure:
        return fail(failure, failure.status)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    return 0


def fail(error: Exception | str, status: int) -> int:
    print(f"main.py: {error}", file=sys.stderr)
    return status


def quiet() -> None:
    """Leave out what Lightning says of itself: what a person must know, this program prints."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
