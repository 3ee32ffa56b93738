"""Parts of a conversation that a chat template leaves out, found by rendering it with unique texts in their place.

A part's own text may also occur in a turn, in a different part or in the template, so its text in the rendering does
not prove that the template renders the part. A unique text or number does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from neftcli.errors import DataError

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.rows.example import Example, Turn

PartKind = Literal["tool", "description", "parameter", "call", "argument", "reasoning", "name"]
MAX_ARGUMENT_DEPTH = 50
"""Maximum nesting of arguments and schemas that is examined."""
MAX_PART_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a conversation other than the content of a turn.

    Attributes:
        kind: A tool's name; a description or a parameter of a tool; the name or an argument of a call; the reasoning of
            an answer; the name of a speaker.
        text: Its text for a message.
        turn: Index of its turn; None for tools.
    """

    kind: PartKind
    text: str
    turn: int | None = None


def find_parts_left_out(chat: ChatFormat, text: str, example: Example) -> list[Part]:
    """Return the parts that the template leaves out, in order; none if it rejects the unique texts.

    Args:
        chat: The format that rendered the conversation.
        text: The rendering.
        example: The conversation.
    """
    if not example.tools and not any(_has_parts(chat, turn) for turn in example.turns):
        return []
    taken = "\n".join((text, example.tools, *(turn.tool_calls for turn in example.turns))).casefold()
    left_out = _render_probe(chat, example, _Probe(taken))
    if left_out is None or any(part.kind == "argument" for part in left_out):  # it may read arguments by their names
        left_out = _render_probe(chat, example, _Probe(taken, rename_arguments=False))
    return left_out or []


def _render_probe(chat: ChatFormat, example: Example, probe: _Probe) -> list[Part] | None:
    """Return the parts whose unique texts the template leaves out; None if it rejects them."""
    changed = probe.change(chat, example)
    try:
        rendered = chat.render_turns(changed, len(changed.turns)).casefold()
    except DataError:
        return None
    return [part for mark, part in probe.parts.items() if mark not in rendered]


def function_of(call: Any) -> dict[str, Any]:
    """Return the function of a tool or a tool call, with or without its wrapper."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    return function if isinstance(function, dict) else {}


def _has_parts(chat: ChatFormat, turn: Turn) -> bool:
    return bool(turn.tool_calls or turn.name or (turn.reasoning and chat.reasoning == "learn"))


class _Probe:
    """Unique texts and numbers, and the parts that they replace.

    Args:
        taken: Text in lower case that contains none of them.
        rename_arguments: Replace the names of arguments as well as their values.

    Attributes:
        parts: A unique text in lower case to the part that it replaces.
    """

    def __init__(self, taken: str, *, rename_arguments: bool = True) -> None:
        self._rename_arguments = rename_arguments
        self._word = next(word for word in (f"Part{number}x" for number in count()) if word.casefold() not in taken)
        self._number = next(number for number in count(731) if str(number) not in taken)
        self.parts: dict[str, Part] = {}

    def change(self, chat: ChatFormat, example: Example) -> Example:
        """Return the conversation with each part replaced by a unique text."""
        called: set[str] = set()
        turns = []
        for index, turn in enumerate(example.turns):
            name, reasoning, tool_calls = turn.name, turn.reasoning, turn.tool_calls
            if reasoning and chat.reasoning == "learn":
                reasoning = self._word_for(Part("reasoning", reasoning, index))
            if tool_calls:
                calls = json.loads(tool_calls)
                called |= {str(function_of(call).get("name")) for call in calls}
                tool_calls = json.dumps([self._change_call(call, index) for call in calls], ensure_ascii=False)
            if name and (turn.role != "tool" or name not in called):  # a tool's name is that of its call
                name = self._word_for(Part("name", name, index))
            turns.append(replace(turn, name=name, reasoning=reasoning, tool_calls=tool_calls))
        tools = example.tools
        if tools:
            changed_tools = [self._change_tool(tool) for tool in json.loads(tools)]
            tools = json.dumps(changed_tools, ensure_ascii=False)
        return replace(example, turns=tuple(turns), tools=tools)

    def _word_for(self, part: Part) -> str:
        word = f"{self._word}{len(self.parts):05d}"
        self.parts[word.casefold()] = part
        return word

    def _number_for(self, part: Part) -> int:
        number = f"{self._number}{len(self.parts):05d}"
        self.parts[number] = part
        return int(number)

    def _change_call(self, call: dict[str, Any], turn: int) -> dict[str, Any]:
        function = function_of(call)
        name = str(function.get("name", ""))
        changed = {**function, "name": self._word_for(Part("call", name, turn))}
        if "arguments" in function:
            changed["arguments"] = self._change_argument(function["arguments"], name, turn)
        return {**call, "function": changed}

    def _change_argument(self, value: Any, label: str, turn: int, depth: int = 0) -> Any:
        """Return an argument with unique names and values; null and empty values stay."""
        if depth > MAX_ARGUMENT_DEPTH:
            return value
        if isinstance(value, dict):
            changed = {}
            for key, item in value.items():
                part = Part("argument", f"{label}: {key}"[:MAX_PART_SHOWN], turn)
                name = self._word_for(part) if self._rename_arguments else key
                changed[name] = self._change_argument(item, f"{label}: {key}", turn, depth + 1)
            return changed
        if isinstance(value, list):
            return [self._change_argument(item, label, turn, depth + 1) for item in value]
        part = Part("argument", f"{label}: {value}"[:MAX_PART_SHOWN], turn)
        if isinstance(value, str) and value.strip():
            return self._word_for(part)
        if isinstance(value, bool | int):  # true and false have no unique value of their own kind
            return self._number_for(part)
        if isinstance(value, float):
            return self._number_for(part) + 0.5
        return value

    def _change_tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        function = function_of(tool)
        name = str(function.get("name", ""))
        changed = self._change_schema({key: value for key, value in function.items() if key != "name"})
        return {**tool, "function": {"name": self._word_for(Part("tool", name)), **changed}}

    def _change_schema(self, schema: Any, depth: int = 0) -> Any:
        """Return a JSON schema with unique names of parameters, descriptions and permitted values."""
        if depth > MAX_ARGUMENT_DEPTH:
            return schema
        if isinstance(schema, list):
            return [self._change_schema(item, depth + 1) for item in schema]
        if not isinstance(schema, dict):
            return schema
        changed: dict[str, Any] = {}
        properties = schema.get("properties")
        names: dict[str, str] = {}
        if isinstance(properties, dict):
            names = {name: self._word_for(Part("parameter", name)) for name in properties}
        for key, value in schema.items():
            if key == "properties" and names:
                changed[key] = {names[name]: self._change_schema(item, depth + 1) for name, item in value.items()}
            elif key == "required" and isinstance(value, list):
                changed[key] = self._change_texts(value, lambda text: names.get(text, text))
            elif key == "enum" and isinstance(value, list):
                changed[key] = self._change_texts(value, lambda text: self._word_for(Part("parameter", text)))
            elif key == "description" and isinstance(value, str) and value.strip():
                changed[key] = self._word_for(Part("description", value))
            else:
                changed[key] = self._change_schema(value, depth + 1)
        return changed

    def _change_texts(self, values: list[Any], change: Callable[[str], str]) -> list[Any]:
        return [change(value) if isinstance(value, str) else value for value in values]
