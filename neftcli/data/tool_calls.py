"""Tool calls and tool schemas, read from their various forms into one, as JSON text.

A call is {"type": "function", "function": {"name": ..., "arguments": {...}}, "id": ...}, a tool
{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}: what chat templates read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neftcli.data.example import Turn, describe_value
from neftcli.errors import DataError, Problem

A_CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
A_TOOL = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
LENGTH = 60


def read_tool_calls(value: Any, location: str) -> str:
    """The calls of an assistant turn: a list of calls, one call, or either as JSON text.

    Raises:
        DataError: A call can't be read; with its number and key.
    """
    value = _parsed(value, location)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(Problem(f"{location} must hold a tool call", "an empty list", A_CALL))
    read = [_read_call(call, f"{location}, call {number}", number) for number, call in enumerate(calls, 1)]
    return _text(read, location)


def read_tools(value: Any, location: str) -> str:
    """The tools of a row: a list of schemas or its JSON text, each with or without the outer "function".

    Raises:
        DataError: It is no list of schemas.
    """
    tools = _parsed(value, location)
    if not isinstance(tools, list):
        raise DataError(Problem(f"{location} must be a list of tool schemas", describe_value(value), A_TOOL))
    read = [_read_tool(tool, f"{location}, tool {number}") for number, tool in enumerate(tools, 1)]
    return _text(read, location) if read else ""


def answers_no_call(turns: Sequence[Turn]) -> bool:
    """Return whether a tool turn has the id of a call that no assistant turn before it holds."""
    ids: set[str] = set()
    for turn in turns:
        if turn.tool_calls:
            ids.update(call["id"] for call in json.loads(turn.tool_calls) if "id" in call)
        if turn.tool_call_id and turn.tool_call_id not in ids:
            return True
    return False


def _read_call(call: Any, location: str, number: int) -> dict[str, Any]:
    call = _object(call, location, A_CALL)
    if call.get("type", "function") != "function":
        raise DataError(Problem(f"{location} is of an unknown type", describe_value(call["type"]), "function"))
    if call.get("index", number - 1) not in (number - 1, number):
        raise DataError(Problem(f"{location} is out of order", f"index {call['index']}", "calls in the order of index"))
    if "function" in call:
        function = _object(call["function"], f"{location}: function", A_CALL)
        _require_keys(call, ("type", "id", "index", "function"), location)
        _require_keys(function, ("name", "arguments"), f"{location}: function")
    else:
        function = call
        _require_keys(call, ("type", "id", "index", "name", "arguments", "parameters"), location)
    name = _name(function, location, A_CALL)
    arguments = _parsed(function.get("arguments", function.get("parameters", {})), f"{location}: arguments")
    if not isinstance(arguments, dict):
        what = f"{location}: arguments must be an object, or its JSON text"
        raise DataError(Problem(what, describe_value(arguments), '{"name of the argument": ...}'))
    read: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if "id" in call:
        if not isinstance(call["id"], str):
            raise DataError(Problem(f"{location}: id must be text", describe_value(call["id"]), f'"{call["id"]}"'))
        read["id"] = call["id"]
    return read


def _read_tool(tool: Any, location: str) -> dict[str, Any]:
    tool = _object(tool, location, A_TOOL)
    if "function" in tool and tool.get("type", "function") == "function":
        function = _object(tool["function"], f"{location}: function", A_TOOL)
        _name(function, location, A_TOOL)
        return {**tool, "type": "function", "function": function}
    _name(tool, location, A_TOOL)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _object(value: Any, location: str, wanted: str) -> dict[str, Any]:
    """An object, or the object of a JSON text, without the keys that are null."""
    value = _parsed(value, location)
    if not isinstance(value, dict):
        raise DataError(Problem(f"{location} must be an object", describe_value(value), wanted))
    return {key: item for key, item in value.items() if item is not None}


def _name(function: Mapping[str, Any], location: str, wanted: str) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise DataError(Problem(f"{location} must have a name", describe_value(dict(function)), wanted))
    return name


def _require_keys(values: Mapping[str, Any], keys: tuple[str, ...], location: str) -> None:
    others = [key for key in values if key not in keys]
    if others:
        raise DataError(
            Problem(f"{location} holds a key that is not read: {others[0]}", describe_value(values[others[0]]), A_CALL)
        )


def _parsed(value: Any, location: str) -> Any:
    """A value, or what its JSON text says."""
    if not isinstance(value, str):
        return {} if value is None else value
    if not value.strip():
        return {}
    try:
        return json.loads(value, object_pairs_hook=lambda pairs: _without_repeats(pairs, location))
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep, or a huge number"
        raise DataError(
            Problem(f"{location} must be JSON: {said}", value[:LENGTH], "JSON text, or the object itself")
        ) from None


def _without_repeats(pairs: list[tuple[str, Any]], location: str) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        what = f"{location}: the key {repeated[:40]} is given twice in one object"
        raise DataError(Problem(what, describe_value(values[repeated]), "one of them"))
    return values


def _text(value: Any, location: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        what = f"{location} holds half a character, such as a cut-off emoji"
        raise DataError(Problem(what, ascii(value)[:LENGTH], "the text without it, or whole")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            Problem(f"{location} must be JSON: {error}", describe_value(value), "texts, numbers, lists, objects")
        ) from None
    return text
