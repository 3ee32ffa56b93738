"""What a value of an option must be, in words, and what to type in place of one that can't be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from neftcli.recipe.schema import Key


def meant(path: str, value: Any) -> str:
    """What to type for a list where one number belongs; empty where that isn't it."""
    listed = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(" ", "")
    if not re.fullmatch(r"[0-9.e+-]+(,[0-9.e+-]+)+", listed):
        return ""
    if path == "neftune.alpha":
        return f"neft sweep-alpha --alphas {listed}"
    return f"--seeds {listed.count(',') + 1}    a number of seeds" if path == "sweep.seeds" else ""


def _choices(annotation: Any) -> list[str]:
    """The words that a value may be; none where it is no choice."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(word) for word in arguments]
    inner = arguments[:1] if get_origin(annotation) is Annotated else arguments
    return [word for argument in inner for word in _choices(argument)]


def nearest_choice(key: Key, value: Any) -> str:
    """The choice of an option that begins like `value`, the default first, or is like it; empty where none is."""
    typed = str(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    choices = _choices(key.type)
    begins = [word for word in (str(key.default), *choices) if word in choices and typed and word.startswith(typed)]
    return "".join([*begins, *get_close_matches(typed, choices, n=1)][:1])


def to_type(key: Key, origin: str, near: str) -> str:
    """What to type in place of a value that can't be: the choice that is near it, or the default."""
    if key.default is None and not near:
        if origin.startswith("--grid"):
            return ""
        return "leave it out    by default it is not set"
    value = key.default if not near else (near,) if isinstance(key.default, tuple) else near
    why = "" if near else "    the default"
    if origin.startswith("--grid"):
        return f"--grid {key.path}={_written(value)},..."
    if origin == key.option.flag:
        return f"{origin} {','.join(map(_written, value)) if isinstance(value, tuple) else _written(value)}{why}"
    if origin.startswith("--set"):
        return f"--set {shlex.quote(f'{key.path}={_written(value)}')}{why}"
    return f"{key.path.rpartition('.')[2]}: {_written(value)}{why}"


def _written(value: Any) -> str:
    """A value as YAML has it in a line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(one)}' for name, one in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def describe(annotation: Any) -> str:
    """What a value must be, in words: "a finite number, 0 or more", "one of uniform, gaussian, symmetric"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [text for bound in annotation.__metadata__ if (text := _bound(bound))]
        return ", ".join([describe(annotation.__origin__), *bounds])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        return f"a list, each {describe(arguments[0])}"
    if is_mapping(annotation):
        return "a mapping of names to names"
    if is_dataclass(annotation):
        return f"a mapping with {', '.join(item.name for item in fields(annotation))}"
    if arguments:
        return " or ".join(describe(choice) for choice in arguments if choice is not type(None))
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[annotation]


def _bound(bound: Any) -> str:
    match bound:
        case Ge(ge=limit):
            return f"{limit} or more"
        case Gt(gt=limit):
            return f"above {limit}"
        case Le(le=limit):
            return f"at most {limit}"
        case Lt(lt=limit):
            return "" if limit == float("inf") else f"below {limit}"
        case MinLen():
            return "not empty"
        case _:
            return ""


def entry_type(annotation: Any) -> Any:
    """The dataclass that each item of a list option is; None if the option is no such list."""
    if get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    arguments = get_args(annotation)
    return arguments[0] if get_origin(annotation) is tuple and is_dataclass(arguments[0]) else None


def is_mapping(annotation: Any) -> bool:
    """Whether a type is a mapping of names to values."""
    if get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)
