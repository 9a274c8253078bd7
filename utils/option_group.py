"""Groups of options: frozen dataclasses that check types and ranges, and refuse unknown names."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar, dataclass_transform

from pydantic import dataclasses

Group = TypeVar("Group", bound=type)


def reject_unknown(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise TypeError for a name that is not known, with the nearest one that is."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        message = f"{owner} has no argument {name!r}"
        nearest = difflib.get_close_matches(name, known, 1)
        if nearest:
            message += f"; did you mean {nearest[0]!r}?"
        raise TypeError(message)


@dataclass_transform(frozen_default=True)
def option_group(*, kw_only: bool = False) -> Any:
    """Make a class a frozen pydantic dataclass that refuses unknown arguments.

    pydantic alone drops them without a word.

    Raises:
        TypeError: when constructed with an unknown name.
        ValidationError: a ValueError; when constructed with a value of another type or range.
    """

    def decorate(cls: Group) -> Group:
        group: Any = dataclasses.dataclass(cls, frozen=True, kw_only=kw_only)
        construct = group.__init__

        @functools.wraps(construct)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            reject_unknown(kwargs, (field.name for field in fields(group)), group.__name__)
            construct(self, *args, **kwargs)

        group.__init__ = __init__
        return group

    return decorate
