"""Tool calls and tool schemas in their various forms, as JSON text in the form that chat templates read.

A call becomes {"type": "function", "function": {"name": ..., "arguments": {...}}, "id": ...}, a tool
{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neftcli.errors import DataError, Problem
from neftcli.rows.example import Turn, describe_value

CALL_EXAMPLE = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
TOOLS_EXAMPLE = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
MAX_CALL_SHOWN = 60


def read_tool_calls(value: Any, location: str) -> str:
    """Return the calls of an assistant turn as JSON text: a list of calls, one call, or the JSON text of either.

    Raises:
        DataError: A call can't be read; with its number and key.
    """
    value = _parse_json(value, location)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(Problem(f"{location} must hold a tool call", "an empty list", CALL_EXAMPLE))
    return _to_json([_read_call(call, f"{location}, call {n}", n) for n, call in enumerate(calls, 1)], location)


def read_tools(value: Any, location: str) -> str:
    """Return the tools of a row as JSON text: a list of schemas or its JSON text, with or without "function".

    Raises:
        DataError: It is not a list of schemas.
    """
    tools = _parse_json(value, location)
    if not isinstance(tools, list):
        raise DataError(Problem(f"{location} must be a list of tool schemas", describe_value(tools), TOOLS_EXAMPLE))
    if not tools:
        return ""
    return _to_json([_read_tool(tool, f"{location}, tool {n}") for n, tool in enumerate(tools, 1)], location)


def has_unmatched_call_id(turns: Sequence[Turn]) -> bool:
    """Return whether a tool turn has the id of a call that no earlier assistant turn made."""
    ids: set[str] = set()
    for turn in turns:
        if turn.tool_calls:
            ids.update(call["id"] for call in json.loads(turn.tool_calls) if "id" in call)
        if turn.tool_call_id and turn.tool_call_id not in ids:
            return True
    return False


def _read_call(value: Any, location: str, number: int) -> dict[str, Any]:
    call = _require_object(value, location, CALL_EXAMPLE)
    if call.get("type", "function") != "function":
        raise DataError(Problem(f"{location} has an unknown type", describe_value(call["type"]), "function"))
    if call.get("index", number - 1) not in (number - 1, number):
        message = f"{location} is out of order"
        raise DataError(Problem(message, f"index {call['index']}", "sort the calls by index"))
    if "function" in call:
        function = _require_object(call["function"], f"{location}: function", CALL_EXAMPLE)
        _require_known_keys(call, ("type", "id", "index", "function"), location)
        _require_known_keys(function, ("name", "arguments"), f"{location}: function")
    else:
        function = call
        _require_known_keys(call, ("type", "id", "index", "name", "arguments", "parameters"), location)
    name = _require_name(function, location, CALL_EXAMPLE)
    arguments = _parse_json(function.get("arguments", function.get("parameters", {})), f"{location}: arguments")
    if not isinstance(arguments, dict):
        message = f"{location}: arguments must be an object, or its JSON text"
        raise DataError(Problem(message, describe_value(arguments), '{"name of the argument": ...}'))
    result: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if "id" in call:
        if not isinstance(call["id"], str):
            raise DataError(Problem(f"{location}: id must be text", describe_value(call["id"]), f'"{call["id"]}"'))
        result["id"] = call["id"]
    return result


def _read_tool(value: Any, location: str) -> dict[str, Any]:
    tool = _require_object(value, location, TOOLS_EXAMPLE)
    if "function" in tool and tool.get("type", "function") == "function":
        function = _require_object(tool["function"], f"{location}: function", TOOLS_EXAMPLE)
        _require_name(function, location, TOOLS_EXAMPLE)
        return {**tool, "type": "function", "function": function}
    _require_name(tool, location, TOOLS_EXAMPLE)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _require_object(value: Any, location: str, example: str) -> dict[str, Any]:
    """Return an object, or the object of a JSON text, without keys that are null."""
    value = _parse_json(value, location)
    if not isinstance(value, dict):
        raise DataError(Problem(f"{location} must be an object", describe_value(value), example))
    return {key: item for key, item in value.items() if item is not None}


def _require_name(function: Mapping[str, Any], location: str, example: str) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise DataError(Problem(f"{location} must have a name", describe_value(dict(function)), example))
    return name


def _require_known_keys(values: Mapping[str, Any], known: tuple[str, ...], location: str) -> None:
    for key, value in values.items():
        if key not in known:
            message = f"{location} has a key that is not read: {key}"
            raise DataError(Problem(message, describe_value(value), CALL_EXAMPLE))


def _parse_json(value: Any, location: str) -> Any:
    """Return a value, or the value of a JSON text; an empty object for null or an empty string."""
    if not isinstance(value, str):
        return {} if value is None else value
    if not value.strip():
        return {}
    try:
        return json.loads(value, object_pairs_hook=lambda pairs: _to_object(pairs, location))
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or a huge number"
        hint = "JSON text, or the object itself"
        raise DataError(Problem(f"{location} must be JSON: {reason}", value[:MAX_CALL_SHOWN], hint)) from None


def _to_object(pairs: list[tuple[str, Any]], location: str) -> dict[str, Any]:
    """Return the object of a JSON text; a repeated key would lose a value."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            message = f"{location}: the key {name[:40]} occurs twice in an object"
            raise DataError(Problem(message, describe_value(value), "keep one of them"))
        values[name] = value
    return values


def _to_json(value: Any, location: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"{location} contains an unpaired surrogate, such as half of an emoji"
        got = ascii(value)[:MAX_CALL_SHOWN]
        raise DataError(Problem(message, got, "remove it, or write the whole character")) from None
    except (TypeError, ValueError, RecursionError) as error:
        hint = "use texts, numbers, lists and objects"
        raise DataError(Problem(f"{location} must be JSON: {error}", describe_value(value), hint)) from None
    return text
