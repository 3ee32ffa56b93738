"""How rows are laid out, and the example that each one is.

text                {"text": ...}
prompt_completion   {"prompt": ..., "completion": ...}, both text or both lists of turns
alpaca              {"instruction": ..., "input": ... (may be missing or empty), "output": ...}
                    (these two and sharegpt may have "system", the system turn)
messages            {"messages": [{"role": ..., "content": ...}, ...]}
sharegpt            {"conversations": [{"from": ..., "value": ...}, ...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal

from neftcli.data.readers import Row
from neftcli.errors import DataError, Problem

Format = Literal["text", "prompt_completion", "alpaca", "messages", "sharegpt"]

REQUIRED: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL: dict[Format, tuple[str, ...]] = {
    "messages": (),
    "sharegpt": ("system",),
    "prompt_completion": ("system",),
    "alpaca": ("input", "system"),
    "text": (),
}
STANDARD = tuple(dict.fromkeys(name for names in (*REQUIRED.values(), *OPTIONAL.values()) for name in names))
LONGEST_TEXT = 10_000_000  # characters; every step on the way to tokens takes minutes and gigabytes with ten times that
ANSWER: dict[Format, str] = {"prompt_completion": "completion", "alpaca": "output"}
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
}


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


@dataclass(frozen=True, slots=True)
class Example:
    """A row, whatever its layout was.

    Attributes:
        turns: The conversation; empty for plain text.
        text: Plain text; empty for a conversation.
        where: Where the row stands.
        tools: The tools that the assistant may call, as the JSON text of a list of schemas; empty if there are none.
        completion: Index of the first turn of the completion in a conversational prompt/completion pair; 0 elsewhere.
    """

    turns: tuple[Turn, ...]
    text: str
    where: str
    tools: str = ""
    completion: int = 0

    def prompt(self) -> str:
        """What is asked: everything before the last answer; the whole of a plain text."""
        if not self.turns:
            return self.text
        asked = self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns
        return "\n".join(
            part for turn in asked if turn.role != "system" for part in (turn.content, turn.context) if part
        )

    def prompts(self) -> list[str]:
        """What is asked before each of its answers, and at its end; the whole of a plain text."""
        if not self.turns:
            return [self.text]
        ends = [place for place, turn in enumerate(self.turns) if turn.role == "assistant"]
        return [Example(self.turns[:end], "", self.where).prompt() for end in {*ends, len(self.turns)} if end]

    def transcript(self) -> str:
        """What is asked, with who says what where it is more than one question."""
        asked = self.turns[:-1] if self.answer() else self.turns
        if len(asked) < 2:
            return self.prompt()
        said = ("\n".join(part for part in (turn.content, turn.context) if part) for turn in asked)
        return "\n\n".join(f"{turn.role.capitalize()}: {text}" for turn, text in zip(asked, said, strict=True))

    def answer(self) -> str:
        """The last answer; empty for plain text."""
        return self.turns[-1].content if self.turns and self.turns[-1].role == "assistant" else ""


MOST_LETTERS = 300


class UnusableRow(Exception):  # noqa: N818 - a row is left out and counted, nothing fails
    """A row that holds nothing to learn; its message is the reason."""


def detect(row: Row, columns: Mapping[str, str], *, answers: bool = True) -> Format:
    """The layout that the columns of `row` tell.

    Args:
        row: A row as it was read.
        columns: The recipe's `data.columns`.
        answers: The column of the answer must be there; without it a question alone will do.

    Raises:
        DataError: No layout fits; names the columns found.
    """
    names = set(renamed(row, columns).values)
    # A layout whose columns were named in data.columns goes before those that the row happens to fit as well.
    layouts = sorted(REQUIRED, key=lambda layout: columns.keys().isdisjoint(REQUIRED[layout]))
    for needed in (True, False) if not answers else (True,):
        for layout in layouts:
            if names.issuperset(_required(layout, needed)):
                return layout
    lower = {name.strip().lower() for name in names}
    raise DataError(
        Problem(
            f"{row.where}: the columns fit no known layout",
            _names(row),
            "--set data.columns='{instruction: your_question_column, output: your_answer_column}'   "
            "(layouts: text; prompt, completion; instruction, output; messages; conversations)",
            ", ".join(standard for standard in STANDARD if standard not in names and standard in lower),
        )
    )


def _required(layout: Format, answers: bool) -> list[str]:
    """The columns that a layout needs, the answer's only where answers are wanted."""
    return [column for column in REQUIRED[layout] if answers or column != ANSWER.get(layout)]


def unread_columns(row: Row, layout: Format) -> tuple[str, ...]:
    """Columns of a row under standard names that its layout does not read."""
    return tuple(name or '""' for name in row.values if name not in REQUIRED[layout] + OPTIONAL[layout])


def require_standard(columns: Mapping[str, str]) -> None:
    """Checks the names on the left of `data.columns`; a misspelt one would be a column that nothing reads.

    Raises:
        DataError: One is no standard column.
    """
    problems = [
        Problem(
            "data.columns: the names on the left must be standard columns",
            f"{name}: {columns[name]}",
            f"one of {', '.join(STANDARD)}",
            "".join(get_close_matches(name, STANDARD, n=1)),
        )
        for name in columns
        if name not in STANDARD
    ]
    if problems:
        raise DataError(*problems)


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under standard column names, by `data.columns`.

    Raises:
        DataError: A column that was named is not in the row.
    """
    if not columns:
        return row
    missing = [name for name in columns.values() if name not in row.values]
    if missing:
        raise DataError(
            Problem(
                f"{row.where}: data.columns names a column that is not there: {missing[0]}",
                _names(row),
                "--set data.columns='{standard_name: name_in_your_rows}'",
                "".join(get_close_matches(missing[0], row.values, n=1)),
            )
        )
    taken = set(columns.values())
    values = {name: value for name, value in row.values.items() if name not in taken}
    return Row({**values, **{standard: row.values[name] for standard, name in columns.items()}}, row.where)


def to_example(row: Row, layout: Format, system_prompt: str | None = None, *, answers: bool = True) -> Example:
    """The example of a row under standard column names.

    Args:
        row: Under standard column names.
        layout: Its layout.
        system_prompt: The system turn of a conversation that has none.
        answers: It must end in an answer (what follows the last one is dropped); without it a question is enough, as
            for a model that is to answer it.

    Raises:
        DataError: A column is missing or holds another type than the layout says.
        UnusableRow: The row is in order and holds nothing to learn (an empty answer, say).
    """
    for column in _required(layout, answers):
        if column not in row.values:
            raise DataError(
                Problem(
                    f"{row.where}: the column {column} is missing",
                    _names(row),
                    f"rows of one layout, here {layout}: {', '.join(_required(layout, answers))}",
                )
            )
    if layout == "text":
        text = _text(row, "text")
        if not text.strip():
            raise UnusableRow("its text is empty")
        return Example((), text, row.where)
    turns = _turns(row, layout)
    system = _text(row, "system").strip() if "system" in OPTIONAL[layout] and "system" in row.values else ""
    if (system or system_prompt) and turns and turns[0].role != "system":
        turns = [Turn("system", system or system_prompt or ""), *turns]
    if not answers and turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()
    while answers and turns and turns[-1].role != "assistant":  # it ends with a question: nothing answers it
        turns.pop()
    if not turns:
        raise UnusableRow("it has no answer")
    if not any(turn.role == "user" and (turn.content.strip() or turn.context.strip()) for turn in turns):
        raise UnusableRow("it has no question")
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
        raise UnusableRow("an answer is empty")
    while turns[first := turns[0].role == "system"].role == "assistant":  # it begins with an answer: nothing asked it
        turns.pop(first)
    return Example(tuple(turns), "", row.where)


def _turns(row: Row, layout: Format) -> list[Turn]:
    if layout == "alpaca":
        context = _text(row, "input").strip() if row.values.get("input") is not None else ""
        return [
            Turn("user", _text(row, "instruction").strip(), context),
            Turn("assistant", _text(row, "output").strip()),
        ]
    if layout == "prompt_completion":
        prompt, completion = row.values["prompt"], row.values.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list | None):
            return _conversation(row, prompt + (completion or []), "role", "content")
        return [Turn("user", _text(row, "prompt").strip()), Turn("assistant", _text(row, "completion").strip())]
    column, role, content = (
        ("messages", "role", "content") if layout == "messages" else ("conversations", "from", "value")
    )
    value = row.values[column]
    if not isinstance(value, list):
        raise DataError(
            Problem(
                f"{row.where}: {column} must be a list of turns",
                _shown(value),
                f'[{{"{role}": ..., "{content}": ...}}, ...]',
            )
        )
    if value and isinstance(value[0], dict) and role not in value[0] and {"role", "content"} <= set(value[0]):
        role, content = "role", "content"
    return _conversation(row, value, role, content)


def _conversation(row: Row, value: list[Any], role_key: str, content_key: str) -> list[Turn]:
    turns = []
    for number, item in enumerate(value, 1):
        where = f"{row.where}: turn {number}"
        if not isinstance(item, dict) or role_key not in item or content_key not in item:
            turn = f'{{"{role_key}": "user", "{content_key}": "..."}}'
            raise DataError(Problem(f"{where} must have {role_key} and {content_key}", _shown(item), turn))
        role = ROLES.get(str(item[role_key]).lower())
        if role is None:
            raise DataError(
                Problem(f"{where} has an unknown {role_key}", _shown(item[role_key]), f"one of {', '.join(ROLES)}")
            )
        turns.append(Turn(role, _checked(item[content_key], f"{where}: {content_key}").strip()))
    return turns


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if value is None:
        return ""
    return _checked(value, f"{row.where}: {column}")


def _checked(value: Any, what: str) -> str:
    if not isinstance(value, str):
        number = isinstance(value, int | float) and isfinite(value)
        raise DataError(Problem(f"{what} must be text", _shown(value), f'"{value}"' if number else 'a text: "..."'))
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


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__}: {str(value)[:60]}"


def _names(row: Row) -> str:
    """The columns of a row, in so many letters as a person reads."""
    names = ", ".join(row.values) or "no column"
    return names if len(names) <= MOST_LETTERS else f"{names[:MOST_LETTERS]}... ({len(row.values)} columns)"
