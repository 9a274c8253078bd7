"""Groups of options: frozen dataclasses that check types and ranges, and refuse unknown names.

A field of a group is an option. Its type says which values it takes, `Rule` and `Hint` in the
`Annotated` of its type say more about it, and the docstring below it is its help. Nothing here
imports a command-line library.
"""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, ValidationError, dataclasses

from utils.errors import UserError

Group = TypeVar("Group", bound=type)
Annotation = TypeVar("Annotation")


class Rule(IntEnum):
    """What happens to the value of an option after the run has started.

    Each rule includes the rules before it: an option that is not saved is not inherited either,
    and it may be changed on resume.
    """

    PLAIN = 0  # saved and inherited; a resumed run must have the same value
    CHANGEABLE_ON_RESUME = 1  # a resumed run may have another value
    NOT_INHERITED = 2  # a run that starts from the `--config` of another run does not get the value
    NOT_SAVED = 3  # the value is not written into the run's config and checkpoints


@dataclass(frozen=True)
class Hint:
    """How the command line shows and takes an option."""

    metavar: str | None = None
    """Placeholder of the value in `--help`; None for the name of the type."""
    default: str | None = None
    """What happens without the flag; None for an option whose default value says so itself."""
    positional: bool = False
    """Take the value without a flag."""
    flag_optional: bool = False
    """Take the value with or without its flag; for an option without a default value."""


def find_annotation(type_hint: Any, kind: type[Annotation]) -> Annotation | None:
    """Return the first object of a kind in an `Annotated` type hint; None if there is none."""
    if get_origin(type_hint) is not Annotated:
        return None
    for annotation in get_args(type_hint)[1:]:
        if isinstance(annotation, kind):
            return annotation
    return None


def get_help(group: type, name: str) -> str | None:
    """Return the docstring of an option, in one line; None if the option has none."""
    for ancestor in group.__mro__:
        option = getattr(ancestor, "__pydantic_fields__", {}).get(name)
        if option is not None and option.description:
            return " ".join(option.description.split())
    return None


@dataclass_transform(frozen_default=True)
def option_group(*, kw_only: bool = False) -> Any:
    """Make a class a frozen pydantic dataclass that refuses unknown arguments.

    pydantic alone ignores unknown arguments silently.

    Raises:
        TypeError: when constructed with an unknown name.
        ValidationError: a ValueError; when constructed with a value of another type or range.
    """
    config = ConfigDict(use_attribute_docstrings=True)

    def decorate(cls: Group) -> Group:
        group: Any = dataclasses.dataclass(cls, frozen=True, kw_only=kw_only, config=config)
        construct = group.__init__

        @functools.wraps(construct)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            names = [field.name for field in fields(group)]
            reject_unknown(kwargs, names, group.__name__)
            construct(self, *args, **kwargs)

        group.__init__ = __init__
        return group

    return decorate


# ---------------------------------------------------------------- errors


def reject_unknown(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise TypeError for a name that is not known, with the nearest known name."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        message = f"{owner} has no argument {name!r}"
        nearest = difflib.get_close_matches(name, known, 1)
        if nearest:
            message += f"; did you mean {nearest[0]!r}?"
        raise TypeError(message)


def to_flag(name: str) -> str:
    """Return the flag of an option: "batch_size" -> "--batch-size"."""
    return f"--{name.replace('_', '-')}"


def describe_invalid(error: ValidationError) -> str:
    """Return the first of the mistakes that pydantic found, as "--flag VALUE: should be ..."."""
    mistake = error.errors()[0]
    cause = mistake.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # from a __post_init__: the message names its flags itself
        return str(cause)
    name = ""
    for part in mistake["loc"]:
        if isinstance(part, str):  # the other parts are positions in a tuple
            name = part
            break
    requirement = mistake["msg"].removeprefix("Input ")
    return f"{to_flag(name)} {mistake['input']}: {requirement}"
