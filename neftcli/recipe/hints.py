"""Describe the type of an option in words, and suggest a value in place of an invalid one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from neftcli.recipe.keys import Key, format_value

NUMBER_LIST = re.compile(r"[0-9.e+-]+(,[0-9.e+-]+)+")


def describe_type(annotation: Any) -> str:
    """Describe a type in words: "a finite number, 0 or more", "one of uniform, gaussian, symmetric"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = filter(None, map(_describe_bound, annotation.__metadata__))
        text = ", ".join([describe_type(annotation.__origin__), *bounds])
        if any(isinstance(extra, MinLen) for extra in annotation.__metadata__):
            text = f"a non-empty {text.removeprefix('a ')}" if text.startswith("a ") else f"non-empty {text}"
        return text
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        return f"a list, each {describe_type(arguments[0])}"
    if is_mapping(annotation):
        return "a mapping of names to names"
    if is_dataclass(annotation):
        return f"a mapping with {', '.join(item.name for item in fields(annotation))}"
    if arguments:
        return " or ".join(describe_type(choice) for choice in arguments if choice is not type(None))
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[annotation]


def _describe_bound(bound: Any) -> str:
    match bound:
        case Ge(ge=limit):
            return f"{limit} or more"
        case Gt(gt=limit):
            return f"above {limit}"
        case Le(le=limit):
            return f"at most {limit:,}"
        case Lt(lt=limit):
            return "" if limit == float("inf") else f"below {limit:,}"
        case _:
            return ""


def closest_choice(key: Key, value: Any) -> str:
    """Return the choice of an option that starts with `value` or is similar to it; empty if there is none.

    The default comes first.
    """
    typed = str(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    if typed:
        for choice in (str(key.default), *key.choices):
            if choice in key.choices and choice.startswith(typed):
                return choice
    return "".join(get_close_matches(typed, key.choices, n=1))


def suggest_list_flag(path: str, value: Any) -> str:
    """Return the flag to type if an option got several numbers and takes one; empty if that is not the case."""
    numbers = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(" ", "")
    if not NUMBER_LIST.fullmatch(numbers):
        return ""
    if path == "neftune.alpha":
        return f"neft sweep-alpha --alphas {numbers}"
    if path == "sweep.seeds":
        return f"--seeds {numbers.count(',') + 1}    a number of seeds"
    return ""


def suggest_value(key: Key, origin: str, choice: str, below: tuple[Any, str] | None = None) -> str:
    """Return a valid setting of an option, as its origin spells it.

    Args:
        key: The option.
        origin: Origin of the invalid value: a flag, `--set KEY`, `--grid KEY`, or a file and line.
        choice: The similar choice to suggest; if it is empty, the value of `below` or the default.
        below: The value that applies without the invalid one and the name of its file; None if it is the default.
    """
    is_list = isinstance(key.default, tuple)
    if choice:
        value, comment = (choice,) if is_list else choice, ""
    elif below is not None and below[0] != key.default:
        value, comment = below[0], f"    as in {below[1]}"
    elif key.default is not None:
        value, comment = key.default, "    the default"
    elif origin.startswith("--grid"):
        return ""
    else:
        return f"leave it out    without it: {key.option.unset}" if key.option.unset else "leave it out"
    if origin.startswith("--grid"):
        return f"--grid {key.path}={format_value(value)},..."
    if origin == key.option.flag:
        typed = ",".join(map(format_value, value)) if is_list else format_value(value)
        return f"{origin} {typed}{comment}"
    if origin.startswith("--set"):
        return f"--set {shlex.quote(f'{key.path}={format_value(value)}')}{comment}"
    return f"{key.path.rpartition('.')[2]}: {format_value(value)}{comment}"


def list_entry_type(annotation: Any) -> Any:
    """Return the dataclass of the entries of a list option; None if the entries are not dataclasses."""
    if get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    arguments = get_args(annotation)
    return arguments[0] if get_origin(annotation) is tuple and is_dataclass(arguments[0]) else None


def is_mapping(annotation: Any) -> bool:
    """Return whether a type is a mapping of names to values."""
    if get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)
