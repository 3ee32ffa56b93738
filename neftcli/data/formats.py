"""How rows are laid out, and the example that each one is.

`LAYOUTS` is the registry: one entry a layout, first the one that is tried first.

messages            {"messages": [{"role": ..., "content": ...}, ...]}, OpenAI's fine-tuning files among them
sharegpt            {"conversations": [{"from": ..., "value": ...}, ...]}
prompt_completion   {"prompt": ..., "completion": ...}, each a text or a list of turns
alpaca              {"instruction": ..., "input": ..., "output": ..., "history": [[question, answer], ...]}; no input
                    and no history is the usual case
text                {"text": ...}

Conversations may have the columns system (the system turn) and tools (what the assistant may call), and every row the
marks weight, train, trainable and loss (0: it is not learned). Columns without a value count as missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

from neftcli.data.column_suggestions import flattened, suggested, turns_of
from neftcli.data.example import Example, RowNotes, Turn, UnusableRow, describe_value, has_value
from neftcli.data.jq_hints import jq, jq_key
from neftcli.data.readers import Row
from neftcli.data.tool_calls import answers_no_call, read_tools
from neftcli.data.turns import (
    MARKS,
    checked_text,
    has_role,
    is_conversation,
    is_turn,
    read_mark,
    read_turns,
)
from neftcli.data.unsupported import require_no_placeholder, require_supervised
from neftcli.errors import DataError, Problem

__all__ = [
    "ROW_FORMATS",
    "Example",
    "RowFormat",
    "Turn",
    "UnusableRow",
    "detect",
    "renamed",
    "require_standard",
    "to_example",
]

str: TypeAlias = str  # the name of a layout
MOST_LETTERS = 300
BESIDE_CONVERSATIONS = ("system", "tools", "functions")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a row that a layout reads.

    Attributes:
        turns: The conversation; empty for plain text.
        text: Plain text.
        completion: Index of the first turn of a conversational pair's completion.
    """

    turns: list[Turn]
    text: str = ""
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a row under standard names, read one by one.

    Attributes:
        row: The row.
        own: Standard name to the row's own name, where they differ.
        notes: Collects keys that are not read.
    """

    row: Row
    own: Mapping[str, str]
    notes: RowNotes

    def value(self, column: str) -> Any:
        """The value of a column; None if it is missing or empty."""
        value = self.row.values.get(column)
        return value if has_value(value) else None

    def label(self, column: str) -> str:
        """A column in a message."""
        own = self.own.get(column, column)
        return column if own == column else f"{column} (the column {own})"

    def text(self, column: str) -> str:
        """A column's text without the white space around it."""
        return self.text_as_is(column).strip()

    def text_as_is(self, column: str) -> str:
        """A column's text."""
        value = self.value(column)
        if value is None:
            return ""
        nested = isinstance(value, list | dict)
        hint = flattened(value, self.own.get(column, column), self.row.location) if nested else ""
        return checked_text(value, f"{self.row.location}: {self.label(column)}", hint)

    def turns(self, column: str, keys: tuple[str, str], name: str = "") -> list[Turn]:
        """A column's turns: a list, its JSON text, or one turn.

        Raises:
            DataError: It holds no list of turns; with what to type.
        """
        value = self.row.values[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _parsed_list(value)
        if is_turn(value):
            value = [value]
        if not isinstance(value, list):
            what = f"{self.row.location}: {self.label(column)} must be a list of turns"
            raise DataError(Problem(what, describe_value(value), f'[{{"{keys[0]}": ..., "{keys[1]}": ...}}, ...]'))
        if (
            value
            and not has_role(value[0])
            and (hint := _into_turns(value, self.own.get(column, column), self.row.location))
        ):
            what = f"{self.row.location}: {self.label(column)} must be a list of turns"
            raise DataError(Problem(what, describe_value(value), hint))
        return read_turns(value, self.row.location, name, keys, self.notes)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A way to lay out rows.

    Attributes:
        name: Its name in `data.format`.
        required: Columns that every row has.
        optional: Columns that a row may have.
        answer: The required column that a question alone lacks, if it is a column of its own.
        read: Reads the turns or the text from the columns of a row.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    answer: str
    read: Callable[[Columns], Parts]

    def needs(self, answers: bool) -> list[str]:
        """Columns that a row must have, the answer's only if answers are wanted."""
        return [column for column in self.required if answers or column != self.answer]

    def reads(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*self.required, *self.optional, *MARKS)


def _read_messages(columns: Columns) -> Parts:
    return Parts(columns.turns("messages", ("role", "content")))


def _read_sharegpt(columns: Columns) -> Parts:
    return Parts(columns.turns("conversations", ("from", "value")))


def _read_alpaca(columns: Columns) -> Parts:
    question = Turn("user", columns.text("instruction"), columns.text("input"))
    return Parts([*_history(columns), question, Turn("assistant", columns.text("output"))])


def _read_text(columns: Columns) -> Parts:
    text = columns.text_as_is("text")
    if not text.strip():
        raise UnusableRow("its text is empty")
    return Parts([], text)


def _read_pair(columns: Columns) -> Parts:
    prompt, completion = columns.value("prompt"), columns.value("completion")
    if not any(map(_is_turns, (prompt, completion))):
        return Parts([Turn("user", columns.text("prompt")), Turn("assistant", columns.text("completion"))])
    asked = _side(columns, "prompt", prompt, "user")
    answered = _side(columns, "completion", completion, "assistant")
    repeated = _without_system(asked)
    if repeated and _roles_and_texts(_without_system(answered)[: len(repeated)]) == _roles_and_texts(repeated):
        # The completion is the whole conversation, as preference data often has it.
        own_system = [turn for turn in answered if turn.role == "system"]
        systems = own_system or [turn for turn in asked if turn.role == "system"]
        turns = [*systems, *_without_system(answered)]
        return Parts(turns, completion=len(systems) + len(repeated))
    if repeated and answered and answered[0].role not in ("assistant", "tool"):
        what = f"{columns.row.location}: {columns.label('completion')} must begin with the answer, or the whole prompt"
        first = f"{answered[0].role}: {answered[0].content[:60]}"
        raise DataError(Problem(what, first, '{"prompt": [... the question], "completion": [... the answer]}'))
    return Parts([*asked, *answered], completion=len(asked))


ROW_FORMATS: dict[str, RowFormat] = {
    row_format.name: row_format
    for row_format in (
        RowFormat("messages", ("messages",), BESIDE_CONVERSATIONS, "", _read_messages),
        RowFormat("sharegpt", ("conversations",), BESIDE_CONVERSATIONS, "", _read_sharegpt),
        RowFormat("prompt_completion", ("prompt", "completion"), BESIDE_CONVERSATIONS, "completion", _read_pair),
        RowFormat(
            "alpaca", ("instruction", "output"), ("input", "history", *BESIDE_CONVERSATIONS), "output", _read_alpaca
        ),
        RowFormat("text", ("text",), (), "", _read_text),
    )
}
STANDARD = tuple(
    dict.fromkeys(name for row_format in ROW_FORMATS.values() for name in row_format.required + row_format.optional)
)


def detect(row: Row, columns: Mapping[str, str], *, answers: bool = True) -> str:
    """The layout that the columns of `row` tell.

    Args:
        row: A row as it was read.
        columns: The recipe's `data.columns`.
        answers: The column of the answer must be there; without it a question alone will do.

    Raises:
        DataError: No layout fits, with the columns found; or the row is not for supervised fine-tuning.
    """
    standard = renamed(row, columns)
    require_supervised(standard, columns)
    names = set(standard.values)
    # A layout whose columns were named in data.columns goes before those that the row happens to fit as well.
    row_formats = sorted(ROW_FORMATS.values(), key=lambda row_format: columns.keys().isdisjoint(row_format.required))
    for needed in (True, False) if not answers else (True,):
        for row_format in row_formats:
            if names.issuperset(row_format.needs(needed)):
                return row_format.name
    lower = {name.strip().lower() for name in names}
    hint = suggested(standard.values, columns, row.location, answers=answers)
    half = next(
        (row_format for row_format in row_formats if row_format.answer and names.issuperset(row_format.needs(False))),
        None,
    )
    lacks = f", and {half.answer} is missing" if half and not hint else ""
    raise DataError(
        Problem(
            f"{row.location}: the columns fit no known layout{lacks}",
            _names(row),
            hint
            or "--set data.columns='{instruction: your_question_column, output: your_answer_column}'   "
            "(layouts: text; prompt, completion; instruction, output; messages; conversations)",
            ", ".join(standard for standard in STANDARD if standard not in names and standard in lower),
        )
    )


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
                f"{row.location}: data.columns names a column that is not there: {missing[0]}",
                _names(row),
                "--set data.columns='{standard_name: name_in_your_rows}'",
                "".join(get_close_matches(missing[0], row.values, n=1)),
            )
        )
    taken = set(columns.values())
    values = {name: value for name, value in row.values.items() if name not in taken}
    return Row({**values, **{standard: row.values[name] for standard, name in columns.items()}}, row.location)


def to_example(
    row: Row,
    row_format: str,
    system_prompt: str | None = None,
    *,
    answers: bool = True,
    columns: Mapping[str, str] | None = None,
    notes: RowNotes | None = None,
) -> Example:
    """The example of a row.

    Args:
        row: As it was read.
        row_format: Its layout.
        system_prompt: The system turn of a conversation that has none.
        answers: It must end in an answer to learn (what follows the last one is dropped); without it a question is
            enough, as for a model that is to answer it.
        columns: The recipe's `data.columns`.
        notes: Collects columns and keys that are not read, and turns that are dropped.

    Raises:
        DataError: A column is missing, holds another type than the layout says, or is not for supervised fine-tuning.
        UnusableRow: The row is in order and holds nothing to learn (an empty answer, say).
    """
    own, notes = columns or {}, notes or RowNotes()
    row = renamed(row, own)
    require_supervised(row, own)
    entry = ROW_FORMATS[row_format]
    for column in entry.needs(answers):
        if column not in row.values:
            raise DataError(
                Problem(
                    f"{row.location}: the column {column} is missing",
                    _names(row),
                    f"rows of one layout, here {row_format}: {', '.join(entry.needs(answers))}",
                )
            )
    known = entry.reads()
    for name, value in row.values.items():
        if name not in known and has_value(value):
            notes.unread.add(name or '""', row.location)
    found = Columns(row, own, notes)
    parts = entry.read(found)
    marks = {name: row.values[name] for name in MARKS if has_value(row.values.get(name))}
    learn, mark = read_mark(marks, row.location, "row")
    if learn is False:
        raise UnusableRow(f"it is marked as not learned ({mark})")
    if not parts.turns and parts.text:
        return Example((), parts.text, row.location)
    turns, completion = _with_system(found, parts, system_prompt)
    turns = _up_to_the_last_answer(turns, row.location, notes) if answers else _without_unusable_reference(turns)
    _require_question_and_answers(turns)
    if answers and completion >= len(turns):
        raise UnusableRow("its completion has no answer to learn")
    first = turns[0].role == "system"
    dropped = 0
    while turns[first].role in ("assistant", "tool"):  # it begins with an answer: nothing asked it
        lost = turns.pop(first)
        dropped += 1
        if answers and lost.learn:
            raise DataError(
                Problem(
                    f"{row.location}: an answer before the first question is marked as learned, and nothing asked it",
                    lost.text()[:60],
                    "a user turn before it, or 0 as its mark",
                )
            )
    if dropped:
        notes.shortened.add("what comes before the first question", row.location)
    require_no_placeholder(turns, row.location)
    if answers_no_call(turns):
        notes.remarks.add("a tool_call_id answers no call of its conversation", row.location)
    completion = max(0, completion - dropped) if completion < len(turns) + dropped else 0
    return Example(tuple(turns), "", row.location, _tools(found), completion)


def _with_system(columns: Columns, parts: Parts, system_prompt: str | None) -> tuple[list[Turn], int]:
    """The turns with their system turn, and the place of the completion in them."""
    turns, completion = parts.turns, parts.completion
    system = columns.text("system")
    if not turns or turns[0].role != "system":
        text = system or system_prompt
        return (
            ([Turn("system", text), *turns], completion + bool(completion)) if text and turns else (turns, completion)
        )
    if system and system != turns[0].content:
        own = columns.own.get("system", "system")
        raise DataError(
            Problem(
                f"{columns.row.location}: the column {own} and the first turn are two different system turns",
                system[:60],
                f"one of them: {jq(columns.row.location, f'del({jq_key(own)})')}    keeps the turn",
            )
        )
    return turns, completion


def _up_to_the_last_answer(turns: list[Turn], location: str, notes: RowNotes) -> list[Turn]:
    """The turns without what follows the last answer that may be learned."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    learned = [place for place in answers if turns[place].learn is not False]
    if not answers:
        raise UnusableRow("it has no answer")
    if not learned:
        raise UnusableRow("every answer in it is marked as not learned")
    end = learned[-1] + 1
    if learned[-1] != answers[-1]:
        notes.shortened.add("what follows the last answer that is marked as learned", location)
    elif any(turn.role != "user" for turn in turns[end:]):
        notes.shortened.add("what follows the last answer", location)
    return turns[:end]


def _without_unusable_reference(turns: list[Turn]) -> list[Turn]:
    """Drop an empty or unlearned answer at the end, which is no reference to compare with."""
    while turns and turns[-1].role == "assistant" and (turns[-1].learn is False or not turns[-1].text()):
        turns = turns[:-1]
    return turns


def _require_question_and_answers(turns: list[Turn]) -> None:
    if not any(turn.role == "user" and turn.text() for turn in turns):
        raise UnusableRow("it has no question" if turns else "it has no answer")
    if any(turn.role == "assistant" and not turn.text() for turn in turns):
        raise UnusableRow("an answer is empty")


def _tools(columns: Columns) -> str:
    named = [name for name in ("tools", "functions") if columns.value(name) is not None]
    if len(named) > 1 and columns.value("tools") != columns.value("functions"):
        what = f"{columns.row.location}: the columns tools and functions hold different tools"
        raise DataError(Problem(what, describe_value(columns.value("functions")), "one of them"))
    name = named[0] if named else ""
    return read_tools(columns.value(name), f"{columns.row.location}: {columns.label(name)}") if name else ""


def _history(columns: Columns) -> list[Turn]:
    """The questions and answers before an Alpaca row's own."""
    history = columns.value("history")
    if isinstance(history, str) and history.lstrip().startswith("["):
        history = _parsed_list(history)
    if history is None:
        return []
    location, pair = f"{columns.row.location}: {columns.label('history')}", '[["a question", "its answer"], ...]'
    if not isinstance(history, list):
        raise DataError(Problem(f"{location} must be a list of questions and answers", describe_value(history), pair))
    turns = []
    for number, item in enumerate(history, 1):
        if not isinstance(item, list) or len(item) != 2:
            raise DataError(
                Problem(f"{location}, {number} must be a question and an answer", describe_value(item), pair)
            )
        question, answer = (checked_text(text, f"{location}, {number}").strip() for text in item)
        turns += [Turn("user", question), Turn("assistant", answer)]
    return turns


def _is_turns(value: Any) -> bool:
    """Return whether one side of a pair holds turns: one, a list of them (well-formed or not), or their JSON text."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and is_conversation(_parsed_list(value))
    return is_turn(value) or (isinstance(value, list) and (not value or any(map(has_role, value))))


def _side(columns: Columns, column: str, value: Any, role: str) -> list[Turn]:
    """One side of a pair as turns."""
    if value is None:
        return []
    if _is_turns(value):
        return columns.turns(column, ("role", "content"), column)
    return [Turn(role, columns.text(column))]


def _without_system(turns: list[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role != "system"]


def _roles_and_texts(turns: list[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text()) for turn in turns]


def _into_turns(value: list[Any], own: str, location: str) -> str:
    """The command that turns other lists into turns, or an empty string."""
    key = jq_key(own)
    if all(isinstance(item, list) for item in value):
        return f"{jq(location, f'{key}[] | {{messages: .}}')}    makes a row of each conversation"
    if all(isinstance(item, str) for item in value):
        role = 'if .key % 2 == 0 then "user" else "assistant" end'
        turns = f"{{messages: [{key} | to_entries[] | {{role: ({role}), content: .value}}]}}"
        return f"{jq(location, turns)}    if question and answer take turns"
    return turns_of(value, own, location)


def _parsed_list(text: str) -> Any:
    """The list that a text is as JSON, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _names(row: Row) -> str:
    """The columns of a row, in so many letters as a person reads."""
    names = ", ".join(row.values) or "no column"
    return names if len(names) <= MOST_LETTERS else f"{names[:MOST_LETTERS]}... ({len(row.values)} columns)"
