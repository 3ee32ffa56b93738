"""Hints for rows with unknown columns: the column mapping to type, or the layout to write the rows in."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from shlex import quote
from typing import Any

from neftcli.rows.example import has_value
from neftcli.rows.turns import is_conversation

QUESTION_COLUMNS = (
    *("prompt", "instruction", "question", "query", "problem", "user", "human", "inputs", "input", "source"),
)
ANSWER_COLUMNS = (
    *("completion", "output", "response", "answer", "chosen", "reply", "solution", "assistant", "bot", "gpt"),
    *("targets", "target", "outputs", "responses", "answers", "completions", "label"),
)
CONTEXT_COLUMNS = ("context", "input")
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TEXT_COLUMNS = ("content", "document", "article", "body", "passage", "story", "code", "raw", "raw_content", "chat")
QUESTION_KEYS = ("human", "user", "question", "prompt", "instruction", "input")
ANSWER_KEYS = ("assistant", "gpt", "bot", "answer", "response", "completion", "output")
TEXT_KEYS = ("text", "content", "value", "answer", "response", "output", "completion")
MESSAGES_ROW = '{"messages": [{"role": ..., "content": ...}, ...]}'
YAML_KEYWORDS = ("yes", "no", "on", "off", "true", "false", "null")
MAX_NESTING = 5


def format_mapping(wanted: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Return the flag that maps columns to their standard names.

    Args:
        wanted: Standard name to the name in the row after `columns` was applied.
        columns: The recipe's `data.columns`.
    """
    own_names = {standard: columns.get(name, name) for standard, name in wanted.items()}
    pairs = ", ".join(f"{standard}: {_to_yaml(name)}" for standard, name in own_names.items() if standard != name)
    return f"--set data.columns={quote('{' + pairs + '}')}"


def suggest_columns(values: Mapping[str, Any], columns: Mapping[str, str], *, answers: bool) -> str:
    """Return a hint for a row that has no known row format; an empty string if nothing is obvious.

    Args:
        values: The row under standard column names.
        columns: The recipe's `data.columns`.
        answers: The row must have an answer.
    """
    values = {name: value for name, value in values.items() if has_value(value)}
    if conversation := find_conversation_column(values, ()):
        return format_mapping({"messages": conversation}, columns)
    if {"role", "content"} <= values.keys() or {"from", "value"} <= values.keys():
        return f"one conversation per row, not one turn: {MESSAGES_ROW}"
    question = find_question_column(values, ())
    if question and "tools" in values:
        for name, value in values.items():
            if _is_json_of_tool_calls(value):
                user = f'{{"role": "user", "content": {columns.get(question, question)}}}'
                assistant = f'{{"role": "assistant", "tool_calls": {columns.get(name, name)}}}'
                return f'write the tool calls as a conversation: {{"messages": [{user}, {assistant}], "tools": tools}}'
    answer = _find_column(values, ANSWER_COLUMNS, (question,), str)
    if question and (answer or not answers):
        return format_mapping(_name_pair(values, question, answer), columns)
    nested = _find_column(values, ANSWER_COLUMNS, (question,), (list, dict))
    if question and nested and path_to_text(values[nested]):
        pair = format_mapping(_name_pair(values, question, nested), columns)
        return f"{suggest_text(values[nested], columns.get(nested, nested))}; then {pair}"
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            own_name = columns.get(name, name)
            return suggest_turns(value, own_name) or f"write each object in {own_name} as a row of its own"
    tables = _find_tables({columns.get(name, name): value for name, value in values.items()})
    if tables:
        rows = next((path for path in tables if path.endswith(".train")), tables[0])
        return f"write the rows in {rows} to a file of their own"
    text = _find_column(values, TEXT_COLUMNS, (), str)
    if text:
        return format_mapping({"text": text}, columns)
    if len(values) == 2 and all(isinstance(value, str) for value in values.values()):
        first, second = values
        return f"{format_mapping({'prompt': first, 'completion': second}, columns)}    if {first[:20]} is the prompt"
    return ""


def suggest_turns(value: list[Any], column: str) -> str:
    """Return a hint for objects that are turns in an unusual form; an empty string if they are not.

    Each holds either a question and its answer, or a role and a nested text (Gemini's `parts`).
    """
    first = value[0] if value and isinstance(value[0], dict) else {}
    question = next((name for name in QUESTION_KEYS if isinstance(first.get(name), str)), None)
    answer = next((name for name in ANSWER_KEYS if isinstance(first.get(name), str)), None)
    if question and answer:
        user = f'{{"role": "user", "content": {question}}}'
        assistant = f'{{"role": "assistant", "content": {answer}}}'
        return f'write each object in {column} as two turns of "messages": {user}, {assistant}'
    path = path_to_text({name: item for name, item in first.items() if name != "role"}) if "role" in first else ""
    if not path:
        return ""
    turn = f'{{"role": role, "content": {path.removeprefix(".")}}}'
    return f'write each object in {column} as a turn of "messages": {turn}'


def suggest_text(value: Any, column: str) -> str:
    """Return a hint to replace a nested value by its first text; an empty string if it has none."""
    path = path_to_text(value)
    return f"replace {column} by the text in {column}{path}" if path else ""


def path_to_text(value: Any) -> str:
    """Return the path to the first text in nested lists and objects ("[0].text"), or an empty string."""
    path = ""
    while not isinstance(value, str):
        if isinstance(value, list) and value:
            value, path = value[0], f"{path}[0]"
        elif isinstance(value, dict):
            inner = {key: item for key, item in value.items() if has_value(item)}
            keys = [key for key in TEXT_KEYS if key in inner]
            keys += [key for key, item in inner.items() if isinstance(item, str | list | dict)]
            if not keys:
                return ""
            value, path = inner[keys[0]], f"{path}.{keys[0]}"
        else:
            return ""
    return path


def find_question_column(values: Mapping[str, Any], excluded: Collection[str | None]) -> str | None:
    """Return the column that obviously holds the question."""
    return _find_column(values, QUESTION_COLUMNS, excluded, (str, list))


def find_conversation_column(values: Mapping[str, Any], excluded: Collection[str]) -> str | None:
    """Return the column that holds a list of turns."""
    for name, value in values.items():
        if name not in (*excluded, "prompt", "completion") and is_conversation(value):
            return name
    return None


def _find_tables(value: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the paths to lists of objects inside nested objects ("data.train")."""
    tables = []
    for name, item in value.items():
        path = prefix + name
        if isinstance(item, dict) and path.count(".") < MAX_NESTING:
            tables += _find_tables(item, f"{path}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            tables.append(path)
    return tables


def _is_json_of_tool_calls(value: Any) -> bool:
    """Return whether a text is the JSON text of a list of tool calls."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    try:
        calls = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return bool(calls) and all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)


def _name_pair(values: Mapping[str, Any], question: str, answer: str | None) -> dict[str, str]:
    """Return standard names for the columns of a question, its answer, input and system turn."""
    context = _find_column(values, CONTEXT_COLUMNS, (question, answer), str)
    is_alpaca = question == "instruction" or context is not None
    names = {"instruction" if is_alpaca else "prompt": question}
    if context:
        names["input"] = context
    if answer:
        names["output" if is_alpaca else "completion"] = answer
    if system := _find_column(values, SYSTEM_COLUMNS, (question, answer), str):
        names["system"] = system
    return names


def _find_column(
    values: Mapping[str, Any],
    names: Collection[str],
    excluded: Collection[str | None],
    kind: type | tuple[type, ...],
) -> str | None:
    """Return the first column that has one of these names, ignoring case, and a value of this type."""
    own_names = {}
    for name, value in values.items():
        if isinstance(value, kind) and name not in excluded:
            own_names[name.strip().lower()] = name
    return next((own_names[name] for name in names if name in own_names), None)


def _to_yaml(name: str) -> str:
    """Return a name as YAML, quoted and escaped if it would otherwise be read as something else."""
    if re.fullmatch(r"[A-Za-z_][\w.-]*", name) and name.lower() not in YAML_KEYWORDS:
        return name
    letters = [letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in name]
    return f'"{"".join(letters)}"'
