"""A command line from a dataclass, by tyro: a group of options is a heading, a field a flag, a mistake one line."""

import contextlib
import inspect
import io
import itertools
import os
import re
from collections.abc import Collection
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from utils.errors import UserError, check

Command = TypeVar("Command")


def left_out(metavar: str, default: str) -> Any:
    """How `--help` shows a flag whose default is None: what it takes, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def groups(command: type) -> list[type]:
    """The option groups that a command inherits, in the order of `--help`."""
    return [c for c in reversed(command.__bases__) if is_dataclass(c)]


def parse(command: type[Command], args: list[str], prog: str, not_from_file: Collection[str] = ()) -> Command:
    """The command's dataclass from its flags; `--config FILE` puts that file's settings before them.

    Each group is a nested dataclass to tyro, which makes the headings of `--help`; the result is flat.

    Args:
        not_from_file: settings that `--config` leaves out.

    Raises:
        UserError: a flag or a setting that cannot be.
        SystemExit: after `--help`.
    """
    named = {g.__name__.removesuffix("Options").lower(): g for g in groups(command)}
    nested = tyro.conf.OmitArgPrefixes[make_dataclass("Flags", list(named.items()), frozen=True)]
    if {"-h", "--help"} & set(args):
        tyro.cli(nested, args=["--help"], prog=prog, description=inspect.getdoc(command))
    if any(f.name == "config" for g in named.values() for f in fields(g)):
        args = _flags_of_file(command, args, not_from_file) + args
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"  # tyro draws a box around its message: let it not fold
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(nested, args=args, prog=prog)
    except SystemExit as stop:
        if not stop.code:  # it printed what was asked for
            raise
        raise UserError(_message(printed.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return command(**{f.name: getattr(getattr(parsed, name), f.name) for name, g in named.items() for f in fields(g)})


def _message(box: str) -> str:
    """What tyro says in its box: the first lines below the title, up to a rule."""
    rows = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    rules = (bool(row) and set(row) <= {"\u2500", "-"} for row in rows)  # of hyphens where the locale has no boxes
    sections = itertools.groupby(zip(rows, rules, strict=True), key=lambda pair: pair[1])
    texts = (" ".join(row for row, _ in section).strip() for is_rule, section in sections if not is_rule)
    message = next((text for text in texts if text), "this command line cannot be read")
    if missing := re.findall(r"(--[\w-]+ \S+)(?: [^-]*)? \(required\)", message):
        return f"{' and '.join(missing)} must be given"
    message = message.split("  Got errors:")[0]  # of each type that a flag may have
    return re.sub(r"^Error parsing \w+: ", "", message)  # a group is nothing that a person typed


def _flags_of_file(command: type[Any], args: list[str], leave_out: Collection[str]) -> list[str]:
    """The settings of the file that `--config` names, written as flags."""
    values = [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    values += [after for flag, after in itertools.pairwise(args) if flag == "--config"]
    if not values:
        return []
    file = Path(values[-1]).expanduser()
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {file}: {' '.join(str(error).split())}") from None
    settings = content.get("settings") if isinstance(content, dict) else None
    check(isinstance(settings, dict), f"--config {file}: not a config.yaml of a run (it has no `settings`)")
    assert isinstance(settings, dict)
    unknown = settings.keys() - {f.name for f in fields(command)}
    check(not unknown, f"--config {file}: unknown setting {', '.join(sorted(map(str, unknown)))}")
    return flags({name: value for name, value in settings.items() if name not in leave_out})


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings written as flags; one that is None is left out."""
    written = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            written.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            written.append(f"--{flag}={value}")
    return written
