"""Descriptions of events and their fields, read from the docstrings of their classes.

The reference page of `--json` is generated from them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from neftcli.events import EVENTS


@dataclass(frozen=True, slots=True)
class FieldDescription:
    """A field of an event or of a part of one.

    Attributes:
        name: Key in the JSON object.
        type: Type, as Python writes it.
        description: One sentence or two.
    """

    name: str
    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Description:
    """An event, or a part of one.

    Attributes:
        name: Id of the event, or class name of the part.
        summary: One sentence.
        fields: The fields, in their order.
    """

    name: str
    summary: str
    fields: tuple[FieldDescription, ...]


def describe_events() -> list[Description]:
    """Describe every event, in the order of the registry."""
    return [describe(event, name) for name, event in EVENTS.items()]


def describe_parts() -> list[Description]:
    """Describe the classes that the fields of events hold, such as Problem."""
    described: dict[type, Description] = {}
    for event in EVENTS.values():
        for part in _parts(event):
            if part not in EVENTS.values() and part not in described:
                described[part] = describe(part, part.__name__)
    return list(described.values())


def describe(kind: Any, name: str) -> Description:
    """Describe a dataclass by its docstring.

    Raises:
        ValueError: The docstring lacks a field, or describes one that the class does not have.
    """
    text = inspect.getdoc(kind) or ""
    head, _, attributes = text.partition("\n\nAttributes:\n")
    described = dict(_attributes(attributes))
    own = {field.name: str(field.type) for field in fields(kind)}
    if own.keys() != described.keys():
        raise ValueError(f"{kind.__name__}: {sorted(own.keys() ^ described.keys())} in the class or its docstring only")
    summary = " ".join(head.partition("\n\n")[0].split())
    return Description(name, summary, tuple(FieldDescription(key, own[key], described[key]) for key in own))


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and descriptions of a docstring's section `Attributes`, which is the last one."""
    for entry in re.split(r"\n(?=    \w+: )", "\n" + text)[1:]:
        name, _, description = entry.strip().partition(": ")
        yield name, " ".join(description.split())


def _parts(kind: Any) -> Iterator[type]:
    """Yield the dataclasses that the fields of a class hold, and those that these hold."""
    for hint in get_type_hints(kind).values():
        for part in _classes(hint):
            if is_dataclass(part):
                yield part
                yield from _parts(part)


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for argument in get_args(hint):
        yield from _classes(argument)
