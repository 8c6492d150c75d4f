"""Command-line flags from a dataclass: a field is a flag, its type sets the values, the class's docstring has the help."""

import argparse
import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints


class Flag(dict[str, Any]):
    """Arguments of `add_argument` that do not follow from the name and type of a field; it stands in `Annotated`.

    "names" replaces --field-name; a name without dashes makes an argument without a flag. "group" names a group of flags that
    exclude each other; one flag of the group is required if the name ends in "!".
    """


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags that every verb has. A subclass becomes a frozen dataclass with keyword arguments.

    Attributes:
        json: print the result as JSON on stdout
    """

    json: bool = False

    def __init_subclass__(cls) -> None:
        # kw_only: a required flag may come after the optional flags of a base class
        dataclass(frozen=True, kw_only=True)(cls)


def repeated(metavar: str) -> Flag:
    """A flag that may be given several times, each time with one value."""
    return Flag(action="append", nargs=None, metavar=metavar)


def add_flags(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Adds a flag for each field: --json, then the fields of the class, then the inherited fields."""
    hints, helps = get_type_hints(options, include_extras=True), _helps(options)
    entries, groups = {entry.name: entry for entry in fields(options)}, dict[str, Any]()
    for name in dict.fromkeys(["json", *(name for cls in options.__mro__ for name in inspect.get_annotations(cls))]):
        entry = entries[name]
        arguments: dict[str, Any] = {"help": helps.get(name), **_arguments(hints[name])}
        flags = arguments.pop("names", (f"--{name.replace('_', '-')}",))
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if flags[0].startswith("-"):  # argparse refuses dest and required for a positional argument
            arguments |= {"dest": name, "required": default is MISSING}
        if default is not MISSING and arguments.get("action") != "store_true":  # argparse sets the default of a switch
            arguments["default"] = default
        group = arguments.pop("group", None)
        if group and group not in groups:
            groups[group] = parser.add_mutually_exclusive_group(required=group.endswith("!"))
        groups.get(group, parser).add_argument(*flags, **arguments)


def _arguments(hint: Any) -> dict[str, Any]:
    """The arguments of `add_argument` that follow from the type of a field.

    `bool` is a switch, `Literal` has choices, a list takes several values. `Annotated` holds the function that checks the text
    of a value, or a `Flag`; a value None in a `Flag` takes an argument away.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        arguments = _arguments(parts[0])
        for extra in parts[1:]:
            arguments |= extra if isinstance(extra, Mapping) else {"type": extra}
        return {name: value for name, value in arguments.items() if value is not None}
    if kind in (Union, UnionType):
        return _arguments(parts[0])
    if kind is list:
        return {"nargs": "+", **_arguments(parts[0])}
    if kind is Literal:
        return {"choices": parts, "type": type(parts[0])}
    return {"action": "store_true"} if hint is bool else {"type": hint}


def _helps(options: type) -> dict[str, str]:
    """Field -> its text under "Attributes:" in the docstring of its class; empty under python -OO, which has no docstrings."""
    helps: dict[str, str] = {}
    # Base classes first: a subclass may give an inherited flag another help.
    for cls in reversed(options.__mro__):
        _, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        # A text that goes on in the next line is indented by eight blanks there.
        entries = re.findall(r"^    (\w+): ((?:.|\n {8})*)", attributes, re.MULTILINE)
        helps |= {name: " ".join(text.split()) for name, text in entries}
    return helps
