"""An example: a row in the one form that the rest of the package reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: Its text; empty if an assistant turn holds only tool calls.
        context: An Alpaca row's `input`.
        learn: The row marks this turn as one to learn (True) or not (False); None if it says nothing.
        reasoning: What the assistant thought before it answered (`reasoning_content`, `thinking`).
        tool_calls: The assistant's tool calls as the JSON text of a list of
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
        """Content, context and tool calls, a line each; empty if the turn says nothing."""
        if not self.context and not self.tool_calls:
            return self.content
        return "\n".join(part for part in (self.content, self.context, self.tool_calls) if part)


@dataclass(frozen=True, slots=True)
class Example:
    """A row, whatever its layout was.

    Attributes:
        turns: The conversation; empty for plain text.
        text: Plain text; empty for a conversation.
        where: The place of the row, as "rows.jsonl, line 17".
        tools: The tools that the assistant may call, as the JSON text of a list of schemas; empty if there are none.
        completion: Index of the first turn of the completion in a conversational prompt/completion pair; 0 elsewhere.
    """

    turns: tuple[Turn, ...]
    text: str
    where: str
    tools: str = ""
    completion: int = 0

    def prompt(self) -> str:
        """The prompt: everything before the last answer but system turns; the whole of a plain text."""
        if not self.turns:
            return self.text
        asked = self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns
        return "\n".join(text for turn in asked if turn.role != "system" and (text := turn.text()))

    def prompts(self) -> list[str]:
        """The prompts of each of its answers, and of the answer at its end; the whole of a plain text."""
        if not self.turns:
            return [self.text]
        ends = [place for place, turn in enumerate(self.turns) if turn.role == "assistant"]
        return [Example(self.turns[:end], "", self.where).prompt() for end in {*ends, len(self.turns)} if end]

    def transcript(self) -> str:
        """The prompt, with the role of each turn if there is more than one."""
        asked = self.turns[:-1] if self.answer() else self.turns
        if len(asked) < 2:
            return self.prompt()
        return "\n\n".join(f"{turn.role.capitalize()}: {turn.text()}" for turn in asked)

    def answer(self) -> str:
        """The last answer, its tool calls as JSON text included; empty for plain text."""
        return self.turns[-1].text() if self.turns and self.turns[-1].role == "assistant" else ""


class UnusableRow(Exception):  # noqa: N818 - a row is left out and counted, nothing fails
    """A row that holds nothing to learn; its message is the reason."""
