"""A YAML file as settings that remember where they were typed.

YAML 1.2 is read (so `2e-5` is a number and `no` is text), by walking the node graph: nothing is constructed, so no
tag can run code, and every value keeps its line. Duplicate keys, anchors and tags are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from neftcli.errors import Problem, RecipeError

TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it was typed.

    Attributes:
        value: The value; lists come as tuples.
        origin: "recipe.yaml, line 7" or "--alpha".
        typed: The text as it was typed, for messages.
    """

    value: Any
    origin: str
    typed: str


Layer = dict[str, Setting]
"""Dotted key to setting; later layers are laid over earlier ones."""


def read_layer(path: Path) -> Layer:
    """Reads a recipe file.

    Raises:
        RecipeError: The file is missing, is no text, is no YAML, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            Problem(f"{path}: a recipe must be UTF-8 text", f"byte {error.start} is no UTF-8", f"iconv -t utf-8 {path}")
        ) from None
    except OSError as error:
        raise RecipeError(
            Problem(f"{path}: can't be read", error.strerror or "", "neft recipes    to see the recipes that ship")
        ) from None
    node = _compose(text, str(path))
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        raise RecipeError(
            Problem(f"{path}, line 1: a recipe must be a mapping of keys to values", text.strip().splitlines()[0][:60])
        )
    layer: Layer = {}
    problems: list[Problem] = []
    _flatten(node, "", str(path), text.splitlines(), layer, problems, set())
    if problems:
        raise RecipeError(*problems)
    return layer


def read_value(text: str, origin: str) -> Any:
    """Reads the value of a flag or a `--set` by the same rules as a value in a file.

    Raises:
        RecipeError: The text is no YAML value.
    """
    node = _compose(text, origin)
    problems: list[Problem] = []
    value = None if node is None else _value(node, origin, problems, set())
    if problems:
        raise RecipeError(*problems)
    return value


def _compose(text: str, name: str) -> Node | None:
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        column = error.problem_mark.column + 1 if error.problem_mark else 1
        lines = text.splitlines()
        typed = lines[line - 1].strip()[:60] if line <= len(lines) else "the end of the file"
        raise RecipeError(
            Problem(f"{name}, line {line}: this is not YAML: {error.problem} (column {column})", typed)
        ) from None
    except YAMLError as error:
        raise RecipeError(Problem(f"{name}: this is not YAML", str(error).splitlines()[0])) from None


def _flatten(
    node: MappingNode,
    prefix: str,
    name: str,
    lines: list[str],
    layer: Layer,
    problems: list[Problem],
    seen: set[int],
) -> None:
    """Adds the leaves of a mapping to `layer` under their dotted keys."""
    if id(node) in seen:
        problems.append(_anchor_problem(node, name))
        return
    seen.add(id(node))
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        origin = f"{name}, line {line}"
        typed = lines[line - 1].strip()
        if not isinstance(key_node, ScalarNode) or key_node.value == "<<":
            problems.append(Problem(f"{origin}: a key must be a plain word", typed))
            continue
        key = f"{prefix}{key_node.value}"
        if key in layer or any(other.startswith(f"{key}.") for other in layer):
            problems.append(Problem(f"{origin}: {key} is given twice", typed, "keep one of the two lines"))
        elif isinstance(value_node, MappingNode) and value_node.value:
            _flatten(value_node, f"{key}.", name, lines, layer, problems, seen)
        else:
            layer[key] = Setting(_value(value_node, origin, problems, seen), origin, typed)


def _value(node: Node, origin: str, problems: list[Problem], seen: set[int]) -> Any:
    """The value of a node: text, number, truth value, nothing, or a tuple of those."""
    if not node.tag.startswith(TAG):
        problems.append(Problem(f"{origin}: tags are not read", str(node.tag), "write the plain value"))
        return None
    if isinstance(node, ScalarNode):
        return _scalar(node.tag.removeprefix(TAG), node.value)
    if id(node) in seen:
        problems.append(_anchor_problem(node, origin))
        return None
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        return tuple(_value(item, origin, problems, seen) for item in node.value)
    return {
        str(key.value): _value(value, origin, problems, seen)
        for key, value in node.value
        if isinstance(key, ScalarNode)
    }


def _scalar(kind: str, text: str) -> Any:
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""), 0 if text.lstrip("+-").startswith(("0x", "0o")) else 10)
        case "float":
            return float(
                text.replace("_", "")
                .replace(".inf", "inf")
                .replace(".Inf", "inf")
                .replace(".INF", "inf")
                .replace(".nan", "nan")
                .replace(".NaN", "nan")
                .replace(".NAN", "nan")
            )
        case _:
            return text


def _anchor_problem(node: Node, name: str) -> Problem:
    return Problem(
        f"{name}, line {node.start_mark.line + 1}: anchors and aliases are not read",
        "the same block used twice",
        "write the values out",
    )
