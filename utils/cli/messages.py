"""What to tell a user about a mistake in a command line, in one line."""

import difflib
import itertools
import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError
from tyro import _errors  # private, therefore req.txt names one version of tyro

from utils.errors import UserError
from utils.option_group import describe_invalid, to_flag
from utils.settings import Option

# The name of a flag in other tools -> its name here.
FLAGS_ELSEWHERE = {
    "--accumulate-grad-batches": "--accumulate",
    "--arch": "--backbone",
    "--base-lr": "--base-learning-rate",
    "--bs": "--batch-size",
    "--data": "--data-dir",
    "--default-root-dir": "--save-dir",
    "--gpus": "--devices",
    "--held-out": "--held-out-images",
    "--lr": "--learning-rate",
    "--max-epochs": "--epochs",
    "--model": "--backbone",
    "--nnodes": "--num-nodes",
    "--nodes": "--num-nodes",
    "--num-epochs": "--epochs",
    "--num-gpus": "--devices",
    "--output-dir": "--save-dir",
    "--resume": "--ckpt-dir",
    "--warmup": "--warmup-epochs",
    "--wd": "--weight-decay",
}
# A value in other tools -> its name here.
VALUES_ELSEWHERE = {
    "16-mixed": "16",
    "32-true": "32",
    "bf16-mixed": "bf16",
    "cuda": "gpu",
    "fp16": "16",
    "fp32": "32",
}


def explain(event: _errors.ParseErrorEvent, args: list[str], options: Sequence[Option]) -> NoReturn:
    """Raise UserError with one line in place of the message of tyro, which has several.

    Args:
        event: the mistake that tyro has found.
        args: all arguments.
        options: the options of the command.
    """
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            message = _describe_strays(tokens, args, options)
        case _errors.MissingArgs(unrecognized_tokens=tokens) if tokens:
            message = _describe_strays(tokens, args, options)
        case _errors.MissingArgs(prog=prog, missing_arguments=missing_arguments):
            metavar = missing_arguments[0].arg.lowered.metavar
            message = f"{metavar} must be given: {prog} {metavar} [flags]"
        case _errors.InvalidChoice(value=value, choices=choices):
            message = f"{_get_flag(event)} {value}: {_describe_choices(value, choices)}"
        case _errors.InstantiationFailure():
            message = _describe_failure(event)
        case _errors.BadValue(argument=argument) if argument.is_positional():
            # tyro reads an unknown flag as the first positional value.
            message = _describe_strays(args, args, options)
        case _:  # what is left is a flag with too few values
            message = f"{_get_flag(event)} needs {_describe_number_of_values(event)}"
    raise UserError(message) from None


def _get_flag(event: _errors.ParseErrorEvent) -> str:
    """Return the flag that an error is about; "" if the error is about no single flag."""
    argument = getattr(event, "argument", None)
    return "" if argument is None else argument.lowered.name_or_flags[0]


def _describe_number_of_values(event: _errors.ParseErrorEvent) -> str:
    """Return how many values the flag needs. It got too few."""
    argument = getattr(event, "argument", None)
    if argument is None or argument.lowered.nargs in (None, 1, "*", "?"):
        return "a value"
    return f"{argument.lowered.nargs} values: {argument.lowered.metavar}"


def _describe_strays(tokens: list[str], args: list[str], options: Sequence[Option]) -> str:
    """Return what is wrong with arguments that belong to no flag.

    Args:
        tokens: these arguments.
        args: all arguments.
        options: the options of the command.
    """
    flags = [to_flag(option.field.name) for option in options]
    unknown_flag = _find_unknown_flag(args, flags)
    if unknown_flag is not None:
        return _describe_unknown_flag(unknown_flag, flags)
    # A word that lacks its dashes may have been taken for a path, and its value is left over.
    for previous, word in itertools.pairwise(["", *args]):
        is_value = previous.startswith("-")
        if f"--{word}" in flags and not is_value:
            return f"{word}: did you mean --{word}?"
    for option in options:
        if option.hint.flag_optional:
            return f"{tokens[0]}: give one {option.hint.metavar} only. Flags begin with --"
        if option.hint.positional:
            names = option.hint.metavar
            return f"{tokens[0]}: give {names} one after another, with the flags behind them"
    return f"{tokens[0]}: flags begin with --; --help lists them"


def _find_unknown_flag(args: list[str], flags: list[str]) -> str | None:
    """Return the first argument that looks like a flag and is none; None if there is none."""
    for arg in args:
        if arg == "--":  # what follows are values
            return None
        flag = arg.partition("=")[0]
        is_flag = flag.startswith("-") and flag.lstrip("-")[:1].isalpha()
        name = flag.replace("_", "-")
        is_known = name in flags or name.replace("--no-", "--", 1) in flags
        if is_flag and not is_known:
            return flag
    return None


def _describe_unknown_flag(flag: str, flags: list[str]) -> str:
    name_here = FLAGS_ELSEWHERE.get(flag.replace("_", "-"))
    if name_here in flags:
        return f"{flag} is called {name_here} here"
    nearest = difflib.get_close_matches(flag, flags, 1)
    if nearest:
        return f"{flag}: did you mean {nearest[0]}?"
    return f"{flag}: no such flag; --help lists them"


def _describe_choices(value: str, choices: tuple[str, ...]) -> str:
    """Return which choices there are, and which of them was probably meant."""
    # For an option that may be left out, tyro lists None too, and all choices in a random order.
    if "None" in choices:
        choices = tuple(sorted(choice for choice in choices if choice != "None"))
    all_choices = f"There are {', '.join(choices)}"
    meant = VALUES_ELSEWHERE.get(value)
    if meant not in choices:
        nearest = difflib.get_close_matches(value.lower(), choices, 1)
        meant = nearest[0] if nearest else None
    if meant is None:
        return all_choices
    return f"did you mean {meant}? {all_choices}"


def _describe_failure(event: _errors.InstantiationFailure) -> str:
    """Return why tyro could not make a value from a flag's text, or a group from its values."""
    # tyro wraps the error of pydantic, which says more, into errors of its own.
    error = sys.exception()
    while error is not None:
        if isinstance(error, ValidationError):
            return describe_invalid(error)
        error = error.__cause__ or error.__context__
    flag = _get_flag(event)
    if not flag:
        return event.message
    return f"{flag}: {event.message.splitlines()[0]}"
