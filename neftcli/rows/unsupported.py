"""Rows that supervised fine-tuning can't use: preference data, images, audio and video.

`UNSUPPORTED_ROWS` is the registry: one entry for each kind of rows. Training on what is left of such rows would
silently train on the wrong thing, so neft rejects them with a hint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from neftcli.errors import DataError, Problem
from neftcli.rows.column_suggestions import (
    find_conversation_column,
    find_question_column,
    format_mapping,
    path_to_text,
)
from neftcli.rows.example import Turn, describe_value, has_value
from neftcli.rows.readers import Row
from neftcli.rows.turns import ROLES, is_conversation, is_turn

PREFERENCE_PAIRS = (
    ("chosen", "rejected"),
    ("preferred", "non_preferred"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("winner", "loser"),
)
"""Parts of the names of two columns, the preferred answer's first."""
PREFERENCE_WORDS = (
    ("win", "lose"),
    ("winning", "losing"),
    ("good", "bad"),
    ("better", "worse"),
    ("best", "worst"),
    ("positive", "negative"),
    ("correct", "incorrect"),
    ("accept", "reject"),
    ("like", "dislike"),
)
"""The same, for names that are this word alone or together with a word for an answer (`good_response`)."""
ANSWER_WORDS = ("response", "answer", "completion", "output", "reply", "text", "message", "messages", "conversation")
NUMBERED_ANSWER = re.compile(
    r"(.*(?:response|answer|completion|conversation|output|reply|ref))s?(?:_[0-9a-z]|[0-9])", re.IGNORECASE
)
RANKING_COLUMN = re.compile(r"prefer|winner|better|best|label|score|rank", re.IGNORECASE)
ANSWER_LISTS = (
    *("completion", "completions", "output", "outputs", "response", "responses", "answer", "answers", "candidates"),
)
ANSWERS = ("completion", "output", "messages", "conversations", "conversation", "response", "answer", "chosen")
STANDARD_ANSWERS = ("completion", "output", "messages", "conversations")
TURN_COLUMNS = ("messages", "conversations", "prompt")
JUDGEMENTS = (
    *("label", "labels", "kto_tag", "kto_label", "desirable", "is_desirable", "like", "liked", "is_liked"),
    *("preferred", "is_preferred", "preference", "accepted", "is_accepted", "approved", "is_approved"),
    *("chosen", "is_chosen", "good", "is_good", "correct", "is_correct", "is_positive", "thumbs_up", "upvoted"),
    *("feedback", "verdict", "judgement", "judgment"),
)
"""Columns that tell whether the answer is good."""
REVERSED_JUDGEMENTS = (
    *("undesirable", "is_undesirable", "rejected", "is_rejected", "disliked", "bad", "is_bad", "thumbs_down"),
)
"""Columns that tell whether the answer is bad."""
CLASS_COLUMNS = ("label", "labels", "correct", "preference")
"""Columns of judgements that may as well hold the number of a class or a choice, or a class that is the answer."""
TEXT_OR_JUDGEMENT = ("chosen", "rejected", "good", "bad", "correct")
"""Columns of judgements whose texts may be answers."""
ONE, ZERO = ("1", "1.0"), ("0", "0.0", "-1", "-1.0")
JUDGEMENT_VALUES = (
    (("true",), ("false",)),
    (ONE, ZERO),
    (("yes",), ("no",)),
    (("good",), ("bad",)),
    (("chosen", "accepted", "preferred"), ("rejected", "dispreferred", "non_preferred")),
    (("positive",), ("negative",)),
    (("like", "liked"), ("dislike", "disliked")),
    (("desirable",), ("undesirable",)),
    (("correct", "right"), ("incorrect", "wrong")),
    (("win", "winner"), ("lose", "loser")),
    (("thumbs_up", "thumbs up", "up", "upvote"), ("thumbs_down", "thumbs down", "down", "downvote")),
)
"""Lower-case values of a good answer, then of a bad one."""
MEDIA_COLUMNS = ("image", "images", "image_url", "image_path", "audio", "audios", "video", "videos", "pixel_values")
MEDIA_TOKEN = re.compile(r"<\|(?:image|audio|video)(?:_pad|_\d+)?\|>")
"""A placeholder that never occurs in ordinary text."""
MEDIA_TAG = re.compile(
    r"^\s*(?:<(?:image|audio|video)>\s*)+$"
    r"|\A(?:<(?:image|audio|video)>\s*)+(?:(?<=>)\w|(?<=\s)(?![a-z])\w)"
    r"|[.?!\u3002\uff01\uff1f]\s*(?:<(?:image|audio|video)>\s*)+\Z",
    re.MULTILINE,
)
"""A placeholder in LLaVA's form: alone on its line, before a question or after a sentence.

A text about the HTML tag has it elsewhere, or closes it.
"""
CLOSING_TAG = re.compile(r"</(?:image|audio|video)>")
MEDIA_KIND = re.compile(r"<\|?(image|audio|video)[^>]*>")


@dataclass(frozen=True, slots=True)
class _Columns:
    """A row under standard column names, with the recipe's `data.columns`; `values` has no empty ones."""

    row: Row
    values: Mapping[str, Any]
    columns: Mapping[str, str]

    def own_name(self, name: str) -> str:
        return self.columns.get(name, name)

    def problem(self, message: str, got: str, hint: str) -> Problem:
        return Problem(f"{self.row.location}: {message}", got, hint)


@dataclass(frozen=True, slots=True)
class UnsupportedRows:
    """A kind of rows that supervised fine-tuning can't use.

    Attributes:
        id: Stable name.
        rows: How the rows are recognised, for docs/data.md.
        hint: What to do with them, for docs/data.md.
        check: Returns the problem of a row of this kind, else None.
        check_turns: The same for the turns of a conversation and their location.
    """

    id: str
    rows: str
    hint: str
    check: Callable[[_Columns], Problem | None] | None = None
    check_turns: Callable[[Sequence[Turn], str], Problem | None] | None = None


def reject_unsupported_row(row: Row, columns: Mapping[str, str]) -> None:
    """Reject a row that supervised fine-tuning can't use.

    Args:
        row: The row under standard column names.
        columns: The recipe's `data.columns`; a preferred answer that is mapped there is trained on.

    Raises:
        DataError: With a hint.
    """
    nested = [name for name, value in row.values.items() if isinstance(value, (dict, list))]
    if not _has_suspicious_column(tuple(row.values)) and not any(
        name in ANSWER_LISTS or name not in TURN_COLUMNS for name in nested
    ):
        return
    values = {name: value for name, value in row.values.items() if has_value(value)}
    for kind in UNSUPPORTED_ROWS:
        if kind.check is not None and (problem := kind.check(_Columns(row, values, columns))) is not None:
            raise DataError(problem)


def reject_unsupported_turns(turns: Sequence[Turn], location: str) -> None:
    """Reject a conversation that supervised fine-tuning can't use.

    Raises:
        DataError: With a hint.
    """
    for kind in UNSUPPORTED_ROWS:
        if kind.check_turns is not None and (problem := kind.check_turns(turns, location)) is not None:
            raise DataError(problem)


@lru_cache(maxsize=1024)
def _has_suspicious_column(names: tuple[str, ...]) -> bool:
    """Return whether a column's name suggests unsupported rows; cached, since most rows have the same columns."""
    lower_names = [name.lower() for name in names]
    for name in lower_names:
        if name in (*MEDIA_COLUMNS, *JUDGEMENTS, *REVERSED_JUDGEMENTS) or NUMBERED_ANSWER.fullmatch(name):
            return True
        if any(rejected in lower_names for rejected in _names_of_rejected(name)):
            return True
    return False


def _check_media(columns: _Columns) -> Problem | None:
    for name, value in columns.values.items():
        is_bytes = isinstance(value, dict) and "bytes" in value
        if name.lower() not in MEDIA_COLUMNS and not is_bytes:
            continue
        media = next((word for word in ("audio", "video") if word in name.lower()), "image")
        kind = "a file" if is_bytes and media not in name.lower() else f"{media} data"
        own_name = columns.own_name(name)
        return columns.problem(
            f"the column {own_name} holds {kind}, and neft trains on text",
            f"{type(value).__name__}: {'bytes' if is_bytes else str(value)[:60]}",
            f"remove the column {own_name} if the text is useful without it, else remove the rows that have it",
        )
    return None


def _check_pair(columns: _Columns) -> Problem | None:
    """Find a preferred answer with a rejected one in a second column."""
    row, values = columns.row, columns.values
    by_lower_name = {name.lower(): name for name in row.values}
    for lower_name, name in by_lower_name.items():
        for rejected in _names_of_rejected(lower_name):
            other = by_lower_name.get(rejected)
            if other is None or not any(isinstance(values.get(column), str | list | dict) for column in (name, other)):
                continue
            return columns.problem(
                f"this is preference data ({name} and {other} answer the same question), and neft trains on one answer",
                ", ".join(row.values),
                f"{_suggest_training_on(columns, name)}    trains on {name}",
            )
    return None


def _names_of_rejected(name: str) -> list[str]:
    """Return the possible names of the rejected answer's column if the column of this name holds the preferred one."""
    names = [name.replace(good, bad) for good, bad in PREFERENCE_PAIRS if good in name]
    words = name.split("_")
    for good, bad in PREFERENCE_WORDS:
        if good in words and all(word in (good, *ANSWER_WORDS) for word in words):
            names.append("_".join(bad if word == good else word for word in words))
    return names


def _suggest_training_on(columns: _Columns, good: str) -> str:
    """Return the flag that trains on one of several answers, or the form to write the row in."""
    values = columns.values
    answer = values.get(good)
    prompt = values.get("input")
    if isinstance(prompt, dict) and is_conversation(prompt.get("messages")):  # OpenAI's format
        return f'write {{"messages": [... input.messages, ... {good}]}}'
    if is_conversation(answer) and isinstance(answer, list) and any(_standard_role(turn) == "user" for turn in answer):
        return format_mapping({"messages": good}, columns.columns)
    conversation = find_conversation_column(values, (good,))
    question = find_question_column(values, (good,))
    if conversation and (question is None or is_turn(answer)):
        return format_mapping({"prompt": conversation, "completion": good}, columns.columns)
    if question == "instruction":
        return format_mapping({"output": good}, columns.columns)
    if question:
        return format_mapping({"prompt": question, "completion": good}, columns.columns)
    return format_mapping({"text": good}, columns.columns)


def _standard_role(turn: Any) -> str:
    return ROLES.get(str(turn.get("role", turn.get("from"))).lower(), "") if isinstance(turn, dict) else ""


def _check_numbered_answers(columns: _Columns) -> Problem | None:
    """Find several answers in numbered columns, with a column that tells which is better."""
    row, values = columns.row, columns.values
    if any(name in values for name in STANDARD_ANSWERS):
        return None
    by_base: dict[str, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, str | list) and (match := NUMBERED_ANSWER.fullmatch(name)):
            by_base.setdefault(match[1], []).append(name)
    answers = next((names for names in by_base.values() if len(names) > 1), [])
    ranking = [name for name in row.values if RANKING_COLUMN.search(name) and name not in answers]
    if not answers or not ranking:
        return None
    return columns.problem(
        f"this is preference data ({', '.join(answers)} answer the same question, and {ranking[0]} ranks them), and "
        "neft trains on one answer",
        ", ".join(row.values),
        f'{{"prompt": ..., "completion": ...}} with the better one; or all of {answers[0]}: '
        + _suggest_training_on(columns, answers[0]),
    )


def _check_answer_list(columns: _Columns) -> Problem | None:
    """Find a column with several answers to a question, with ranks or scores in it or in a second column."""
    rankings = [name for name in columns.row.values if RANKING_COLUMN.search(name)]
    for name in ANSWER_LISTS:
        answers = columns.values.get(name)
        if not isinstance(answers, list) or len(answers) < 2 or is_turn(answers[0]):
            continue
        own_name = columns.own_name(name)
        if all(isinstance(answer, str) for answer in answers):
            is_ranked = bool(rankings) or name in STANDARD_ANSWERS
            best = "first answer"
        elif all(isinstance(answer, dict) for answer in answers):
            ranks = [key for key, item in answers[0].items() if RANKING_COLUMN.search(key) and _is_number(item)]
            is_ranked = bool(rankings or ranks)
            text = path_to_text(answers[0]).removeprefix(".")
            best = f"{text} of the first answer" if text else "first answer"
            if ranks:
                extreme = "lowest" if "rank" in ranks[0].lower() else "highest"
                best = f"{text} of the answer with the {extreme} {ranks[0]}"
        else:
            continue
        if is_ranked:
            return columns.problem(
                f"this is preference data ({own_name} holds {len(answers)} answers to the same question), and neft "
                "trains on one answer",
                describe_value(answers),
                f"replace {own_name} by one text, such as the {best}",
            )
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_judgement(columns: _Columns) -> Problem | None:
    """Find an answer with a column that tells whether it is good (KTO)."""
    if not any(name in columns.values for name in ANSWERS):
        return None
    for name, value in columns.values.items():
        good = _values_of_good(name.lower(), value, columns.values)
        if good:
            values = [text for text in good if not text.endswith(".0")]
            return columns.problem(
                f"this is preference data ({name} marks answers as good or bad), and neft would train on the bad "
                "answers too",
                f"{name}: {value}",
                f"keep the rows whose {name} is {' or '.join(values)} and remove the column; rename it if it means "
                "something else",
            )
    return None


def _values_of_good(name: str, value: Any, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of a good answer in a column of judgements; empty if it is none."""
    if name not in (*JUDGEMENTS, *REVERSED_JUDGEMENTS) or not isinstance(value, str | bool | int | float):
        return ()
    if name in TEXT_OR_JUDGEMENT and isinstance(value, str):
        return ()
    judgement = str(value).strip().lower()
    good, bad = next((pair for pair in JUDGEMENT_VALUES if judgement in (*pair[0], *pair[1])), ((), ()))
    is_label_of_pair = name == "label" and "prompt" in values and "completion" in values
    if name in CLASS_COLUMNS and ((good == ONE and not is_label_of_pair) or judgement in _last_answers(values)):
        return ()
    return bad if name in REVERSED_JUDGEMENTS else good


def _last_answers(values: Mapping[str, Any]) -> list[str]:
    """Return the texts of the last answers in lower case."""
    texts = []
    for name in ANSWERS:
        value = values.get(name)
        turn = value[-1] if isinstance(value, list) and value else value
        text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
        texts.append(str(text).strip().lower())
    return texts


def _check_placeholder(turns: Sequence[Turn], location: str) -> Problem | None:
    for number, turn in enumerate(turns, 1):
        if turn.role != "user":
            continue
        text = turn.text()
        match = MEDIA_TOKEN.search(text) or MEDIA_TAG.search(text)
        placeholder = MEDIA_KIND.search(match[0]) if match else None
        if placeholder is None or CLOSING_TAG.search(text):
            continue
        kind = {"image": "an image", "audio": "audio", "video": "a video"}[placeholder[1]]
        return Problem(
            f"{location}: turn {number} contains {placeholder[0]}, a placeholder for {kind}, and neft trains on text",
            describe_value(text),
            f"remove the rows with {placeholder[0]}",
        )
    return None


UNSUPPORTED_ROWS = (
    UnsupportedRows(
        "media_column",
        "`image`, `images`, `audio`, `video` columns, and columns of bytes",
        "remove the column if the text is useful without it",
        _check_media,
    ),
    UnsupportedRows(
        "preference_pair",
        "preference pairs: `chosen` and `rejected`, `preferred_output` and `non_preferred_output`, `win` and `lose`, "
        "`good_response` and `bad_response`",
        "`--set data.columns='{completion: chosen}'`, `{prompt: conversations, completion: chosen}` or "
        "`{messages: chosen}` trains on the chosen answer",
        _check_pair,
    ),
    UnsupportedRows(
        "numbered_answers",
        "several answers in columns such as `response_0` and `response_1`, with a column that ranks them",
        "keep the better one, or map one of the columns to `completion`",
        _check_numbered_answers,
    ),
    UnsupportedRows(
        "answer_list",
        "ranked answers: a list of answers, with scores or ranks",
        "keep the best or the first answer as a string",
        _check_answer_list,
    ),
    UnsupportedRows(
        "judged_answer",
        "answers that are rated, by true and false, 0 or -1 and 1, or words such as good and bad: `label`, `kto_tag`, "
        "`desirable`, `liked`, `is_chosen` and similar columns",
        "keep the rows with good answers, and remove the column",
        _check_judgement,
    ),
    UnsupportedRows(
        "media_placeholder",
        "a question with a placeholder for an image, audio or a video",
        "remove these rows",
        check_turns=_check_placeholder,
    ),
)
"""Kinds of rows that neft rejects, in the order in which they are checked."""
