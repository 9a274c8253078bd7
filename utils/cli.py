"""A command line from a dataclass of option groups, by tyro and pydantic; every mistake is one line.

A group is a field of the command's dataclass and a heading in `--help`; its fields are the flags, each with its range
(`Annotated[int, Field(ge=1)]`).
"""

import difflib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, fields, is_dataclass
from enum import IntEnum
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml
from pydantic import ValidationError
from tyro import _errors  # private, hence req.txt pins tyro

from utils.errors import UserError, require

Command = TypeVar("Command")

# What other tools call it.
FLAGS_ELSEWHERE = {
    **{
        "--lr": "--learning-rate",
        "--base-lr": "--learning-rate",
        "--wd": "--weight-decay",
        "--bs": "--batch-size",
    },
    **{
        "--gpus": "--devices",
        "--num-gpus": "--devices",
        "--nodes": "--num-nodes",
        "--nnodes": "--num-nodes",
    },
    **{
        "--max-epochs": "--epochs",
        "--num-epochs": "--epochs",
        "--warmup": "--warmup-epochs",
        "--arch": "--backbone",
    },
    **{
        "--model": "--backbone",
        "--data": "--data-dir",
        "--resume": "--ckpt-dir",
        "--output-dir": "--save-dir",
    },
    "--held-out": "--held-out-images",
    **{"--default-root-dir": "--save-dir", "--accumulate-grad-batches": "--accumulate"},
}
VALUES_ELSEWHERE = {
    "cuda": "gpu",
    "bf16-mixed": "bf16",
    "16-mixed": "16",
    "32-true": "32",
    "fp16": "16",
    "fp32": "32",
}


class Rule(IntEnum):
    """What becomes of an option later; it stands in the `Annotated` of its field. Each implies those before it."""

    PLAIN = 0
    CHANGEABLE_ON_RESUME = 1  # a run may be resumed with another value
    NOT_INHERITED = 2  # a run that starts from an earlier run's `--config` does not take it over
    NOT_SAVED = 3  # it is not written into the run's config and checkpoints


PLAIN, CHANGEABLE_ON_RESUME, NOT_INHERITED, NOT_SAVED = Rule


def default_hint(metavar: str, default: str) -> Any:
    """How `--help` shows a flag whose default is None: its value, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def to_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# ---------------------------------------------------------------- commands as flat settings


def iterate_options(command: type) -> Iterator[tuple[str, Field[Any], Rule, str]]:
    """(group, field, rule, what happens without it, if that is not its default) of each option of a command."""
    for group, type_ in get_type_hints(command).items():
        if is_dataclass(type_):
            hints = get_type_hints(type_, include_extras=True)
            for field in fields(type_):
                known = (
                    get_args(hints[field.name])
                    if get_origin(hints[field.name]) is Annotated
                    else ()
                )
                rule = next((rule for rule in known if isinstance(rule, Rule)), PLAIN)
                told = [
                    hint
                    for arg in known
                    if isinstance(hint := getattr(arg, "help_behavior_hint", None), str)
                ]
                yield group, field, rule, "".join(told).removeprefix("(default: ").removesuffix(")")


def flatten(config: Any) -> dict[str, Any]:
    """All settings of a command by name, without their groups; several values as a list, which is what files hold."""
    found = (setting for group in asdict(config).values() for setting in group.items())
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found}


def from_settings(command: type[Command], settings: Mapping[str, Any]) -> Command:
    """The inverse of `flatten`; what is not given has its default. UserError: a wrong value, or an unknown name."""
    group_of = {field.name: group for group, field, *_ in iterate_options(command)}
    unknown = sorted(map(str, settings.keys() - group_of.keys()))
    require(not unknown, f"unknown setting {', '.join(unknown)}")
    groups: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        groups.setdefault(group_of[name], {})[name] = value
    types = get_type_hints(command)
    try:
        return command(**{group: types[group](**values) for group, values in groups.items()})
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


def to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags; one that is None is left out."""
    written = []
    for name, value in settings.items():
        flag = to_flag(name)
        if isinstance(value, bool):
            written.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and value:
            written += [flag, *map(str, value)]
        elif value not in (None, []):
            written.append(f"{flag}={value}")
    return written


# ---------------------------------------------------------------- parsing


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """The command from its flags; `--config FILE` puts that file's settings in the place of the defaults."""
    flat = tyro.conf.OmitArgPrefixes[command]
    args = ["--help"] if {"-h", "--help"} & set(args) else args
    rules = {field.name: rule for _, field, rule, _ in iterate_options(command)}
    default = _read_config(command, args, rules) if "config" in rules else None
    with _errors.on_parse_error(lambda event: _refuse(event, rules)):
        parsed: Command = tyro.cli(
            flat, args=args, prog=prog, description=getdoc(command), default=default
        )  # pyright: ignore
    for name, value in flatten(parsed).items():
        for text in value if isinstance(value, list) else [value]:
            require(text != "", f"{to_flag(name)}: an empty name; leave the flag out")
            lost = str(text).startswith("~") and os.path.expanduser(text) == text
            require(not lost, f"{to_flag(name)} {text}: there is no such home folder")
    return parsed


def _refuse(event: _errors.ParseErrorEvent, rules: dict[str, Rule]) -> NoReturn:
    """One line for what tyro would not take."""
    argument = getattr(event, "argument", None)
    flag = argument.lowered.name_or_flags[0] if argument is not None else ""
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            message = _suggest_flag(tokens[0].split("=")[0], rules)
        case _errors.MissingArgs(missing_arguments=[missing, *_]):
            message = f"{missing.arg.lowered.name_or_flags[-1]} {missing.arg.lowered.metavar} must be given"
        case _errors.InvalidChoice(value=value, choices=choices):
            near = [
                VALUES_ELSEWHERE.get(value),
                *difflib.get_close_matches(value.lower(), choices, 1),
            ]
            hints = [f"did you mean {choice}? " for choice in near if choice in choices]
            message = f"{flag} {value}: {''.join(hints[:1])}There are {', '.join(choices)}"
        case _errors.InstantiationFailure():
            error = sys.exception()
            while error is not None and not isinstance(error, ValidationError):
                error = error.__cause__ or error.__context__
            text = f"{flag}: {event.message.splitlines()[0]}" if flag else event.message
            message = describe_invalid(error) if error else text
        case _:
            message = f"{flag}: needs a value"
    raise UserError(message) from None


def _suggest_flag(flag: str, rules: dict[str, Rule]) -> str:
    if not flag.startswith("-"):
        return f"{flag}: flags begin with --; --help lists them"
    flags = list(map(to_flag, rules))
    elsewhere = FLAGS_ELSEWHERE.get(flag.replace("_", "-"))
    if elsewhere in flags:
        return f"{flag}: it is called {elsewhere} here"
    near = difflib.get_close_matches(flag, flags, 1)
    return f"{flag}: " + (f"did you mean {near[0]}?" if near else "no such flag; --help lists them")


def describe_invalid(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as "--flag VALUE: what it should be"."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # of a __post_init__, which names its flags itself
        return str(cause)
    name = next((part for part in first["loc"] if isinstance(part, str)), "")
    return f"{to_flag(name)} {first['input']}: {first['msg'].removeprefix('Input ')}"


def _read_config(command: type[Command], args: list[str], rules: dict[str, Rule]) -> Command | None:
    """The command with the settings of the file that `--config` names."""
    values = [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    values += [after for flag, after in itertools.pairwise(args) if flag == "--config"]
    if not values:
        return None
    file = Path(os.path.expanduser(values[-1]))
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))["settings"].items()
        taken = {name: value for name, value in settings if rules.get(name, PLAIN) < NOT_INHERITED}
        return from_settings(command, taken)
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"--config {file}: not a config.yaml of a run (it has no `settings`)"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {file}: {' '.join(str(error).split())}") from None
