"""Checks that a chat template renders every part of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from neftcli.data.chat import WITH_TOOLS, ChatFormat
from neftcli.data.template_probe import Part, find_parts_left_out, function_of
from neftcli.data.tokenizer import THINK, THINK_END
from neftcli.errors import DataError, ModelError, Problem
from neftcli.models.chat_templates import OTHER_TEMPLATE, describe_template
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.answer_spans import AnswerSpan, Marks
    from neftcli.rows.example import Example, Turn

THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
ASCII_WORD = re.compile("[A-Za-z0-9]+")
"""A part of a text that is the same in JSON, XML and Python."""
DROP_REASONING = "--set data.reasoning=drop"


def require_rendered(chat: ChatFormat, text: str, example: Example, marks: Marks) -> list[Part]:
    """Check that the rendering contains every turn's text, tool and tool call.

    Args:
        chat: The format that rendered it.
        text: The rendering.
        example: The conversation.
        marks: Positions of the turns in the rendering.

    Returns:
        The other parts that the template leaves out.

    Raises:
        DataError: A turn, a tool, a tool call or an argument is left out.
    """
    left_out = _require_tools_and_calls(chat, text, example)
    for index, turn in enumerate(example.turns):
        _require_content(chat, text, turn, _turn_location(example, index))
    # A text that also occurs in a different turn or in the template is located by its marks.
    contents = [_normalize(chat.content(turn)) for turn in example.turns]
    contexts = [_normalize(turn.context) for turn in example.turns]
    others = [_normalize(f"{turn.reasoning}\n{turn.tool_calls}\n{turn.name}") for turn in example.turns]
    template_text, tools = _normalize(chat.template_text), _normalize(example.tools)
    everything = "\n".join((template_text, tools, *contents, *contexts, *others))
    for index, content in enumerate(contents):
        if content and everything.count(content) > 1 and index in marks.missing:
            _reject_turn(chat, example.turns[index], _turn_location(example, index))
    return left_out


def describe_left_out(left_out: Sequence[Part]) -> list[str]:
    """Return remarks on the parts without which a row is still trained on: parameters, descriptions and names."""
    descriptions = {
        "parameter": "parameters of tools",
        "description": "descriptions of tools",
        "name": "the key name of turns",
    }
    kinds = {part.kind for part in left_out}
    return [f"the chat template leaves out {text}" for kind, text in descriptions.items() if kind in kinds]


def require_answer_in_block(chat: ChatFormat, text: str, example: Example, answer: AnswerSpan, marks: Marks) -> None:
    """Check that an answer that was located by a generation block contains its turn's content, and no other turn's.

    Raises:
        ModelError: It doesn't.
    """
    content = chat.content(example.turns[answer.turn])
    visible = content if content in text else content.rpartition(THINK_END)[2].strip()
    if not visible:
        return
    block = text[answer.start : answer.end]
    neighbours = [chat.special_tokens.escape(turn.content) for turn in _neighbours(example, answer.turn)]
    if visible in block and text.count(visible) == 1 and not any(near and near in block for near in neighbours):
        return
    start, end = marks.starts.get(answer.turn), marks.ends.get(answer.turn)
    if start is None or end is None:
        is_enclosed = _contains(block, visible) or _contains(block, json.dumps(visible, ensure_ascii=False)[1:-1])
    else:
        begin = marks.ends.get(answer.turn - 1, 0)
        limit = marks.starts.get(answer.turn + 1, len(text))
        is_enclosed = begin <= answer.start <= start and end <= answer.end <= limit
    if not is_enclosed:
        raise ModelError(
            Problem(
                "model.chat_template: the {% generation %} blocks of this chat template do not enclose the answers",
                f"{_turn_location(example, answer.turn)}: {chat.special_tokens.unescape(visible)[:60]}",
                f"put the blocks around the assistant's content and its stop token, or {OTHER_TEMPLATE}",
            )
        )


def find_reasoning_left_out(
    chat: ChatFormat, text: str, example: Example, answers: Sequence[AnswerSpan], parts: Sequence[Part]
) -> list[str]:
    """Return a remark if the template leaves out the reasoning of earlier answers.

    Args:
        chat: The format that rendered the conversation.
        text: The rendering.
        example: The conversation.
        answers: Its answers in the rendering.
        parts: The parts that the template leaves out.

    Raises:
        DataError: Tool calls or the last answer's reasoning are left out.
    """
    without_reasoning = {part.turn for part in parts if part.kind == "reasoning"}
    left_out = 0
    for answer in answers:
        is_last = answer is answers[-1]
        turn, location = example.turns[answer.turn], _turn_location(example, answer.turn)
        rendered = text[answer.start : answer.end]
        if turn.tool_calls:
            _require_texts(chat, rendered, _texts_of_calls(chat, turn), location, "tool calls", WITH_TOOLS)
        reasoning = turn.reasoning if chat.reasoning == "learn" else ""
        is_rendered = answer.turn not in without_reasoning
        if reasoning and not (is_rendered and _contains(rendered, chat.special_tokens.escape(reasoning))):
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


def _require_tools_and_calls(chat: ChatFormat, text: str, example: Example) -> list[Part]:
    """Check that all tools, calls and arguments are rendered, and return the other parts that are left out."""
    for tool in json.loads(example.tools or "[]"):
        name = str(function_of(tool).get("name", ""))
        _require_texts(chat, text, [name], example.location, "the tools of a row", WITH_TOOLS)
    left_out = find_parts_left_out(chat, text, example)
    for part in left_out:
        if part.kind == "tool":
            _reject(chat, part.text, example.location, "the tools of a row", WITH_TOOLS)
        if part.kind in ("call", "argument") and part.turn is not None:
            _reject(chat, part.text, _turn_location(example, part.turn), "tool calls", WITH_TOOLS)
    return left_out


def _neighbours(example: Example, index: int) -> tuple[Turn, ...]:
    """Return the turns before and after a turn."""
    return example.turns[max(0, index - 1) : index] + example.turns[index + 1 : index + 2]


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


def _texts_of_calls(chat: ChatFormat, turn: Turn) -> list[str]:
    """Return the names of the functions that a turn calls, of their arguments, and the ends of the arguments' texts."""
    names = []
    for call in json.loads(turn.tool_calls):
        function = function_of(call)
        names.append(str(function.get("name", "")))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            names += map(str, arguments)
            for value in _texts_of(arguments):
                words = ASCII_WORD.findall(chat.special_tokens.escape(value))
                names += (*words[:1], *words[-1:])
    return names


def _texts_of(value: Any) -> Iterator[str]:
    """Yield the texts in an argument."""
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            values += item.values()
        elif isinstance(item, list):
            values += item
