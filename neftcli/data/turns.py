"""Read the turns of a row, in any of the known forms.

A turn has a role (`role` or `from`) and a content (`content` or `value`). It may also hold marks of what is
learned (`weight`, `train`, `trainable`, `loss`), reasoning, tool calls, a name and the id of a call. Other keys are
noted as not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any

from neftcli.data.example import RowNotes, Turn, UnusableRow, describe_value, has_value
from neftcli.data.jq_hints import jq, jq_key
from neftcli.data.tool_calls import read_tool_calls
from neftcli.errors import DataError, Problem

LONGEST_TEXT = 10_000_000  # characters; every step on the way to tokens takes minutes and gigabytes with ten times that
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
CALLING = ("function_call", "tool_call")  # roles whose whole content is a tool call
KEYS = {"role": "content", "from": "value"}
MARKS = ("weight", "train", "trainable", "loss")
UNREAD_MARKS = (
    *("mask", "masked", "is_masked", "loss_mask", "train_mask", "train_on", "train_on_turn", "train_detail"),
    *("trained", "training", "learn", "learned", "calculate_loss", "compute_loss", "loss_weight", "ignore"),
)
"""Keys by which others mark what is learned."""
MARKED = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
CALLS = ("tool_calls", "function_call")
REFUSAL = "learns refusals as answers; or rows without this one"
REASONING = ("reasoning_content", "reasoning", "thinking")
READ = {  # in addition to role and content
    "system": ("name", *MARKS),
    "user": ("name", *MARKS),
    "assistant": ("name", *MARKS, *REASONING, *CALLS),
    "tool": ("name", *MARKS, "tool_call_id"),
}
MEDIA = {"image": "an image", "audio": "audio", "video": "a video", "file": "a file"}


def read_turns(items: list[Any], row: str, column: str, keys: tuple[str, str], notes: RowNotes) -> list[Turn]:
    """The turns of a conversation.

    Args:
        items: The turns as they are in the row.
        row: The place of the row.
        column: The column that holds them; named in messages unless it is the row's only one of turns ("").
        keys: The keys of role and content that this layout prefers.
        notes: Collects keys that are not read.

    Raises:
        DataError: A turn can't be read; with its number and key.
        UnusableRow: A text is too long.
    """
    return [
        _read_turn(item, f"{row}: {f'{column}, ' if column else ''}turn {number}", row, keys, notes)
        for number, item in enumerate(items, 1)
    ]


def is_turn(value: Any) -> bool:
    """Return whether a value looks like a turn: an object with a role and a content."""
    return isinstance(value, dict) and any(role in value and content in value for role, content in KEYS.items())


def has_role(value: Any) -> bool:
    """Return whether a value was meant as a turn, well-formed or not."""
    return isinstance(value, dict) and any(role in value for role in KEYS)


def is_conversation(value: Any) -> bool:
    """Return whether a value looks like a list of turns."""
    return isinstance(value, list) and bool(value) and is_turn(value[0])


def read_mark(values: Mapping[str, Any], location: str, what: str) -> tuple[bool | None, str]:
    """Return the mark of a turn or row as learned (None without one), and the mark as it was written.

    Raises:
        DataError: A mark is neither 0 nor 1, or two contradict each other.
    """
    if values.keys().isdisjoint(MARKS):
        return None, ""
    marks = {key: values[key] for key in MARKS if values.get(key) is not None}
    read: dict[str, bool] = {}
    for key, value in marks.items():
        mark = MARKED.get(str(value).strip().lower())
        if mark is None:
            raise DataError(
                Problem(
                    f"{location}: {key} says whether the {what} is learned, and must be 0 or 1 (fractional weights are "
                    "not supported)",
                    describe_value(value),
                    f'"{key}": 0 or "{key}": 1; a column or key that means something else needs another name',
                )
            )
        read[key] = mark
    said = ", ".join(f"{key}: {str(value)[:20]}" for key, value in marks.items())
    if len(set(read.values())) > 1:
        raise DataError(
            Problem(
                f"{location}: these marks contradict each other", said, f"one of {', '.join(read)}, or the same in all"
            )
        )
    return next(iter(read.values()), None), said


def _read_turn(item: Any, location: str, row: str, keys: tuple[str, str], notes: RowNotes) -> Turn:
    if isinstance(item, dict) and len(item) == 2:  # the usual turn
        said_by, text = item.get(keys[0]), item.get(keys[1])
        if isinstance(text, str) and isinstance(said_by, str) and said_by not in CALLING and said_by in ROLES:
            return Turn(ROLES[said_by], checked_text(text, f"{location}: {keys[1]}").strip())
    role_key, content_key = (_present(item, key, others) for key, others in zip(keys, _ORDER, strict=True))
    if not isinstance(item, dict) or role_key is None:
        raise DataError(_no_turn(item, location, keys))
    own_role = str(item[role_key]).lower()
    role = ROLES.get(own_role)
    if role is None:
        raise DataError(
            Problem(
                f"{location} has an unknown {role_key}",
                describe_value(item[role_key]),
                f"one of {', '.join(ROLES)}",
                "".join(get_close_matches(own_role, ROLES, n=1)),
            )
        )
    given = {key: value for key, value in item.items() if has_value(value)}
    calls = _calls(given, location, role)
    content_given = content_key is not None and has_value(item[content_key])
    if "refusal" in given and role == "assistant" and not calls and not content_given:
        own_key = jq_key(content_key or keys[1])
        as_text = f'if type == "object" and .refusal then {own_key} = .refusal | del(.refusal) else . end'
        raise DataError(
            Problem(
                f"{location} has its answer in the key refusal, not in {content_key or keys[1]}",
                describe_value(given["refusal"]),
                f"{jq(row, f'walk({as_text})')}    {REFUSAL}",
            )
        )
    if role == "tool" and content_key is not None and _is_json_result(item[content_key]):
        kind = "object" if isinstance(item[content_key], dict) else "array"
        own_key = jq_key(content_key)
        is_result = f'type == "object" and {jq_key(role_key)} == {json.dumps(item[role_key])}'
        as_text = f'if {is_result} and ({own_key} | type) == "{kind}" then {own_key} |= tojson else . end'
        raise DataError(
            Problem(
                f"{location}: {content_key} must be text, and this tool result is an {kind}",
                describe_value(item[content_key]),
                f"{jq(row, f'walk({as_text})')}    writes results as JSON text",
            )
        )
    if content_key is None and not calls:
        raise DataError(_no_turn(item, location, keys))
    content, thought = "", ""
    if own_role in CALLING and content_key is not None and has_value(item[content_key]):
        if calls:
            what = f"{location} holds tool calls both in {content_key} and in a key of its own"
            raise DataError(Problem(what, calls[:60], "one of them"))
        calls = read_tool_calls(item[content_key], f"{location}: {content_key}")
    elif content_key is not None and (item[content_key] is not None or not calls):
        content, thought = _content(item[content_key], f"{location}: {content_key}", content_key, row, notes)
    learn, said = read_mark(item, location, "turn")
    if learn and role != "assistant":
        raise DataError(
            Problem(
                f"{location} is marked as learned, and only assistant turns can be", f"{role}, {said}", "0, or no mark"
            )
        )
    reasoning = _reasoning(given, location, thought) if role == "assistant" else ""
    for key in [key for key in given if key not in READ[role] and key not in (role_key, content_key)]:
        if key.lower() in UNREAD_MARKS:
            notes.remarks.add(f"the turn key {key} is not read: weight or train (0 or 1) marks what is learned", row)
        else:
            notes.unread.add(f"turn key {key}", row)
    return Turn(
        role,
        content,
        learn=learn,
        reasoning=reasoning,
        tool_calls=calls,
        name=_label(given, "name", location),
        tool_call_id=_label(given, "tool_call_id", location) if role == "tool" else "",
    )


def _is_json_result(value: Any) -> bool:
    """Return whether a tool's result is an object or a list, and no list of content parts."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    parts = [part for part in value if isinstance(part, str) or (isinstance(part, dict) and {"type", "text"} & {*part})]
    return len(parts) < len(value)


_ORDER = (tuple(KEYS), tuple(KEYS.values()))


def _present(item: Any, preferred: str, others: tuple[str, ...]) -> str | None:
    """The key that holds a turn's role or content: one with a value before one that is null."""
    if not isinstance(item, dict):
        return None
    if has_value(item.get(preferred)):
        return preferred
    there = [key for key in dict.fromkeys((preferred, *others)) if key in item]
    return next((key for key in there if has_value(item[key])), there[0] if there else None)


def _no_turn(item: Any, location: str, keys: tuple[str, str]) -> Problem:
    wanted = f'{{"{keys[0]}": "user", "{keys[1]}": "..."}}'
    return Problem(f"{location} must have {keys[0]} and {keys[1]}", describe_value(item), wanted)


def _calls(given: Mapping[str, Any], location: str, role: str) -> str:
    """The tool calls of a turn in their own key: tool_calls, or the older function_call."""
    keys = [key for key in CALLS if key in given]
    if not keys:
        return ""
    if role != "assistant":
        what = f"{location} holds {keys[0]}, and only an assistant turn can call a tool"
        raise DataError(Problem(what, role, f"{keys[0]} in the assistant's turn"))
    if len(keys) > 1:
        what = f"{location} holds both tool_calls and function_call"
        raise DataError(Problem(what, describe_value(given["function_call"]), "tool_calls alone"))
    return read_tool_calls(given[keys[0]], f"{location}: {keys[0]}")


def _reasoning(given: Mapping[str, Any], location: str, thought: str) -> str:
    if not thought and given.keys().isdisjoint(REASONING):
        return ""
    texts = {key: checked_text(given[key], f"{location}: {key}").strip() for key in REASONING if key in given}
    if thought:
        texts["content"] = thought
    if len(set(texts.values())) > 1:
        what = f"{location}: {' and '.join(texts)} hold different reasoning"
        raise DataError(Problem(what, describe_value(next(iter(texts.values()))), "one of them"))
    return next(iter(texts.values()), "")


def _label(given: Mapping[str, Any], key: str, location: str) -> str:
    return checked_text(given[key], f"{location}: {key}") if key in given else ""


def _content(value: Any, what: str, key: str, row: str, notes: RowNotes) -> tuple[str, str]:
    """The text of a content, and the reasoning in it; parts of text are joined as chat templates join them."""
    if not isinstance(value, list):
        return checked_text(value, what).strip(), ""
    texts, thoughts = [], []
    for number, part in enumerate(value, 1):
        location = f"{what}, part {number}"
        if isinstance(part, str):
            texts.append(checked_text(part, location))
            continue
        given = {name: item for name, item in part.items() if has_value(item)} if isinstance(part, dict) else {}
        kind = str(given.get("type", "text"))
        words = {word for name in (kind, *given) for word in name.lower().split("_")}
        media = [name for word, name in MEDIA.items() if word in words]
        if media:
            raise DataError(
                Problem(
                    f"{location} is {media[0]}, and neft trains on text",
                    describe_value(part),
                    'parts of text alone: {"type": "text", "text": "..."}, or rows without this one',
                )
            )
        if kind in ("thinking", "reasoning"):
            name = kind if kind in given else "text"
            thoughts.append(checked_text(given.get(name), f"{location}: {name}"))
        elif kind in ("text", "input_text", "output_text") and isinstance(part, dict) and "text" in part:
            name = "text"
            texts.append(checked_text("" if part["text"] is None else part["text"], f"{location}: text"))
        elif kind == "refusal":
            as_text = 'if type == "object" and .type == "refusal" then {type: "text", text: .refusal} else . end'
            hint = f"{jq(row, f'walk({as_text})')}    {REFUSAL}"
            raise DataError(
                Problem(f"{location} is a refusal, which is not read", describe_value(given.get(kind)), hint)
            )
        else:
            tool = " (tool calls are read from the turn's key tool_calls)" if "tool" in kind else ""
            raise DataError(
                Problem(f"{location} is no text{tool}", describe_value(part), '{"type": "text", "text": "..."}')
            )
        for other in [other for other in given if other not in ("type", name)]:
            notes.unread.add(f"turn key {key}.{other}", row)
    return "".join(texts).strip(), "".join(thoughts).strip()


def checked_text(value: Any, what: str, hint: str = "") -> str:
    """A text as it is.

    Args:
        value: The value in the row.
        what: Its place and name.
        hint: The command that extracts the text from a nested value.

    Raises:
        DataError: It is no text, or holds half a character.
        UnusableRow: It is too long.
    """
    if not isinstance(value, str):
        number = isinstance(value, int | float) and isfinite(value)
        wanted = hint or (f'"{value}"' if number else 'a text: "..."')
        nested = ", and nested lists and objects can't be mapped" if hint else ""
        raise DataError(Problem(f"{what} must be text{nested}", describe_value(value), wanted))
    if len(value) > LONGEST_TEXT:
        raise UnusableRow(f"a text in it is longer than {LONGEST_TEXT:,} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer reads
        around = value[max(0, error.start - 20) : error.end + 20]
        raise DataError(
            Problem(
                f"{what} holds half a character, such as a cut-off emoji",
                ascii(around),
                "the text without it, or whole",
            )
        ) from None
    return value
