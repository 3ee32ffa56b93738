"""Checks that a chat template renders every part of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from neftcli.data.chat import WITH_TOOLS, ChatFormat
from neftcli.data.tokenizer import THINK, THINK_END
from neftcli.errors import DataError, Problem
from neftcli.models.chat_templates import OTHER_TEMPLATE, describe_template
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.answer_spans import AnswerSpan, Marks
    from neftcli.rows.example import Example, Turn

THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
DROP_REASONING = "--set data.reasoning=drop"


def require_rendered(chat: ChatFormat, text: str, example: Example, marks: Marks) -> None:
    """Check that the rendering contains every turn's text.

    Args:
        chat: The format that rendered it.
        text: The rendering.
        example: The conversation.
        marks: Positions of the turns in the rendering.

    Raises:
        DataError: A turn or a tool is left out.
    """
    if example.tools:
        _require_tools(chat, text, example)
    for index, turn in enumerate(example.turns):
        _require_content(chat, text, turn, _turn_location(example, index))
    # A text that also occurs in a different turn or in the template is located by its marks.
    contents = [_normalize(chat.content(turn)) for turn in example.turns]
    contexts = [_normalize(turn.context) for turn in example.turns]
    everything = "\n".join((_normalize(chat.template_text), *contents, *contexts))
    for index, content in enumerate(contents):
        if content and everything.count(content) > 1 and index in marks.missing:
            _reject_turn(chat, example.turns[index], _turn_location(example, index))


def find_reasoning_left_out(chat: ChatFormat, text: str, example: Example, answers: Sequence[AnswerSpan]) -> list[str]:
    """Return a remark if the template leaves out the reasoning of earlier answers.

    Args:
        chat: The format that rendered the conversation.
        text: The rendering.
        example: The conversation.
        answers: Its answers in the rendering.

    Raises:
        DataError: Tool calls or the last answer's reasoning are left out.
    """
    left_out = 0
    for answer in answers:
        is_last = answer is answers[-1]
        turn, location = example.turns[answer.turn], _turn_location(example, answer.turn)
        rendered = text[answer.start : answer.end]
        if turn.tool_calls:
            _require_texts(chat, rendered, _names_of_calls(turn), location, "tool calls", WITH_TOOLS)
        reasoning = turn.reasoning if chat.reasoning == "learn" else ""
        if reasoning and not _contains(rendered, chat.special_tokens.escape(reasoning)):
            if is_last or not chat.renders_reasoning:
                hint = f"{DROP_REASONING}, or write the reasoning into the content as the model does"
                _reject(chat, reasoning, location, "an answer's reasoning", hint)
            left_out += 1
        content = chat.content(turn)
        reasoning = content.rpartition(THINK_END)[0].removeprefix(THINK).strip()
        if reasoning and content not in text and not _contains(rendered, reasoning):
            if is_last:
                hint = DROP_REASONING if content.startswith(THINK) else OTHER_TEMPLATE
                _reject(chat, chat.special_tokens.unescape(reasoning), location, "an answer's reasoning", hint)
            left_out += 1
    if not left_out:
        return []
    return [f"the chat template leaves out the reasoning of {count_noun(left_out, 'earlier turn')}"]


def _require_tools(chat: ChatFormat, text: str, example: Example) -> None:
    """Check that the tools add their names to the rendering: a name may occur in the turns as well."""
    try:
        without_tools = _normalize(chat.render_turns(replace(example, tools=""), len(example.turns)))
    except DataError:  # the template renders no calls without tools
        without_tools = ""
    rendered = _normalize(text)
    for tool in json.loads(example.tools):
        name = str(_function(tool).get("name", ""))
        escaped = _normalize(chat.special_tokens.escape(name))
        if rendered.count(escaped) <= without_tools.count(escaped):
            _reject(chat, name, example.location, "the tools of a row", WITH_TOOLS)


def _require_content(chat: ChatFormat, text: str, turn: Turn, location: str) -> None:
    content = chat.content(turn)
    visible = content.rpartition(THINK_END)[2] if turn.role == "assistant" else content
    spellings = (content, visible.strip(), json.dumps(content, ensure_ascii=False)[1:-1])
    if not any(_contains(text, spelling) for spelling in spellings):
        _reject_turn(chat, turn, location)
    if visible != content and content not in text:
        hint = f"{OTHER_TEMPLATE}, or rows whose answers have {THINK} at their beginning alone"
        for part in THINKING.split(content):
            if THINK_END not in part and not _contains(text, part.strip()):
                part_of_row = chat.special_tokens.unescape(part.strip())
                _reject(chat, part_of_row, location, f"an answer's text before {THINK}", hint)
    if turn.context:
        _require_texts(chat, text, [turn.context], location, "the input", OTHER_TEMPLATE)


def _reject_turn(chat: ChatFormat, turn: Turn, location: str) -> NoReturn:
    """Raise the error of a template that leaves a turn out."""
    role = {"assistant": "answer", "user": "question"}.get(turn.role, f"{turn.role} turn")
    _reject(chat, turn.content, location, f"the {role}", OTHER_TEMPLATE)


def _require_texts(
    chat: ChatFormat, rendered: str, texts: Iterable[str], location: str, description: str, hint: str
) -> None:
    """Raise an error if the template leaves out one of the texts."""
    for text in texts:
        if not _contains(rendered, chat.special_tokens.escape(text)):
            _reject(chat, text, location, description, hint)


def _reject(chat: ChatFormat, text: str, location: str, description: str, hint: str) -> NoReturn:
    name = describe_template(chat.template) or "the chat template"
    raise DataError(Problem(f"{location}: {name} does not render {description}", text[:60], hint))


def _turn_location(example: Example, index: int) -> str:
    return f"{example.location}, turn {index + 1}"


def _contains(text: str, part: str) -> bool:
    return part in text or _normalize(part) in _normalize(text)


def _normalize(text: str) -> str:
    """Return a text without differences in white space and capital letters."""
    return " ".join(text.split()).casefold()


def _names_of_calls(turn: Turn) -> list[str]:
    """Return the names of the functions that a turn calls, and of their arguments."""
    names = []
    for call in json.loads(turn.tool_calls):
        function = _function(call)
        names.append(str(function.get("name", "")))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            names += map(str, arguments)
    return names


def _function(call: Any) -> dict[str, Any]:
    """Return the function of a tool or a tool call, with or without its wrapper."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    return function if isinstance(function, dict) else {}
