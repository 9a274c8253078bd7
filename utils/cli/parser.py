"""Parse a command line into a command, with tyro and pydantic.

A command is a dataclass whose fields are groups of options (`utils.option_group`). Each group is
a heading in `--help`, and each of its fields is a flag.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
import yaml
from tyro import _errors  # private, therefore req.txt names one version of tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from utils.cli.messages import explain
from utils.errors import UserError, require
from utils.option_group import Hint, Rule, find_annotation, get_help, to_flag
from utils.settings import Option, flatten, from_settings, iterate_options

Command = TypeVar("Command")


def parse(command: type[Command], args: list[str], prog: str) -> Command:
    """Return the command that these arguments ask for.

    With `--recipe NAME` the values of that recipe replace the defaults of the flags, if the command
    has a function `recipe_values`. The settings in the file of `--config FILE` replace both.

    Args:
        command: a dataclass whose fields are groups of options.
        args: the arguments after the name of the program and of the command.
        prog: the name of the program and of the command, for `--help`.

    Raises:
        UserError: for the first mistake in the arguments or in the file.
        SystemExit: after `--help` was printed.
    """
    options = list(iterate_options(command))
    without_flag = _find_options_without_flag(options, args)
    if "-h" in args or "--help" in args:
        args = ["--help"]  # help does not wait for the other arguments to be right
        without_flag = set()  # help shows each flag

    rules = {option.field.name: option.rule for option in options}
    default = _make_default(command, args, rules)

    with _errors.on_parse_error(lambda event: explain(event, args, options)):
        config: Command = tyro.cli(
            command,
            args=args,
            prog=prog,
            description=getdoc(command),
            default=default,
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_make_registry(without_flag),
        )
    _check_texts(flatten(config))
    return config


def _find_options_without_flag(options: list[Option], args: list[str]) -> set[str]:
    """Return the names of the options whose values tyro must take without their flag.

    These are the options with `Hint.flag_optional` whose flag is not among the arguments.
    """
    given_flags = {arg.partition("=")[0] for arg in args}
    names: set[str] = set()
    for option in options:
        name = option.field.name
        if option.hint.flag_optional and to_flag(name) not in given_flags:
            names.add(name)
    return names


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


def _make_default(command: type[Command], args: list[str], rules: dict[str, Rule]) -> Any:
    """Return the instance of the command whose values are the defaults of the flags.

    It has the settings in the file of `--config`. Other settings have the values of the recipe, and
    settings that the recipe does not have keep the defaults of their options. Without a file and a
    recipe, return tyro's value for "no default".
    """
    file = _find_value(args, "--config") if "config" in rules else None
    recipe_values = getattr(command, "recipe_values", None)
    recipe = None if recipe_values is None else _find_value(args, "--recipe")
    if file is None and recipe is None:
        return tyro.MISSING_NONPROP  # each option then has its own default

    settings: dict[str, Any] = {}
    if file is not None:
        settings = _read_config(Path(os.path.expanduser(file)), rules)
    try:
        if recipe_values is not None:
            settings = _add_recipe(settings, recipe, recipe_values)
        return from_settings(command, settings)
    except ValueError as error:
        if file is None:
            raise
        raise UserError(f"--config {file}: {error}") from None


def _add_recipe(
    settings: dict[str, Any],
    recipe: str | None,
    recipe_values: Callable[[str | None], dict[str, Any] | None],
) -> dict[str, Any]:
    """Return the settings of a file, and the values of a recipe for those that it leaves open.

    Args:
        settings: empty if there is no file.
        recipe: the value of `--recipe`, or None for the recipe of the file.
        recipe_values: returns the values of a recipe, or None for an unknown one.

    Raises:
        UserError: if the file was made with another recipe. It has the values of that recipe, which
            would win over those of `--recipe`.
    """
    of_file = settings.get("recipe")
    values = recipe_values(recipe or of_file)
    if values is None:
        return settings  # The check of the options refuses the unknown recipe.
    if settings and recipe is not None:
        require(
            values == recipe_values(of_file),
            f"all settings are in the file, so --recipe {recipe} would change nothing. Drop "
            "one of the two flags.",
        )
    merged = dict(values)
    for name, value in settings.items():
        # A setting is None in the file if it was left open. The value of the recipe then stays.
        if value is not None or name not in values:
            merged[name] = value
    return merged


def _find_value(args: list[str], flag: str) -> str | None:
    """Return the value behind the last occurrence of a flag; None without the flag."""
    value: str | None = None
    for arg, next_arg in itertools.zip_longest(args, args[1:]):
        if arg.startswith(f"{flag}="):
            value = arg.removeprefix(f"{flag}=")
        elif arg == flag:
            value = next_arg  # None if nothing follows, which tyro refuses
    return value


def _read_config(file: Path, rules: dict[str, Rule]) -> dict[str, Any]:
    """Return the settings that the config.yaml of a run hands on."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))["settings"]
        inherited: dict[str, Any] = {}
        for name, value in settings.items():
            # Rules are ordered: NOT_INHERITED and those after it keep a setting to its own run.
            # Names that no option has are kept for `from_settings`, which refuses them.
            if rules.get(name, Rule.PLAIN) < Rule.NOT_INHERITED:
                inherited[name] = value
        return inherited
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"--config {file} is not the config.yaml of a run: it has no `settings`"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())  # YAML's messages have several lines
        raise UserError(f"--config {file}: {reason}") from None


# ---------------------------------------------------------------- option groups for tyro


def _make_registry(without_flag: set[str]) -> ConstructorRegistry:
    """Return the rule by which tyro treats option groups.

    Args:
        without_flag: names of options that are taken without their flag.
    """
    registry = ConstructorRegistry()

    @registry.struct_rule
    def describe_group(info: StructTypeInfo) -> StructConstructorSpec | None:
        return _describe_group(info, without_flag)

    return registry


def _describe_group(info: StructTypeInfo, without_flag: set[str]) -> StructConstructorSpec | None:
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
            # An option is then required. A field that is a group takes the defaults of its own
            # fields.
            default = tyro.MISSING_NONPROP
        spec = StructFieldSpec(
            name=field.name,
            type=_add_tyro_annotations(type_hints[field.name], field.name in without_flag),
            default=default,
            helptext=get_help(info.type, field.name),
        )
        specs.append(spec)
    return StructConstructorSpec(instantiate=info.type, fields=tuple(specs))


def _add_tyro_annotations(type_hint: Any, without_flag: bool) -> Any:
    """Translate the `Hint` of a type hint, if it has one, into annotations of tyro.

    Args:
        without_flag: take a value with `Hint.flag_optional` without its flag.
    """
    hint = find_annotation(type_hint, Hint)
    if hint is None:
        return type_hint
    if hint.positional or (hint.flag_optional and without_flag):
        argument = tyro.conf.arg(metavar=hint.metavar, help_behavior_hint="(required)")
        return Annotated[type_hint, argument, tyro.conf.Positional]
    default_text = None  # tyro shows the default value
    if hint.default is not None:
        default_text = f"(default: {hint.default})"
    return Annotated[
        type_hint, tyro.conf.arg(metavar=hint.metavar, help_behavior_hint=default_text)
    ]
