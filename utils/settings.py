"""The options of a command as flat settings, {name: value}, which files and checkpoints hold.

A command is a dataclass whose fields are groups of options (`utils.option_group`). No two
options of a command have the same name, so that the settings need no group names.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, get_type_hints

from pydantic import ValidationError

from utils.errors import UserError, require
from utils.option_group import Hint, Rule, describe_invalid, find_annotation, to_flag

Command = TypeVar("Command")


class Option(NamedTuple):
    """An option of a command."""

    group: str  # name of the command's field that holds the option's group
    field: dataclasses.Field[Any]
    rule: Rule
    hint: Hint


def iterate_options(command: type) -> Iterator[Option]:
    """Yield the options of a command, group by group."""
    for group, group_type in get_type_hints(command).items():
        if not dataclasses.is_dataclass(group_type):
            continue
        type_hints = get_type_hints(group_type, include_extras=True)
        for field in dataclasses.fields(group_type):
            type_hint = type_hints[field.name]
            rule = find_annotation(type_hint, Rule) or Rule.PLAIN
            hint = find_annotation(type_hint, Hint) or Hint()
            yield Option(group, field, rule, hint)


def flatten(config: Any) -> dict[str, Any]:
    """Return all settings of a command; several values as a list, which is what files hold."""
    settings: dict[str, Any] = {}
    for group in dataclasses.asdict(config).values():
        for name, value in group.items():
            settings[name] = list(value) if isinstance(value, tuple) else value
    return settings


def from_settings(command: type[Command], settings: Mapping[str, Any]) -> Command:
    """Return a command with these settings, and with the defaults of all other options.

    Raises:
        UserError: for a wrong value or an unknown name.
    """
    group_of = {option.field.name: option.group for option in iterate_options(command)}
    unknown = sorted(str(name) for name in settings if name not in group_of)
    require(not unknown, f"unknown setting {', '.join(unknown)}")

    values_of: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        values_of.setdefault(group_of[name], {})[name] = value

    group_types = get_type_hints(command)
    try:
        groups = {group: group_types[group](**values) for group, values in values_of.items()}
        return command(**groups)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None


def to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as flags, also those that are None: a recipe may have another value."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = to_flag(name)
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags.append(flag)
            flags.extend(str(item) for item in value)
        else:
            flags.append(f"{flag}={value}")
    return flags
