"""Turns of a conversation, in any of the known forms.

A turn has a role (`role` or `from`) and a content (`content` or `value`). It may also have marks of what is learned
(`weight`, `train`, `trainable`, `loss`), reasoning, tool calls, a name and the id of a call. Other keys are noted as
not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any

from neftcli.errors import DataError, Problem
from neftcli.rows.example import RowNotes, Turn, UnusableRow, describe_value, has_value
from neftcli.rows.tool_calls import read_tool_calls

MAX_TEXT_LENGTH = 10_000_000
"""Maximum characters of a text; with ten times that, every step on the way to tokens takes minutes and gigabytes."""
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
CALL_ROLES = ("function_call", "tool_call")
"""Roles whose whole content is a tool call."""
ROLE_TO_CONTENT = {"role": "content", "from": "value"}
"""Key of the role to the key of the content."""
KEYS_IN_ORDER = (tuple(ROLE_TO_CONTENT), tuple(ROLE_TO_CONTENT.values()))
LOSS_MARKS = ("weight", "train", "trainable", "loss")
UNREAD_MARKS = (
    *("mask", "masked", "is_masked", "loss_mask", "train_mask", "train_on", "train_on_turn", "train_detail"),
    *("trained", "training", "learn", "learned", "calculate_loss", "compute_loss", "loss_weight", "ignore"),
)
"""Keys by which other tools mark what is learned."""
MARK_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
CALL_KEYS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
KNOWN_KEYS = {
    "system": ("name", *LOSS_MARKS),
    "user": ("name", *LOSS_MARKS),
    "assistant": ("name", *LOSS_MARKS, *REASONING, *CALL_KEYS),
    "tool": ("name", *LOSS_MARKS, "tool_call_id"),
}
"""Role to the keys that are read in addition to role and content."""
MEDIA_PARTS = {"image": "an image", "audio": "audio", "video": "a video", "file": "a file"}
REFUSAL_HINT = "move the refusal into the content to train on it, or remove the row"


def read_turns(items: list[Any], location: str, column: str, keys: tuple[str, str], notes: RowNotes) -> list[Turn]:
    """Return the turns of a conversation.

    Args:
        items: The turns as they are in the row.
        location: Location of the row.
        column: The column that holds them, for messages; empty if it is the row's only column with turns.
        keys: The keys of role and content that this row format prefers.
        notes: Collects keys that are not read.

    Raises:
        DataError: A turn can't be read; with its number and key.
        UnusableRow: A text is too long.
    """
    prefix = f"{location}: {f'{column}, ' if column else ''}turn"
    return [_read_turn(item, f"{prefix} {number}", location, keys, notes) for number, item in enumerate(items, 1)]


def is_turn(value: Any) -> bool:
    """Return whether a value looks like a turn: an object with a role and a content."""
    if not isinstance(value, dict):
        return False
    return any(role in value and content in value for role, content in ROLE_TO_CONTENT.items())


def has_role(value: Any) -> bool:
    """Return whether a value was meant as a turn, well-formed or not."""
    return isinstance(value, dict) and any(role in value for role in ROLE_TO_CONTENT)


def is_conversation(value: Any) -> bool:
    """Return whether a value looks like a list of turns."""
    return isinstance(value, list) and bool(value) and is_turn(value[0])


def read_mark(values: Mapping[str, Any], location: str, kind: str) -> tuple[bool | None, str]:
    """Return whether a turn or row is marked as learned (None without a mark), and the mark as it was written.

    Args:
        values: Keys and values of the turn or row.
        location: Its location.
        kind: "turn" or "row".

    Raises:
        DataError: A mark is neither 0 nor 1, or two marks contradict each other.
    """
    if values.keys().isdisjoint(LOSS_MARKS):
        return None, ""
    marks = {key: values[key] for key in LOSS_MARKS if values.get(key) is not None}
    parsed: dict[str, bool] = {}
    for key, value in marks.items():
        mark = MARK_VALUES.get(str(value).strip().lower())
        if mark is None:
            message = f"{location}: {key} must be 0 or 1 (whether the {kind} is trained on; no fractions)"
            hint = f'"{key}": 0 or "{key}": 1; rename the key or column if it means something else'
            raise DataError(Problem(message, describe_value(value), hint))
        parsed[key] = mark
    written = ", ".join(f"{key}: {str(value)[:20]}" for key, value in marks.items())
    if len(set(parsed.values())) > 1:
        hint = f"keep one of {', '.join(parsed)}, or give all the same value"
        raise DataError(Problem(f"{location}: these marks contradict each other", written, hint))
    return next(iter(parsed.values()), None), written


def _read_turn(item: Any, location: str, row: str, keys: tuple[str, str], notes: RowNotes) -> Turn:
    if isinstance(item, dict) and len(item) == 2:  # the usual turn
        role, text = item.get(keys[0]), item.get(keys[1])
        if isinstance(text, str) and isinstance(role, str) and role not in CALL_ROLES and role in ROLES:
            return Turn(ROLES[role], require_text(text, f"{location}: {keys[1]}").strip())
    role_key, content_key = (_find_key(item, key, others) for key, others in zip(keys, KEYS_IN_ORDER, strict=True))
    if not isinstance(item, dict) or role_key is None:
        raise DataError(_malformed_turn(item, location, keys))
    own_role = str(item[role_key]).lower()
    standard_role = ROLES.get(own_role)
    if standard_role is None:
        near = "".join(get_close_matches(own_role, ROLES, n=1))
        message = f"{location} has an unknown {role_key}"
        raise DataError(Problem(message, describe_value(item[role_key]), f"one of {', '.join(ROLES)}", near))
    values = {key: value for key, value in item.items() if has_value(value)}
    calls = _read_calls(values, location, standard_role)
    has_content = content_key is not None and has_value(item[content_key])
    if "refusal" in values and standard_role == "assistant" and not calls and not has_content:
        message = f"{location} has its answer in the key refusal, not in {content_key or keys[1]}"
        raise DataError(Problem(message, describe_value(values["refusal"]), REFUSAL_HINT))
    if standard_role == "tool" and content_key is not None and _is_json_result(item[content_key]):
        kind = "object" if isinstance(item[content_key], dict) else "array"
        message = f"{location}: {content_key} must be text, and this tool result is an {kind}"
        raise DataError(Problem(message, describe_value(item[content_key]), f"write the {kind} as JSON text"))
    if content_key is None and not calls:
        raise DataError(_malformed_turn(item, location, keys))
    content, thought = "", ""
    if own_role in CALL_ROLES and content_key is not None and has_content:
        if calls:
            message = f"{location} has tool calls both in {content_key} and in a key of its own"
            raise DataError(Problem(message, calls[:60], "keep one of them"))
        calls = read_tool_calls(item[content_key], f"{location}: {content_key}")
    elif content_key is not None and (item[content_key] is not None or not calls):
        content, thought = _read_content(item[content_key], f"{location}: {content_key}", content_key, row, notes)
    learn, mark = read_mark(item, location, "turn")
    if learn and standard_role != "assistant":
        message = f"{location} is marked to be trained on, but only assistant turns can be"
        raise DataError(Problem(message, f"{standard_role}, {mark}", "mark it with 0, or remove the mark"))
    reasoning = _read_reasoning(values, location, thought) if standard_role == "assistant" else ""
    for key in values:
        if key in KNOWN_KEYS[standard_role] or key in (role_key, content_key):
            continue
        if key.lower() in UNREAD_MARKS:
            notes.remarks.add(
                f"neft does not read the turn key {key}; weight or train (0 or 1) marks turns to train on", row
            )
        else:
            notes.unread_turn_keys.add(key, row)
    return Turn(
        standard_role,
        content,
        learn=learn,
        reasoning=reasoning,
        tool_calls=calls,
        name=_read_optional_text(values, "name", location),
        tool_call_id=_read_optional_text(values, "tool_call_id", location) if standard_role == "tool" else "",
    )


def _is_json_result(value: Any) -> bool:
    """Return whether a tool's result is an object or a list, but not a list of content parts."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    for part in value:
        if not isinstance(part, str) and not (isinstance(part, dict) and {"type", "text"} & part.keys()):
            return True
    return False


def _find_key(item: Any, preferred: str, others: tuple[str, ...]) -> str | None:
    """Return the key that holds a turn's role or content: one with a value before one that is null."""
    if not isinstance(item, dict):
        return None
    keys = [key for key in dict.fromkeys((preferred, *others)) if key in item]
    return next((key for key in keys if has_value(item[key])), keys[0] if keys else None)


def _malformed_turn(item: Any, location: str, keys: tuple[str, str]) -> Problem:
    hint = f'{{"{keys[0]}": "user", "{keys[1]}": "..."}}'
    return Problem(f"{location} must have {keys[0]} and {keys[1]}", describe_value(item), hint)


def _read_calls(values: Mapping[str, Any], location: str, role: str) -> str:
    """Return the tool calls of a turn in their own key: tool_calls, or the older function_call."""
    keys = [key for key in CALL_KEYS if key in values]
    if not keys:
        return ""
    if role != "assistant":
        message = f"{location} has {keys[0]}, but only an assistant turn can call a tool"
        raise DataError(Problem(message, role, f"move {keys[0]} to the assistant's turn"))
    if len(keys) > 1:
        message = f"{location} has both tool_calls and function_call"
        raise DataError(Problem(message, describe_value(values["function_call"]), "keep tool_calls only"))
    return read_tool_calls(values[keys[0]], f"{location}: {keys[0]}")


def _read_reasoning(values: Mapping[str, Any], location: str, thought: str) -> str:
    """Return the reasoning of a turn: from its own key, or `thought`, which was found in the content."""
    if not thought and values.keys().isdisjoint(REASONING):
        return ""
    texts = {key: require_text(values[key], f"{location}: {key}").strip() for key in REASONING if key in values}
    if thought:
        texts["content"] = thought
    if len(set(texts.values())) > 1:
        message = f"{location}: {' and '.join(texts)} have different reasoning"
        raise DataError(Problem(message, describe_value(next(iter(texts.values()))), "keep one of them"))
    return next(iter(texts.values()), "")


def _read_optional_text(values: Mapping[str, Any], key: str, location: str) -> str:
    return require_text(values[key], f"{location}: {key}") if key in values else ""


def _read_content(value: Any, label: str, key: str, row: str, notes: RowNotes) -> tuple[str, str]:
    """Return the text of a content and the reasoning in it; text parts are joined as chat templates join them."""
    if not isinstance(value, list):
        return require_text(value, label).strip(), ""
    texts, thoughts = [], []
    for number, part in enumerate(value, 1):
        location = f"{label}, part {number}"
        if isinstance(part, str):
            texts.append(require_text(part, location))
            continue
        values = {name: item for name, item in part.items() if has_value(item)} if isinstance(part, dict) else {}
        kind = str(values.get("type", "text"))
        words = {word for name in (kind, *values) for word in name.lower().split("_")}
        media = [name for word, name in MEDIA_PARTS.items() if word in words]
        if media:
            hint = 'keep text parts only, {"type": "text", "text": "..."}, or remove the row'
            raise DataError(Problem(f"{location} is {media[0]}, and neft trains on text", describe_value(part), hint))
        if kind in ("thinking", "reasoning"):
            text_key = kind if kind in values else "text"
            thoughts.append(require_text(values.get(text_key), f"{location}: {text_key}"))
        elif kind in ("text", "input_text", "output_text") and isinstance(part, dict) and "text" in part:
            text_key = "text"
            texts.append(require_text("" if part["text"] is None else part["text"], f"{location}: text"))
        elif kind == "refusal":
            message = f"{location} is a refusal, which is not read"
            raise DataError(Problem(message, describe_value(values.get(kind)), REFUSAL_HINT))
        else:
            tool = " (tool calls are read from the turn's key tool_calls)" if "tool" in kind else ""
            hint = '{"type": "text", "text": "..."}'
            raise DataError(Problem(f"{location} is not text{tool}", describe_value(part), hint))
        for other in values:
            if other not in ("type", text_key):
                notes.unread_turn_keys.add(f"{key}.{other}", row)
    return "".join(texts).strip(), "".join(thoughts).strip()


def require_text(value: Any, label: str, hint: str = "") -> str:
    """Return a text unchanged.

    Args:
        value: The value in the row.
        label: Location and name of the value.
        hint: How to get the text out of a nested value.

    Raises:
        DataError: It is not text, or contains half of a surrogate pair.
        UnusableRow: It is too long.
    """
    if not isinstance(value, str):
        if not hint:
            is_finite = isinstance(value, int | float) and isfinite(value)
            raise DataError(
                Problem(
                    f"{label} must be text", describe_value(value), f'"{value}"' if is_finite else 'a string: "..."'
                )
            )
        message = f"{label} must be text, and nested lists and objects can't be mapped"
        raise DataError(Problem(message, describe_value(value), hint))
    if len(value) > MAX_TEXT_LENGTH:
        raise UnusableRow(f"its text is longer than {MAX_TEXT_LENGTH:,} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair, which no tokenizer reads
        excerpt = ascii(value[max(0, error.start - 20) : error.end + 20])
        message = f"{label} contains an unpaired surrogate, such as half of an emoji"
        raise DataError(Problem(message, excerpt, "remove it, or write the whole character")) from None
    return value
