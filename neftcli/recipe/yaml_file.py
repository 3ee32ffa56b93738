"""Read a YAML file into settings with their file and line.

The format is YAML 1.2, so `2e-5` is a number and `no` is text. neft reads the node graph and constructs no objects, so
no tag can run code, and every value has its line. Duplicate keys, anchors and tags are rejected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from neftcli.errors import Problem, RecipeError

TAG = "tag:yaml.org,2002:"
KINDS = {
    ScalarNode: ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"),
    SequenceNode: ("seq",),
    MappingNode: ("map",),
}
MAX_NUMBER_LENGTH = 400  # characters; the largest float has 309 digits
MAX_YAML_NESTING = 20  # nested blocks; the schema needs three
SHOW_RECIPE = "neft recipes show quickstart    to see a recipe"
SYNTAX_HINTS = {
    "'\\t'": "replace the tab with spaces",
    "mapping values are not allowed": "put text that contains a colon in quotes",
    "another document": "a single recipe per file: remove the line with ---",
    "end of stream": "close the open quote",
    "<stream end>": "close the open bracket",
    "parsing a flow": "close the open bracket, or separate its entries with commas",
}
"""Part of ruamel's message to a hint; the first one that is found counts."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and its origin.

    Attributes:
        value: The value, with tuples for lists.
        origin: File and line or flag: "recipe.yaml, line 7", "--alpha".
        typed: The text as typed, for messages.
    """

    value: Any
    origin: str
    typed: str


Layer = dict[str, Setting]
"""Dotted key to setting; later layers take precedence."""


def read_layer(path: Path) -> Layer:
    """Read a recipe file.

    Raises:
        RecipeError: The file is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(_not_utf8(path, error)) from None
    except OSError as error:
        hint = "neft recipes    to list the shipped recipes"
        raise RecipeError(Problem(f"{path}: can't be read", error.strerror or "", hint)) from None
    node = _compose(text, str(path))
    if node is None or (isinstance(node, ScalarNode) and not node.value):
        return {}
    lines = text.splitlines()
    if not isinstance(node, MappingNode):
        line = node.start_mark.line
        message = f"{path}, line {line + 1}: a recipe must be a mapping of keys to values"
        raise RecipeError(Problem(message, _typed(lines, line), SHOW_RECIPE))
    problem = _node_problem(node, f"{path}, line {node.start_mark.line + 1}")
    if problem:
        raise RecipeError(problem)
    layer: Layer = {}
    problems: list[Problem] = []
    _flatten(node, "", str(path), lines, layer, problems, {})
    if problems:
        raise RecipeError(*problems)
    return layer


def read_value(text: str, origin: str) -> Any:
    """Read the value of a flag or a `--set` by the same rules as a value in a file.

    Raises:
        RecipeError: The text is not a YAML value.
    """
    node = _compose(text, origin)
    problems: list[Problem] = []
    value = None if node is None else _value(node, origin, problems)
    if problems:
        raise RecipeError(*problems)
    return value


def _not_utf8(path: Path, error: UnicodeDecodeError) -> Problem:
    message, content = f"{path}: a recipe must be UTF-8 text", error.object
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(message, "UTF-16", "save the file as UTF-8")
    if b"\0" in content:
        return Problem(message, "binary data", SHOW_RECIPE)
    line = content.count(b"\n", 0, error.start) + 1
    return Problem(message, f"byte 0x{content[error.start]:02x} in line {line}", "save the file as UTF-8")


@lru_cache(maxsize=64)  # the cells of a sweep extend the same recipes
def _compose(text: str, name: str) -> Node | None:
    """Parse YAML into nodes, which nothing changes."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_YAML_NESTING
    yaml.composer.warn_double_anchors = False  # every anchor is rejected, with its line
    try:
        node: Node | None = yaml.compose(text)
        return node
    except MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        column = error.problem_mark.column + 1 if error.problem_mark else 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        message = f"this is not YAML: {reason} (column {column})"
        hint = next((hint for part, hint in SYNTAX_HINTS.items() if part in reason), SHOW_RECIPE)
        if "open" in hint and error.context_mark and error.context_mark.line < line:
            start = f"that opens in line {error.context_mark.line + 1}"
            hint = re.sub(r"the open (\w+)", rf"the \1 {start}", hint)
        if isinstance(error, MaxDepthExceededError):
            message = f"blocks are nested more than {MAX_YAML_NESTING} levels deep"
        typed = _typed(text.splitlines(), line) or "the end of the file"
        raise RecipeError(Problem(f"{name}, line {line + 1}: {message}", typed, hint)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        message = f"{name}, line {line}: this is not YAML: this character is not allowed"
        raise RecipeError(Problem(message, character, "remove it, or write it as an escape in double quotes")) from None
    except YAMLError as error:
        raise RecipeError(Problem(f"{name}: this is not YAML", str(error).splitlines()[0], SHOW_RECIPE)) from None


def _typed(lines: list[str], line: int) -> str:
    """Return the beginning of a line as typed; empty if YAML reports a position after the last line."""
    return lines[line].strip()[:60] if line < len(lines) else ""


def _flatten(
    node: MappingNode,
    prefix: str,
    name: str,
    lines: list[str],
    layer: Layer,
    problems: list[Problem],
    first_lines: dict[str, int],
) -> None:
    """Add the leaves of a mapping to `layer` under their dotted keys, and each key's first line to `first_lines`."""
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        origin, typed = f"{name}, line {line + 1}", _typed(lines, line)
        key = _key(key_node, origin, problems)
        if key is None:
            continue
        key = f"{prefix}{key}"
        if first_lines.setdefault(key, line) != line or key in layer:
            message = f"{origin}: duplicate key {key}, first in line {first_lines[key] + 1}"
            problems.append(Problem(message, typed, "keep one of the two lines"))
        elif isinstance(value_node, MappingNode) and value_node.value and _node_problem(value_node, origin) is None:
            _flatten(value_node, f"{key}.", name, lines, layer, problems, first_lines)
        else:
            layer[key] = Setting(_value(value_node, origin, problems), origin, typed)


def _value(node: Node, origin: str, problems: list[Problem]) -> Any:
    """Return the value of a node: text, number, boolean, None, or a tuple or mapping of those."""
    problem = _node_problem(node, origin)
    if problem:
        problems.append(problem)
        return None
    if isinstance(node, ScalarNode):
        return _scalar(_kind(node), node.value)
    if isinstance(node, SequenceNode):
        return tuple(_value(item, origin, problems) for item in node.value)
    entries: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, origin, problems)
        if key is not None and key in entries:
            problems.append(Problem(f"{origin}: duplicate key {key}", "", "keep one of the two"))
        elif key is not None:
            entries[key] = _value(value_node, origin, problems)
    return entries


def _key(node: Node, origin: str, problems: list[Problem]) -> str | None:
    """Return the text of a key; None, with a problem added, if it is not a plain word."""
    problem = _node_problem(node, origin)
    if problem is None and not isinstance(node, ScalarNode):
        problem = Problem(f"{origin}: a key must be a plain word", "a list or a mapping", SHOW_RECIPE)
    elif problem is None and node.value in ("", "<<"):
        hint = "write the values out" if node.value else SHOW_RECIPE
        problem = Problem(f"{origin}: a key must be a plain word", node.value or "nothing", hint)
    if problem:
        problems.append(problem)
        return None
    return str(node.value)


def _kind(node: Node) -> str:
    return str(node.tag).removeprefix(TAG)


def _node_problem(node: Node, origin: str) -> Problem | None:
    """Return what is wrong with a node itself: an anchor, a tag that is not YAML's own, or a surrogate."""
    if node.anchor is not None:
        return Problem(
            f"{origin}: YAML anchors and aliases are not supported", f"&{node.anchor}", "write the values out"
        )
    if _kind(node) not in KINDS[type(node)]:
        return Problem(
            f"{origin}: YAML tags are not supported", str(node.tag).replace(TAG, "!!"), "write the plain value"
        )
    if isinstance(node, ScalarNode) and re.search("[\ud800-\udfff]", node.value):
        return Problem(
            f"{origin}: text contains an unpaired surrogate", ascii(node.value), "write the character itself"
        )
    return None


def _scalar(kind: str, text: str) -> Any:
    """Return a scalar's value; numbers and booleans of YAML that Python can't read stay text."""
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float") and len(text) <= MAX_NUMBER_LENGTH:
        try:
            return _number(kind, text.replace("_", ""))
        except ValueError:
            return text
    return text


def _number(kind: str, text: str) -> int | float:
    if kind == "int":
        return int(text, 0 if text.lstrip("+-").startswith(("0x", "0o", "0b")) else 10)
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
