"""Row formats, and the example of each row.

`ROW_FORMATS` is the registry: one entry for each format, in the order in which they are tried.

Conversations may have the columns system (the system turn) and tools (what the assistant may call), and every row the
marks weight, train, trainable and loss (0: the row is not learned). Columns without a value count as missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from neftcli.errors import DataError, Problem
from neftcli.rows.column_suggestions import suggest_columns, suggest_text, suggest_turns
from neftcli.rows.example import Example, RowNotes, Turn, UnusableRow, describe_value, has_value
from neftcli.rows.readers import Row
from neftcli.rows.tool_calls import has_unmatched_call_id, read_tools
from neftcli.rows.turns import LOSS_MARKS, has_role, is_conversation, is_turn, read_mark, read_turns, require_text
from neftcli.rows.unsupported import reject_unsupported_row, reject_unsupported_turns
from neftcli.wording import count_noun

MAX_NAMES_LENGTH = 300
"""Maximum characters of column names in a message."""
CONVERSATION_COLUMNS = ("system", "tools", "functions")


@dataclass(frozen=True, slots=True)
class RowContent:
    """The content of a row, read by its row format.

    Attributes:
        turns: The conversation; empty for plain text.
        text: Plain text.
        completion: Index of the first turn of a conversational pair's completion.
    """

    turns: list[Turn]
    text: str = ""
    completion: int = 0


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The columns of a row under standard names, with errors that name the row's own columns.

    Attributes:
        row: The row.
        own_names: Standard name to the row's own name, if they differ.
        notes: Collects keys that are not read.
    """

    row: Row
    own_names: Mapping[str, str]
    notes: RowNotes

    def value(self, column: str) -> Any:
        """Return the value of a column; None if it is missing or empty."""
        value = self.row.values.get(column)
        return value if has_value(value) else None

    def own_name(self, column: str) -> str:
        """Return the row's own name of a column."""
        return self.own_names.get(column, column)

    def label(self, column: str) -> str:
        """Return row and column for a message."""
        own_name = self.own_name(column)
        name = column if own_name == column else f"{column} (the column {own_name})"
        return f"{self.row.location}: {name}"

    def text(self, column: str) -> str:
        """Return a column's text, stripped."""
        return self.raw_text(column).strip()

    def raw_text(self, column: str) -> str:
        """Return a column's text; empty if it is missing.

        Raises:
            DataError: It is not text.
        """
        value = self.value(column)
        if value is None:
            return ""
        is_nested = isinstance(value, list | dict)
        return require_text(value, self.label(column), suggest_text(value, self.own_name(column)) if is_nested else "")

    def turns(self, column: str, keys: tuple[str, str], name: str = "") -> list[Turn]:
        """Return a column's turns; the column holds a list, its JSON text, or one turn.

        Args:
            column: The column.
            keys: The keys of role and content in this row format.
            name: Name of the column in messages about a turn; empty if it is the only column with turns.

        Raises:
            DataError: It holds no list of turns.
        """
        value = self.row.values[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _parse_list(value)
        if is_turn(value):
            value = [value]
        problem = f"{self.label(column)} must be a list of turns"
        if not isinstance(value, list):
            hint = f'[{{"{keys[0]}": ..., "{keys[1]}": ...}}, ...]'
            raise DataError(Problem(problem, describe_value(value), hint))
        if value and not has_role(value[0]) and (hint := _suggest_list_of_turns(value, self.own_name(column))):
            raise DataError(Problem(problem, describe_value(value), hint))
        return read_turns(value, self.row.location, name, keys, self.notes)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A row format. It is recognised by its required columns.

    Attributes:
        id: Its name in `data.format`.
        columns: The required columns, for docs/data.md.
        required: Columns that every row has.
        optional: Columns that a row may have.
        answer: The required column that a question without an answer lacks, if the answer has a column of its own.
        read: Reads the turns or the text from the columns of a row.
    """

    id: str
    columns: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    answer: str
    read: Callable[[RowColumns], RowContent]

    def required_columns(self, *, answers: bool) -> list[str]:
        """Return the columns that a row must have; without `answers`, the answer's column may be missing."""
        return [column for column in self.required if answers or column != self.answer]

    def known_columns(self) -> tuple[str, ...]:
        """Return all columns that are read."""
        return (*self.required, *self.optional, *LOSS_MARKS)


def _read_messages(columns: RowColumns) -> RowContent:
    return RowContent(columns.turns("messages", ("role", "content")))


def _read_sharegpt(columns: RowColumns) -> RowContent:
    return RowContent(columns.turns("conversations", ("from", "value")))


def _read_alpaca(columns: RowColumns) -> RowContent:
    question = Turn("user", columns.text("instruction"), columns.text("input"))
    return RowContent([*_read_history(columns), question, Turn("assistant", columns.text("output"))])


def _read_history(columns: RowColumns) -> list[Turn]:
    """Return the earlier questions and answers of an Alpaca row."""
    history = columns.value("history")
    if isinstance(history, str) and history.lstrip().startswith("["):
        history = _parse_list(history)
    if history is None:
        return []
    label, hint = columns.label("history"), '[["a question", "its answer"], ...]'
    if not isinstance(history, list):
        raise DataError(Problem(f"{label} must be a list of questions and answers", describe_value(history), hint))
    turns = []
    for number, item in enumerate(history, 1):
        if not isinstance(item, list) or len(item) != 2:
            message = f"{label}, {number} must be a question and an answer"
            raise DataError(Problem(message, describe_value(item), hint))
        question, answer = (require_text(text, f"{label}, {number}").strip() for text in item)
        turns += [Turn("user", question), Turn("assistant", answer)]
    return turns


def _read_text(columns: RowColumns) -> RowContent:
    text = columns.raw_text("text")
    if not text.strip():
        raise UnusableRow("its text is empty")
    return RowContent([], text)


def _read_pair(columns: RowColumns) -> RowContent:
    prompt, completion = columns.value("prompt"), columns.value("completion")
    if not _has_turns(prompt) and not _has_turns(completion):
        return RowContent([Turn("user", columns.text("prompt")), Turn("assistant", columns.text("completion"))])
    prompt_side = _read_side(columns, "prompt", prompt, "user")
    completion_side = _read_side(columns, "completion", completion, "assistant")
    prompt_turns = _without_system(prompt_side)
    completion_turns = _without_system(completion_side)
    begins_with_prompt = _same_turns(completion_turns[: len(prompt_turns)], prompt_turns)
    if prompt_turns and begins_with_prompt:  # the completion is the whole conversation, as often in preference data
        own_systems = [turn for turn in completion_side if turn.role == "system"]
        systems = own_systems or [turn for turn in prompt_side if turn.role == "system"]
        repeated, answer_turns = completion_turns[: len(prompt_turns)], completion_turns[len(prompt_turns) :]
        marked = []
        for turn, prompt_turn in zip(repeated, prompt_turns, strict=True):
            marked.append(replace(turn, learn=prompt_turn.learn if turn.learn is None else turn.learn))
        turns = [*systems, *marked, *answer_turns]
        return RowContent(turns, completion=len(systems) + len(prompt_turns))
    if prompt_turns and completion_side and completion_side[0].role not in ("assistant", "tool"):
        message = f"{columns.label('completion')} must begin with the answer, or with the whole prompt"
        got = f"{completion_side[0].role}: {completion_side[0].content[:60]}"
        raise DataError(Problem(message, got, '{"prompt": [... the question], "completion": [... the answer]}'))
    return RowContent([*prompt_side, *completion_side], completion=len(prompt_side))


def _read_side(columns: RowColumns, column: str, value: Any, role: str) -> list[Turn]:
    """Return one side of a pair as turns."""
    if value is None:
        return []
    if _has_turns(value):
        return columns.turns(column, ("role", "content"), column)
    return [Turn(role, columns.text(column))]


def _has_turns(value: Any) -> bool:
    """Return whether one side of a pair holds a turn, a list of turns (well-formed or not), or their JSON text."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and is_conversation(_parse_list(value))
    return is_turn(value) or (isinstance(value, list) and (not value or any(map(has_role, value))))


def _without_system(turns: list[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role != "system"]


def _same_turns(turns: list[Turn], others: list[Turn]) -> bool:
    return [(turn.role, turn.text()) for turn in turns] == [(turn.role, turn.text()) for turn in others]


ROW_FORMATS: dict[str, RowFormat] = {
    entry.id: entry
    for entry in (
        RowFormat("messages", "`messages`: a list of turns", ("messages",), CONVERSATION_COLUMNS, "", _read_messages),
        RowFormat(
            "sharegpt",
            "`conversations`: a list of turns",
            ("conversations",),
            CONVERSATION_COLUMNS,
            "",
            _read_sharegpt,
        ),
        RowFormat(
            "prompt_completion",
            "`prompt`, `completion`: each a text or a list of turns",
            ("prompt", "completion"),
            CONVERSATION_COLUMNS,
            "completion",
            _read_pair,
        ),
        RowFormat(
            "alpaca",
            "`instruction`, `output`",
            ("instruction", "output"),
            ("input", "history", *CONVERSATION_COLUMNS),
            "output",
            _read_alpaca,
        ),
        RowFormat("text", "`text`", ("text",), (), "", _read_text),
    )
}
"""Id to row format, in the order in which they are tried."""
STANDARD_COLUMNS = tuple(
    dict.fromkeys(column for entry in ROW_FORMATS.values() for column in entry.required + entry.optional)
)


def detect_format(row: Row, columns: Mapping[str, str], *, answers: bool = True) -> str:
    """Return the id of the row format that has the columns of a row.

    Args:
        row: A row as it was read.
        columns: The recipe's `data.columns`.
        answers: The answer's column must be there.

    Raises:
        DataError: No row format has these columns, or supervised fine-tuning can't use the row.
    """
    renamed_row = rename_columns(row, columns)
    reject_unsupported_row(renamed_row, columns)
    names = set(renamed_row.values)
    # Formats whose columns are named in data.columns come before those that the row happens to match.
    formats = sorted(ROW_FORMATS.values(), key=lambda entry: columns.keys().isdisjoint(entry.required))
    for with_answer in (True,) if answers else (True, False):
        for entry in formats:
            if names.issuperset(entry.required_columns(answers=with_answer)):
                return entry.id
    hint = suggest_columns(renamed_row.values, columns, answers=answers)
    message = f"{row.location}: the columns match no known row format"
    if not hint:
        for entry in formats:
            if entry.answer and names.issuperset(entry.required_columns(answers=False)):
                message += f", and {entry.answer} is missing"
                break
    lower_names = {name.strip().lower() for name in names}
    near = [column for column in STANDARD_COLUMNS if column not in names and column in lower_names]
    required = "; ".join(", ".join(entry.required) for entry in ROW_FORMATS.values())
    example = "--set data.columns='{prompt: your_prompt_column, completion: your_answer_column}'"
    raise DataError(
        Problem(message, _list_columns(row), hint or f"{example}    row formats: {required}", ", ".join(near))
    )


def validate_column_names(columns: Mapping[str, str]) -> None:
    """Check the keys of `data.columns`; nothing would read a misspelt one.

    Raises:
        DataError: A key is not a standard column.
    """
    problems = []
    for name in columns:
        if name not in STANDARD_COLUMNS:
            near = "".join(get_close_matches(name, STANDARD_COLUMNS, n=1))
            message = "data.columns: the names on the left must be standard columns"
            problems.append(Problem(message, f"{name}: {columns[name]}", f"one of {', '.join(STANDARD_COLUMNS)}", near))
    if problems:
        raise DataError(*problems)


def rename_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the row under standard column names.

    Args:
        row: A row as it was read.
        columns: Standard name to the name in the row (`data.columns`).

    Raises:
        DataError: The row lacks a column.
    """
    if not columns:
        return row
    missing = [name for name in columns.values() if name not in row.values]
    if missing:
        raise DataError(
            Problem(
                f"{row.location}: data.columns names a missing column: {missing[0]}",
                _list_columns(row),
                "--set data.columns='{standard_name: name_in_your_rows}'",
                "".join(get_close_matches(missing[0], row.values, n=1)),
            )
        )
    mapped = set(columns.values())
    values = {name: value for name, value in row.values.items() if name not in mapped}
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
    """Return the example of a row.

    Args:
        row: A row as it was read.
        row_format: Id of its row format.
        system_prompt: System turn of a conversation without one.
        answers: The row must end in an answer to learn, and what follows it is dropped; otherwise a question is enough.
        columns: The recipe's `data.columns`.
        notes: Collects columns and keys that are not read, and turns that are dropped.

    Raises:
        DataError: A column is missing or has a wrong type, or supervised fine-tuning can't use the row.
        UnusableRow: The row is valid and has nothing to learn, such as an empty answer.
    """
    own_names, notes = columns or {}, notes or RowNotes()
    row = rename_columns(row, own_names)
    reject_unsupported_row(row, own_names)
    entry = ROW_FORMATS[row_format]
    required = entry.required_columns(answers=answers)
    for column in required:
        if column not in row.values:
            message = f"{row.location}: the column {column} is missing"
            hint = f"all rows need the columns of the row format {row_format}: {', '.join(required)}"
            raise DataError(Problem(message, _list_columns(row), hint))
    known = entry.known_columns()
    for name, value in row.values.items():
        if name not in known and has_value(value):
            notes.unread_columns.add(name or '""', row.location)
    row_columns = RowColumns(row, own_names, notes)
    content = entry.read(row_columns)
    learn, mark = read_mark({name: row_columns.value(name) for name in LOSS_MARKS}, row.location, "row")
    if learn is False:
        raise UnusableRow(f"it is marked not to be trained on ({mark})")
    if not content.turns and content.text:
        return Example((), content.text, row.location)
    turns, completion = _add_system_turn(row_columns, content, system_prompt)
    if answers:
        turns = _truncate_after_last_answer(turns, completion, row.location, notes)
    else:
        turns = _drop_unusable_reference(turns)
    _require_question_and_answers(turns)
    dropped = _drop_before_question(turns, row.location, answers=answers)
    if dropped:
        notes.shortened.add("turns before the first question", row.location)
    reject_unsupported_turns(turns, row.location)
    if has_unmatched_call_id(turns):
        notes.remarks.add("a tool_call_id matches no tool call of its conversation", row.location)
    if not answers and completion >= len(turns) + dropped:
        completion = 0
    completion = min(max(0, completion - dropped), len(turns))
    return Example(tuple(turns), "", row.location, _read_row_tools(row_columns), completion)


def _add_system_turn(columns: RowColumns, content: RowContent, system_prompt: str | None) -> tuple[list[Turn], int]:
    """Return the turns with their system turn, and the index of the completion in them."""
    turns, completion = content.turns, content.completion
    system = columns.text("system")
    if not turns or turns[0].role != "system":
        text = system or system_prompt
        if not text or not turns:
            return turns, completion
        return [Turn("system", text), *turns], completion + bool(completion)
    if system and system != turns[0].content:
        message = f"{columns.row.location}: the column {columns.own_name('system')} differs from the first turn"
        raise DataError(Problem(message, system[:60], "keep one of the two system turns"))
    return turns, completion


def _truncate_after_last_answer(turns: list[Turn], completion: int, location: str, notes: RowNotes) -> list[Turn]:
    """Return the turns up to the last answer that may be learned: one of the completion, or a marked one."""
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise UnusableRow("it has no answer")
    if all(turns[index].learn is False for index in answers):
        raise UnusableRow("every answer in it is marked not to be trained on")
    learned = []
    for index in answers:
        learn = turns[index].learn
        if learn or (learn is None and index >= completion):
            learned.append(index)
    if not learned:
        raise UnusableRow("its completion has no answer to train on")
    end = learned[-1] + 1
    if learned[-1] != answers[-1]:
        notes.shortened.add("turns after the last answer that is trained on", location)
    elif any(turn.role != "user" for turn in turns[end:]):
        notes.shortened.add("turns after the last answer", location)
    return turns[:end]


def _drop_unusable_reference(turns: list[Turn]) -> list[Turn]:
    """Drop answers at the end that are empty or not learned: they are no reference to compare with."""
    while turns and turns[-1].role == "assistant" and (turns[-1].learn is False or not turns[-1].text()):
        turns = turns[:-1]
    return turns


def _require_question_and_answers(turns: list[Turn]) -> None:
    if not any(turn.role == "user" and turn.text() for turn in turns):
        raise UnusableRow("it has no question" if turns else "it has no answer")
    if any(turn.role == "assistant" and not turn.text() for turn in turns):
        raise UnusableRow("an answer is empty")


def _drop_before_question(turns: list[Turn], location: str, *, answers: bool) -> int:
    """Remove assistant and tool turns before the first question, and return their number.

    Raises:
        DataError: One of them is marked as learned.
    """
    first = int(turns[0].role == "system")
    dropped = 0
    while turns[first].role in ("assistant", "tool"):
        turn = turns.pop(first)
        dropped += 1
        if answers and turn.learn:
            message = f"{location}: an answer before the first question is marked to be trained on"
            raise DataError(Problem(message, turn.text()[:60], "add a user turn before it, or mark it with 0"))
    return dropped


def _read_row_tools(columns: RowColumns) -> str:
    names = [name for name in ("tools", "functions") if columns.value(name) is not None]
    if not names:
        return ""
    if len(names) > 1 and columns.value("tools") != columns.value("functions"):
        message = f"{columns.row.location}: the columns tools and functions have different values"
        raise DataError(Problem(message, describe_value(columns.value("functions")), "keep one of the columns"))
    return read_tools(columns.value(names[0]), columns.label(names[0]))


def _suggest_list_of_turns(value: list[Any], column: str) -> str:
    """Return a hint to turn another kind of list into turns, or an empty string."""
    if all(isinstance(item, list) for item in value):
        return f"write each conversation in {column} as a row of its own"
    if all(isinstance(item, str) for item in value):
        return 'write each text as a turn: {"role": "user" or "assistant", "content": text}'
    return suggest_turns(value, column)


def _parse_list(text: str) -> Any:
    """Return the JSON value of a text, or the text if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _list_columns(row: Row) -> str:
    """Return the columns of a row for a message, at most MAX_NAMES_LENGTH characters of them."""
    names = ", ".join(row.values) or "no column"
    if len(names) <= MAX_NAMES_LENGTH:
        return names
    return f"{names[:MAX_NAMES_LENGTH]}... ({count_noun(len(row.values), 'column')})"
