"""Examples: rows in the form that the rest of the package reads, and notes on the parts of rows that are not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neftcli.events import Occurrences


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: Its text; empty if an assistant turn holds only tool calls.
        context: The `input` column of an Alpaca row.
        learn: True or False if the row marks this turn for learning or not; None if it is not marked.
        reasoning: The assistant's reasoning before its answer (`reasoning_content`, `thinking`).
        tool_calls: The assistant's tool calls, as the JSON text of a list of
            {"type": "function", "function": {"name": ..., "arguments": {...}}, "id": ...}; empty if it has none.
        name: Name of the tool that a tool turn comes from, or of the speaker.
        tool_call_id: Id of the call that a tool turn answers.
    """

    role: str
    content: str
    context: str = ""
    learn: bool | None = None
    reasoning: str = ""
    tool_calls: str = ""
    name: str = ""
    tool_call_id: str = ""

    def text(self) -> str:
        """Return content, context and tool calls, separated by line breaks."""
        if not self.context and not self.tool_calls:
            return self.content
        return "\n".join(part for part in (self.content, self.context, self.tool_calls) if part)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation or a plain text.

    Attributes:
        turns: The conversation; empty for plain text.
        text: The plain text; empty for a conversation.
        location: File and line of the row: "rows.jsonl, line 17".
        tools: The tools that the assistant may call, as the JSON text of a list of schemas; empty if there are none.
        completion: Index of the first turn of the completion in a conversational prompt/completion pair, else 0.
    """

    turns: tuple[Turn, ...]
    text: str
    location: str
    tools: str = ""
    completion: int = 0

    def prompt(self) -> str:
        """Return the text of all turns before the last answer, except system turns; of plain text, all of it."""
        if not self.turns:
            return self.text
        asked = self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns
        return "\n".join(text for turn in asked if turn.role != "system" and (text := turn.text()))

    def prompts(self) -> list[str]:
        """Return the prompt of each answer, and of the answer that would follow the last turn."""
        if not self.turns:
            return [self.text]
        ends = {index for index, turn in enumerate(self.turns) if turn.role == "assistant"} | {len(self.turns)}
        return [Example(self.turns[:end], "", self.location).prompt() for end in ends if end]

    def transcript(self) -> str:
        """Return the prompt, with the role of each turn if there are several."""
        asked = self.turns[:-1] if self.answer() else self.turns
        if len(asked) < 2:
            return self.prompt()
        return "\n\n".join(f"{turn.role.capitalize()}: {turn.text()}" for turn in asked)

    def answer(self) -> str:
        """Return the last answer, including its tool calls as JSON text; empty for plain text."""
        return self.turns[-1].text() if self.turns and self.turns[-1].role == "assistant" else ""


class UnusableRow(Exception):  # noqa: N818 - the row is skipped and counted, nothing fails
    """A valid row with nothing to learn; its message is the reason."""


class OccurrenceCounts(dict[str, Occurrences]):
    """Name to the number of rows that it occurs in, each row counted once, and the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self._last_location: dict[str, str] = {}

    def add(self, name: str, location: str) -> None:
        """Count a row; calls for the same row must follow each other."""
        if self._last_location.get(name) == location:
            return
        self._last_location[name] = location
        previous = self.get(name, Occurrences(0, location))
        self[name] = Occurrences(previous.rows + 1, previous.first)


class RowNotes:
    """Notes on rows, collected while they are read and shown before training.

    Attributes:
        unread_columns: Columns that hold a value and are not read.
        unread_turn_keys: Keys of turns that hold a value and are not read.
        shortened: Parts of conversations that are dropped.
        remarks: Other remarks.
    """

    def __init__(self) -> None:
        self.unread_columns = OccurrenceCounts()
        self.unread_turn_keys = OccurrenceCounts()
        self.shortened = OccurrenceCounts()
        self.remarks = OccurrenceCounts()


def has_value(value: Any) -> bool:
    """Return False for null, an empty string, an empty list and an empty object, which count as missing."""
    return value is not None and (bool(value) or not isinstance(value, (str, list, dict)))


def describe_value(value: Any) -> str:
    """Return the type of a value and its first 60 characters, for a message."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    return f"{type(value).__name__}: {' '.join(str(value)[:60].splitlines())}"
