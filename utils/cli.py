"""Parse a command line into a command, with tyro and pydantic; every mistake is one line.

A command is a dataclass whose fields are groups of options (`utils.option_group`). Each group is
a heading in `--help`, and each of its fields is a flag.
"""

import dataclasses
import difflib
import itertools
import os
import sys
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro
import yaml
from pydantic import ValidationError
from tyro import _errors  # private, therefore req.txt names one version of tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from utils.errors import UserError, require
from utils.option_group import Hint, Rule, describe_invalid, find_annotation, get_help, to_flag
from utils.settings import flatten, from_settings, iterate_options

Command = TypeVar("Command")

# The name of a flag in other tools -> its name here.
FLAGS_ELSEWHERE = {
    "--accumulate-grad-batches": "--accumulate",
    "--arch": "--backbone",
    "--base-lr": "--learning-rate",
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


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """Return the command that these arguments ask for.

    With `--config FILE` the settings in that file replace the defaults of the flags.

    Args:
        command: a dataclass whose fields are groups of options.
        args: the arguments after the name of the program and of the command.
        prog: the name of the program and of the command, for `--help`.

    Raises:
        UserError: for the first mistake in the arguments or in the file.
        SystemExit: after `--help` was printed.
    """
    if "-h" in args or "--help" in args:
        args = ["--help"]  # help does not wait for the other arguments to be right

    rules = {option.field.name: option.rule for option in iterate_options(command)}
    default: Any = tyro.MISSING_NONPROP  # each option then has its own default
    config_file = _find_config_file(args)
    if config_file is not None and "config" in rules:
        default = _read_config(command, config_file, rules)

    flags = [to_flag(name) for name in rules]
    with _errors.on_parse_error(lambda event: _raise_user_error(event, flags)):
        config: Command = tyro.cli(
            command,
            args=args,
            prog=prog,
            description=getdoc(command),
            default=default,
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_REGISTRY,
        )
    _check_texts(flatten(config))
    return config


def _check_texts(settings: dict[str, Any]) -> None:
    """Refuse empty names, and paths below a home folder that does not exist."""
    for name, value in settings.items():
        flag = to_flag(name)
        items = value if isinstance(value, list) else [value]
        for item in items:
            text = str(item)
            require(text != "", f"{flag} is empty. Give a name, or leave the flag out.")
            has_no_home = text.startswith("~") and os.path.expanduser(text) == text
            require(not has_no_home, f"{flag} {text}: there is no such home folder")


def _find_config_file(args: list[str]) -> Path | None:
    """Return the file behind the last `--config`; None without the flag."""
    file: str | None = None
    for arg, next_arg in itertools.zip_longest(args, args[1:]):
        if arg.startswith("--config="):
            file = arg.removeprefix("--config=")
        elif arg == "--config":
            file = next_arg  # None if nothing follows, which tyro refuses
    return None if file is None else Path(os.path.expanduser(file))


def _read_config(command: type[Command], file: Path, rules: dict[str, Rule]) -> Command:
    """Return the command with the settings that the config.yaml of a run hands on."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))["settings"]
        inherited = {}
        for name, value in settings.items():
            # Rules are ordered: NOT_INHERITED and those after it keep a setting to its own run.
            # Names that no option has are kept for `from_settings`, which refuses them.
            if rules.get(name, Rule.PLAIN) < Rule.NOT_INHERITED:
                inherited[name] = value
        return from_settings(command, inherited)
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"--config {file} is not the config.yaml of a run: it has no `settings`"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())  # YAML's messages have several lines
        raise UserError(f"--config {file}: {reason}") from None


# ---------------------------------------------------------------- option groups for tyro

_REGISTRY = ConstructorRegistry()


@_REGISTRY.struct_rule
def _describe_group(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe the fields of a command, or of a group of options, to tyro."""
    if not dataclasses.is_dataclass(info.type):
        return None  # tyro's own rules apply
    type_hints = get_type_hints(info.type, include_extras=True)
    specs: list[StructFieldSpec] = []
    for field in dataclasses.fields(info.type):
        if dataclasses.is_dataclass(info.default):
            default = getattr(info.default, field.name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        else:
            default = (
                tyro.MISSING_NONPROP
            )  # a flag must be given; a whole group has its own defaults
        spec = StructFieldSpec(
            name=field.name,
            type=_add_tyro_annotations(type_hints[field.name]),
            default=default,
            helptext=get_help(info.type, field.name),
        )
        specs.append(spec)
    return StructConstructorSpec(instantiate=info.type, fields=tuple(specs))


def _add_tyro_annotations(type_hint: Any) -> Any:
    """Translate the `Hint` of a type hint, if it has one, into annotations of tyro."""
    hint = find_annotation(type_hint, Hint)
    if hint is None:
        return type_hint
    if hint.positional:
        argument = tyro.conf.arg(metavar=hint.metavar, help_behavior_hint="(required)")
        return Annotated[type_hint, argument, tyro.conf.Positional]
    default_text = None  # tyro shows the default value
    if hint.default is not None:
        default_text = f"(default: {hint.default})"
    return Annotated[
        type_hint, tyro.conf.arg(metavar=hint.metavar, help_behavior_hint=default_text)
    ]


# ---------------------------------------------------------------- errors


def _raise_user_error(event: _errors.ParseErrorEvent, flags: list[str]) -> NoReturn:
    """Raise UserError with one line in place of the message of tyro, which has several."""
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            message = _describe_unknown_flag(tokens[0].split("=")[0], flags)
        case _errors.MissingArgs(missing_arguments=missing_arguments):
            argument = missing_arguments[0].arg.lowered
            message = f"{argument.name_or_flags[-1]} {argument.metavar} must be given"
        case _errors.InvalidChoice(value=value, choices=choices):
            message = f"{_get_flag(event)} {value}: {_describe_choices(value, choices)}"
        case _errors.InstantiationFailure():
            message = _describe_failure(event)
        case _:  # what is left is a flag with too few values
            message = f"{_get_flag(event)} needs {_describe_number_of_values(event)}"
    raise UserError(message) from None


def _get_flag(event: _errors.ParseErrorEvent) -> str:
    """Return the flag that an error is about; "" if the error is about no single flag."""
    argument = getattr(event, "argument", None)
    return "" if argument is None else argument.lowered.name_or_flags[0]


def _describe_number_of_values(event: _errors.ParseErrorEvent) -> str:
    """Return how many values a flag needs that got too few."""
    argument = getattr(event, "argument", None)
    if argument is None or argument.lowered.nargs in (None, 1, "*", "?"):
        return "a value"
    return f"{argument.lowered.nargs} values: {argument.lowered.metavar}"


def _describe_unknown_flag(flag: str, flags: list[str]) -> str:
    if not flag.startswith("-"):
        return f"{flag}: flags begin with --; --help lists them"
    name_here = FLAGS_ELSEWHERE.get(flag.replace("_", "-"))
    if name_here in flags:
        return f"{flag} is called {name_here} here"
    nearest = difflib.get_close_matches(flag, flags, 1)
    if nearest:
        return f"{flag}: did you mean {nearest[0]}?"
    return f"{flag}: no such flag; --help lists them"


def _describe_choices(value: str, choices: tuple[str, ...]) -> str:
    """Return which choices there are, and which of them was probably meant."""
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
