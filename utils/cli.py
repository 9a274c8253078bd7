"""A command line from a dataclass of option groups, by tyro and pydantic; every mistake is one line.

A group of options is a field of the command's dataclass and a heading in `--help`; its fields are the flags. Ranges
stand on the fields (`Annotated[int, Field(ge=1)]`).
"""

import difflib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml
from pydantic import ValidationError
from tyro import _errors  # private: req.txt pins tyro to the version that has it

from utils.errors import UserError, check

Command = TypeVar("Command")

# What other tools call it.
FLAGS_ELSEWHERE = {
    **{"--lr": "--learning-rate", "--base-lr": "--learning-rate", "--wd": "--weight-decay", "--bs": "--batch-size"},
    **{"--gpus": "--devices", "--num-gpus": "--devices", "--nodes": "--num-nodes", "--nnodes": "--num-nodes"},
    **{"--max-epochs": "--epochs", "--num-epochs": "--epochs", "--warmup": "--warmup-epochs"},
    **{"--arch": "--backbone", "--model": "--backbone", "--data": "--data-dir", "--resume": "--ckpt-dir"},
    **{"--output-dir": "--save-dir", "--default-root-dir": "--save-dir", "--accumulate-grad-batches": "--accumulate"},
}
VALUES_ELSEWHERE = {"cuda": "gpu", "bf16-mixed": "bf16", "16-mixed": "16", "32-true": "32", "fp16": "16", "fp32": "32"}


@dataclass(frozen=True)
class Rule:
    """What becomes of an option later; it stands in the `Annotated` of its field.

    Attributes:
        may_change: a run may be resumed with another value.
        kept: it is written into the run's config and checkpoints.
        inherited: a run that starts from an earlier run's `--config` takes it over.
    """

    may_change: bool = False
    kept: bool = True
    inherited: bool = True


MAY_CHANGE = Rule(may_change=True)
NOT_INHERITED = Rule(may_change=True, inherited=False)
NOT_KEPT = Rule(may_change=True, kept=False, inherited=False)
PLAIN = Rule()


def unset(metavar: str, default: str) -> Any:
    """How `--help` shows a flag whose default is None: its value, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


# ---------------------------------------------------------------- commands as flat settings


def iterate_options(command: type) -> Iterator[tuple[str, Field[Any], Rule]]:
    """(group, field, rule) of each option of a command."""
    for group, type_ in get_type_hints(command).items():
        if is_dataclass(type_):
            hints = get_type_hints(type_, include_extras=True)
            for field in fields(type_):
                known = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else ()
                yield group, field, next((rule for rule in known if isinstance(rule, Rule)), PLAIN)


def flatten(config: Any) -> dict[str, Any]:
    """All settings of a command by name, without their groups."""
    return {
        field.name: getattr(getattr(config, group), field.name) for group, field, _ in iterate_options(type(config))
    }


def from_settings(command: type[Command], settings: dict[str, Any]) -> Command:
    """The inverse of `flatten`; what is not given has its default.

    Raises:
        UserError: a value out of its range, or an unknown name.
    """
    groups: dict[str, dict[str, Any]] = {}
    names = set()
    for group, field, _ in iterate_options(command):
        names.add(field.name)
        values = groups.setdefault(group, {})
        if field.name in settings:
            values[field.name] = settings[field.name]
    unknown = settings.keys() - names
    check(not unknown, f"unknown setting {', '.join(sorted(map(str, unknown)))}")
    types = get_type_hints(command)
    try:
        return command(**{group: types[group](**values) for group, values in groups.items()})
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


def replace_settings(config: Command, **changes: Any) -> Command:
    """As `dataclasses.replace`, by the options' names."""
    return from_settings(type(config), flatten(config) | changes)


def to_flags(settings: dict[str, Any]) -> list[str]:
    """Settings as flags; one that is None is left out."""
    written = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            written.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple | list):
            written += [f"--{flag}", *map(str, value)] if value else []
        elif value is not None:
            written.append(f"--{flag}={value}")
    return written


# ---------------------------------------------------------------- parsing


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """The command from its flags; `--config FILE` puts that file's settings in the place of the defaults.

    Raises:
        UserError: a flag or a setting that cannot be.
        SystemExit: after `--help`.
    """
    description = getdoc(command)
    if {"-h", "--help"} & set(args):
        tyro.cli(tyro.conf.OmitArgPrefixes[command], args=["--help"], prog=prog, description=description)
    known = {field.name: rule for _, field, rule in iterate_options(command)}
    default = _read_config(command, args, known) if "config" in known else None
    with _errors.on_parse_error(lambda event: _refuse(event, known)):
        parsed: Command = tyro.cli(tyro.conf.OmitArgPrefixes[command], args=args, prog=prog, default=default)  # pyright: ignore
    empty = [name for name, value in flatten(parsed).items() if value == ""]
    check(not empty, f"--{''.join(empty[:1]).replace('_', '-')}: an empty name; leave the flag out")
    return parsed


def _refuse(event: _errors.ParseErrorEvent, known: dict[str, Rule]) -> NoReturn:
    """One line for what tyro would not take."""
    argument = getattr(event, "argument", None)
    flag = argument.lowered.name_or_flags[0] if argument is not None else ""
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            raise UserError(_suggest_flag(tokens[0].split("=")[0], known))
        case _errors.MissingArgs(missing_arguments=missing):
            names = (f"{one.arg.lowered.name_or_flags[-1]} {one.arg.lowered.metavar}" for one in missing)
            raise UserError(f"{' and '.join(names)} must be given")
        case _errors.InvalidChoice(value=value, choices=choices):
            near = VALUES_ELSEWHERE.get(value) or next(iter(difflib.get_close_matches(value.lower(), choices, 1)), None)
            hint = f"did you mean {near}? " if near in choices else ""
            raise UserError(f"{flag} {value}: {hint}There are {', '.join(choices)}")
        case _errors.BadValue():
            raise UserError(f"{flag}: needs a value")
        case _errors.InstantiationFailure(message=message):
            error = sys.exception()
            while error is not None and not isinstance(error, ValidationError):
                error = error.__cause__ or error.__context__
            if error is not None:
                raise UserError(describe_invalid(error)) from None
            raise UserError(f"{flag}: {message.splitlines()[0]}" if flag else message) from None
    raise UserError(f"this command line cannot be read ({type(event).__name__})")


def _suggest_flag(flag: str, known: dict[str, Rule]) -> str:
    if not flag.startswith("-"):
        return f"{flag}: flags begin with --; --help lists them"
    flags = [f"--{name.replace('_', '-')}" for name in known]
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
    name = next((str(part) for part in first["loc"] if isinstance(part, str)), "")
    return f"--{name.replace('_', '-')} {first['input']}: {first['msg'].removeprefix('Input ')}"


def _read_config(command: type[Command], args: list[str], known: dict[str, Rule]) -> Command | None:
    """The command with the settings of the file that `--config` names."""
    values = [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    values += [after for flag, after in itertools.pairwise(args) if flag == "--config"]
    if not values:
        return None
    file = Path(values[-1]).expanduser()
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {file}: {' '.join(str(error).split())}") from None
    settings = content.get("settings") if isinstance(content, dict) else None
    check(isinstance(settings, dict), f"--config {file}: not a config.yaml of a run (it has no `settings`)")
    assert isinstance(settings, dict)
    inherited = {name: value for name, value in settings.items() if known.get(name, PLAIN).inherited}
    try:
        return from_settings(command, inherited)
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from None
