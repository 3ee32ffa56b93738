"""A YAML file as settings that remember where they were typed.

YAML 1.2 is read (so `2e-5` is a number and `no` is text), by walking the node graph: nothing is constructed, so no
tag can run code, and every value keeps its line. Duplicate keys, anchors and tags are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
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
LONGEST_NUMBER = 400  # characters; the largest float, written out, has 309
DEEPEST = 20  # blocks in blocks; the schema needs three
FORM = "neft recipes show quickstart    to see how a recipe is written"
MENDING = {
    "'\\t'": "spaces in place of the tab",
    "mapping values are not allowed": "quotes around a text with a colon in it",
    "another document": "one recipe in one file: take out the line with ---",
    "<stream end>": "close the bracket that is open",
}
"""What ruamel says is wrong, in part, to what to do about it."""


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
        raise RecipeError(_not_utf8(path, error)) from None
    except OSError as error:
        raise RecipeError(
            Problem(f"{path}: can't be read", error.strerror or "", "neft recipes    to see the recipes that ship")
        ) from None
    node = _compose(text, str(path))
    if node is None or (isinstance(node, ScalarNode) and not node.value):
        return {}
    lines = text.splitlines()
    if not isinstance(node, MappingNode):
        line = node.start_mark.line
        raise RecipeError(
            Problem(f"{path}, line {line + 1}: a recipe must be a mapping of keys to values", _typed(lines, line), FORM)
        )
    refused = _refused(node, f"{path}, line {node.start_mark.line + 1}")
    if refused:
        raise RecipeError(refused)
    layer: Layer = {}
    problems: list[Problem] = []
    _flatten(node, "", str(path), lines, layer, problems, {})
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
    value = None if node is None else _value(node, origin, problems)
    if problems:
        raise RecipeError(*problems)
    return value


def _not_utf8(path: Path, error: UnicodeDecodeError) -> Problem:
    """What is said of a file in another encoding, or of one that is no text."""
    message, content = f"{path}: a recipe must be UTF-8 text", error.object
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in content and not marked:
        return Problem(message, "bytes that are no text", FORM)
    file, beside = quote(str(path)), quote(str(path.with_name(f"utf8-{path.name}")))
    convert = f"iconv -f {'utf-16' if marked else 'latin1'} -t utf-8 < {file} > {beside}"
    line = content.count(b"\n", 0, error.start) + 1
    return Problem(message, "UTF-16" if marked else f"byte 0x{content[error.start]:02x} in line {line}", convert)


def _compose(text: str, name: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    yaml.composer.warn_double_anchors = False  # every anchor is refused, with its line
    try:
        node: Node | None = yaml.compose(text)
        return node
    except MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        column = error.problem_mark.column + 1 if error.problem_mark else 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        broken = f"this is not YAML: {reason} (column {column})"
        hint = next((hint for part, hint in MENDING.items() if part in reason), FORM)
        if isinstance(error, MaxDepthExceededError):
            broken = f"blocks stand more than {DEEPEST} deep in one another"
        typed = _typed(text.splitlines(), line) or "the end of the file"
        raise RecipeError(Problem(f"{name}, line {line + 1}: {broken}", typed, hint)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        message = f"{name}, line {line}: this is not YAML: a character that may not stand in it"
        raise RecipeError(
            Problem(message, character, "take it out, or write it as an escape in double quotes")
        ) from None
    except YAMLError as error:
        raise RecipeError(Problem(f"{name}: this is not YAML", str(error).splitlines()[0], FORM)) from None


def _typed(lines: list[str], line: int) -> str:
    """The beginning of a line as it was typed; empty where YAML places something behind the last line."""
    return lines[line].strip()[:60] if line < len(lines) else ""


def _flatten(
    node: MappingNode,
    prefix: str,
    name: str,
    lines: list[str],
    layer: Layer,
    problems: list[Problem],
    first: dict[str, int],
) -> None:
    """Adds the leaves of a mapping to `layer` under their dotted keys, and every key's first line to `first`."""
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        origin, typed = f"{name}, line {line + 1}", _typed(lines, line)
        key = _key(key_node, origin, problems)
        if key is None:
            continue
        key = f"{prefix}{key}"
        if first.setdefault(key, line) != line or key in layer:
            twice = f"{origin}: {key} is given twice, first in line {first[key] + 1}"
            problems.append(Problem(twice, typed, "keep one of the two lines"))
        elif isinstance(value_node, MappingNode) and value_node.value and _refused(value_node, origin) is None:
            _flatten(value_node, f"{key}.", name, lines, layer, problems, first)
        else:
            layer[key] = Setting(_value(value_node, origin, problems), origin, typed)


def _value(node: Node, origin: str, problems: list[Problem]) -> Any:
    """The value of a node: text, number, truth value, nothing, or a tuple or mapping of those."""
    refused = _refused(node, origin)
    if refused:
        problems.append(refused)
        return None
    if isinstance(node, ScalarNode):
        return _scalar(_kind(node), node.value)
    if isinstance(node, SequenceNode):
        return tuple(_value(item, origin, problems) for item in node.value)
    entries: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, origin, problems)
        if key is not None and key in entries:
            problems.append(Problem(f"{origin}: {key} is given twice", "", "keep one of the two"))
        elif key is not None:
            entries[key] = _value(value_node, origin, problems)
    return entries


def _key(node: Node, origin: str, problems: list[Problem]) -> str | None:
    """The text of a key, or None, with a problem added, where it is none."""
    refused = _refused(node, origin)
    if refused is None and not isinstance(node, ScalarNode):
        refused = Problem(f"{origin}: a key must be a plain word", "a list or a mapping", "KEY: VALUE")
    elif refused is None and node.value in ("", "<<"):
        hint = "write the values out" if node.value else "KEY: VALUE"
        refused = Problem(f"{origin}: a key must be a plain word", node.value or "nothing", hint)
    if refused:
        problems.append(refused)
        return None
    return str(node.value)


def _kind(node: Node) -> str:
    return str(node.tag).removeprefix(TAG)


def _refused(node: Node, origin: str) -> Problem | None:
    """What is wrong with a node whatever stands in it: an anchor, a tag that isn't YAML's own, or broken text."""
    if node.anchor is not None:
        return Problem(f"{origin}: anchors and aliases are not read", f"&{node.anchor}", "write the values out")
    if _kind(node) not in KINDS[type(node)]:
        return Problem(f"{origin}: tags are not read", str(node.tag).replace(TAG, "!!"), "write the plain value")
    if isinstance(node, ScalarNode) and re.search("[\ud800-\udfff]", node.value):
        return Problem(f"{origin}: half of a character is no text", ascii(node.value), "write the character itself")
    return None


def _scalar(kind: str, text: str) -> Any:
    """A scalar's value; what YAML calls a number or truth value and Python can't read stays text."""
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float") and len(text) <= LONGEST_NUMBER:
        try:
            return _number(kind, text.replace("_", ""))
        except ValueError:
            return text
    return text


def _number(kind: str, text: str) -> int | float:
    if kind == "int":
        return int(text, 0 if text.lstrip("+-").startswith(("0x", "0o", "0b")) else 10)
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
