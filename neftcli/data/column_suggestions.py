"""Hints for rows whose columns fit no layout: the mapping of columns, or the command that converts the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from shlex import quote
from typing import Any

from neftcli.data.example import has_value
from neftcli.data.jq_hints import jq, jq_key, nested_rows, one_row
from neftcli.data.turns import is_conversation

QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "user", "human", "inputs", "input", "source")
ANSWERS = ("completion", "output", "response", "answer", "chosen", "reply", "solution", "assistant", "bot", "gpt")
MORE_ANSWERS = ("targets", "target", "outputs", "responses", "answers", "completions", "label")
CONTEXTS = ("context", "input")
SYSTEMS = ("system", "system_prompt", "system_message")
TEXTS = ("content", "document", "article", "body", "passage", "story", "code", "raw", "raw_content", "chat")
ONE_CONVERSATION = '{"messages": [{"role": ..., "content": ...}, ...]}'
YAML_WORDS = ("yes", "no", "on", "off", "true", "false", "null")
QUESTION_KEYS = ("human", "user", "question", "prompt", "instruction", "input")
ANSWER_KEYS = ("assistant", "gpt", "bot", "answer", "response", "completion", "output")
DEEPEST = 5  # of nested objects
INNER_TEXTS = ("text", "content", "value", "answer", "response", "output", "completion")


def mapping(wanted: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """The flag that maps columns to their standard names.

    Args:
        wanted: Standard name to the name in the row under `columns`.
        columns: What `data.columns` says already.
    """
    own = {standard: columns.get(name, name) for standard, name in wanted.items()}
    pairs = ", ".join(f"{standard}: {_yaml(name)}" for standard, name in own.items() if standard != name)
    return f"--set data.columns={quote('{' + pairs + '}')}"


def suggested(values: Mapping[str, Any], columns: Mapping[str, str], location: str, *, answers: bool) -> str:
    """The hint for a row that fits no layout, or an empty string if none is obvious."""
    values = {name: value for name, value in values.items() if has_value(value)}
    if conversation := conversation_column(values, ()):
        return mapping({"messages": conversation}, columns)
    if {"role", "content"} <= values.keys() or {"from", "value"} <= values.keys():
        return f"{one_row(location) or ONE_CONVERSATION}    a row is a whole conversation, and this is one turn of it"
    question = question_column(values, ())
    if (
        question
        and "tools" in values
        and (calls := next(filter(lambda name: _holds_calls(values[name]), values), None))
    ):
        asked = f'{{role: "user", content: {jq_key(columns.get(question, question))}}}'
        called = f'{{role: "assistant", tool_calls: ({jq_key(columns.get(calls, calls))} | fromjson)}}'
        return f"{jq(location, f'{{messages: [{asked}, {called}], tools}}')}    makes conversations of the tool calls"
    answer = _column(values, (*ANSWERS, *MORE_ANSWERS), (question,), str)
    if question and (answer or not answers):
        return mapping(_pair(values, question, answer), columns)
    nested = _column(values, (*ANSWERS, *MORE_ANSWERS), (question,), (list, dict))
    path = path_to_text(values[nested]) if nested else ""
    if question and nested and path:
        own = columns.get(nested, nested)
        pair = mapping(_pair(values, question, nested), columns)
        return f"{jq(location, f'{jq_key(own)} |= {path}')}    since nested lists cannot be mapped; then {pair}"
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if turns := turns_of(value, columns.get(name, name), location):
                return turns
            return f"{jq(location, f'{jq_key(columns.get(name, name))}[]')}    makes a row of each object in {name}"
    if tables := _nested_tables({columns.get(name, name): value for name, value in values.items()}):
        first = next((keys for keys in tables if keys.endswith(".train")), tables[0])
        others = ", ".join(keys for keys in tables if keys != first)
        return (
            f"{nested_rows(location, first)}    reads the rows in {first}{f', not those in {others}' if others else ''}"
        )
    text = _column(values, TEXTS, (), str)
    if text:
        return mapping({"text": text}, columns)
    if len(values) == 2 and all(isinstance(value, str) for value in values.values()):
        asked, answered = values
        return f"{mapping({'prompt': asked, 'completion': answered}, columns)}    if {asked[:20]} is what is asked"
    return ""


def _nested_tables(value: Mapping[str, Any], keys: str = "") -> list[str]:
    """The ways to lists of objects inside of objects, in jq's notation."""
    tables = []
    for name, item in value.items():
        inner = keys + jq_key(name)
        if isinstance(item, dict) and inner.count(".") < DEEPEST:
            tables += _nested_tables(item, inner)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            tables.append(inner)
    return tables


def turns_of(value: list[Any], own: str, location: str) -> str:
    """The command that makes turns of objects that are turns in an unusual form, or nothing.

    Either each holds a question and its answer, or a role and, nested, a text (Gemini's `parts`).
    """
    first = value[0] if value and isinstance(value[0], dict) else {}
    question = next((name for name in QUESTION_KEYS if isinstance(first.get(name), str)), None)
    answer = next((name for name in ANSWER_KEYS if isinstance(first.get(name), str)), None)
    if question and answer:
        turns = f'{{role: "user", content: {jq_key(question)}}}, {{role: "assistant", content: {jq_key(answer)}}}'
        return jq(location, f"{{messages: [{jq_key(own)}[] | {turns}]}}")
    path = path_to_text({name: item for name, item in first.items() if name != "role"}) if "role" in first else ""
    return jq(location, f"{{messages: [{jq_key(own)}[] | {{role, content: {path}}}]}}") if path else ""


def question_column(values: Mapping[str, Any], without: Collection[str | None]) -> str | None:
    """The column that obviously holds the question."""
    return _column(values, QUESTIONS, without, (str, list))


def conversation_column(values: Mapping[str, Any], without: Collection[str]) -> str | None:
    """The column that holds a list of turns."""
    return next(
        (
            name
            for name, value in values.items()
            if name not in (*without, "prompt", "completion") and is_conversation(value)
        ),
        None,
    )


def flattened(value: Any, own: str, location: str) -> str:
    """The command that replaces nested lists and objects by their text, or an empty string if they hold none."""
    path = path_to_text(value)
    return f"{jq(location, f'{jq_key(own)} |= {path}')}    takes their first text" if path else ""


def path_to_text(value: Any) -> str:
    """The jq path of the first text in nested lists and objects (`.[0].text`), or an empty string."""
    path = ""
    while not isinstance(value, str):
        if isinstance(value, list) and value:
            value, path = value[0], f"{path or '.'}[0]"
        elif isinstance(value, dict):
            inner = {key: item for key, item in value.items() if has_value(item)}
            keys = [key for key in INNER_TEXTS if key in inner] + [
                key for key, item in inner.items() if isinstance(item, str | list | dict)
            ]
            if not keys:
                return ""
            value, path = inner[keys[0]], path + jq_key(keys[0])
        else:
            return ""
    return path


def _holds_calls(value: Any) -> bool:
    """Return whether a text is the JSON text of a list of tool calls."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    try:
        calls = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return bool(calls) and all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)


def _pair(values: Mapping[str, Any], question: str, answer: str | None) -> dict[str, str]:
    """Standard names for the columns of a question, its answer, input and system turn."""
    context = _column(values, CONTEXTS, (question, answer), str)
    instruction = question == "instruction" or context is not None
    found = {"instruction" if instruction else "prompt": question}
    if context:
        found["input"] = context
    if answer:
        found["output" if instruction else "completion"] = answer
    if system := _column(values, SYSTEMS, (question, answer), str):
        found["system"] = system
    return found


def _column(
    values: Mapping[str, Any],
    names: Collection[str],
    without: Collection[str | None],
    kind: type | tuple[type, ...],
) -> str | None:
    """The first column under one of these names, in any case, with a value of this type."""
    own = {
        name.strip().lower(): name for name, value in values.items() if isinstance(value, kind) and name not in without
    }
    return next((own[name] for name in names if name in own), None)


def _yaml(name: str) -> str:
    """A name in YAML, quoted and escaped if it would otherwise be read as something else."""
    if re.fullmatch(r"[A-Za-z_][\w.-]*", name) and name.lower() not in YAML_WORDS:
        return name
    letters = [letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in name]
    return f'"{"".join(letters)}"'
