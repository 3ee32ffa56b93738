"""Options of the schema by their dotted keys, with types and defaults as text.

Command line, validation, `neft recipes show --all` and the reference page use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from neftcli.recipe.schema import Option, Recipe


@dataclass(frozen=True, slots=True)
class Key:
    """An option of the schema with its place in the recipe.

    Attributes:
        path: Dotted key, "training.learning_rate".
        option: Help and flag.
        type: Annotated type of the field.
        default: Default value; None if the option may be unset and is by default.
    """

    path: str
    option: Option
    type: Any
    default: Any

    @property
    def description(self) -> str:
        """Help and details in whole sentences."""
        unset = f"Without a value: {self.option.unset}." if self.option.unset else ""
        return " ".join(part for part in (f"{self.option.help}.", self.option.details, unset) if part)

    @property
    def flag_help(self) -> str:
        """Short help of the flag."""
        return self.option.flag_help or self.option.help

    @property
    def default_text(self) -> str:
        """The default as it is typed, or what applies if there is none; empty for switches and empty values."""
        if self.option.switch is not None or self.default in ("", ()):
            return ""
        if isinstance(self.default, tuple):
            return ",".join(map(format_value, self.default))
        return self.option.unset if self.default is None else format_value(self.default)

    @property
    def type_name(self) -> str:
        """Type in words: NUMBER, INTEGER, TEXT, or the choices with bars between."""
        return type_name(self.type)

    @property
    def choices(self) -> list[str]:
        """Values to choose from; empty if others are allowed."""
        return choices(self.type)


@cache
def keys(schema: type = Recipe, prefix: str = "") -> tuple[Key, ...]:
    """Return all options below `schema`, depth first, with their dotted paths."""
    hints = get_type_hints(schema, include_extras=True)
    instance = schema()
    result: list[Key] = []
    for item in fields(schema):
        annotation = hints[item.name]
        option = next(extra for extra in annotation.__metadata__ if isinstance(extra, Option))
        inner, path = annotation.__origin__, f"{prefix}{item.name}"
        if is_dataclass(inner) and isinstance(inner, type):
            result += keys(inner, f"{path}.")
        else:
            result.append(Key(path, option, annotation, getattr(instance, item.name)))
    return tuple(result)


def type_name(annotation: Any) -> str:
    """Return a type in words: NUMBER, INTEGER, TEXT, or its choices with bars between."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_name(annotation.__origin__)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if origin is tuple:
        return "LIST"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "MAPPING"
    if get_args(annotation):  # a union; None is left out
        names = [type_name(choice) for choice in get_args(annotation) if choice is not type(None)]
        return "|".join(dict.fromkeys(names))
    return {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT"}.get(annotation, str(annotation))


def choices(annotation: Any) -> list[str]:
    """Return the words of a Literal, also inside a list or union; empty if the type has none."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(word) for word in arguments]
    inner = arguments[:1] if get_origin(annotation) is Annotated else arguments
    return [word for argument in inner for word in choices(argument)]


def format_value(value: Any) -> str:
    """Return a value as YAML has it on one line; "the default" without one."""
    if value is None:
        return "the default"
    if isinstance(value, tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {format_value(item)}' for name, item in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value) or '""'
