"""Recognise rows that are not for supervised fine-tuning, with a hint on what to type instead.

Preference data (two answers to a question, ranked answers, answers judged good or bad) and images, audio and video.
Training silently on what is left of them would train on the wrong thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from neftcli.data.column_suggestions import conversation_column, mapping, path_to_text, question_column
from neftcli.data.example import Turn, describe_value, has_value
from neftcli.data.jq_hints import jq, jq_key, without_column
from neftcli.data.readers import Row
from neftcli.data.turns import ROLES, is_conversation, is_turn
from neftcli.errors import DataError, Problem

PAIRS = (
    ("chosen", "rejected"),
    ("preferred", "non_preferred"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("winner", "loser"),
)
"""Parts of the names of two columns, the preferred answer's first."""
SIDES = (
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
"""The same, of names that are this word alone or together with a word for an answer (`good_response`)."""
ANSWER_WORDS = ("response", "answer", "completion", "output", "reply", "text", "message", "messages", "conversation")
NUMBERED = re.compile(
    r"(.*(?:response|answer|completion|conversation|output|reply|ref))s?(?:_[0-9a-z]|[0-9])", re.IGNORECASE
)
VERDICT = re.compile(r"prefer|winner|better|best|label|score|rank", re.IGNORECASE)
LISTS = ("completion", "completions", "output", "outputs", "response", "responses", "answer", "answers", "candidates")
ANSWERS = ("completion", "output", "messages", "conversations", "conversation", "response", "answer", "chosen")
ANSWERED = ("completion", "output", "messages", "conversations")
TURNS = ("messages", "conversations", "prompt")
JUDGEMENTS = (
    *("label", "labels", "kto_tag", "kto_label", "desirable", "is_desirable", "like", "liked", "is_liked"),
    *("preferred", "is_preferred", "preference", "accepted", "is_accepted", "approved", "is_approved"),
    *("chosen", "is_chosen", "good", "is_good", "correct", "is_correct", "is_positive", "thumbs_up", "upvoted"),
    *("feedback", "verdict", "judgement", "judgment"),
)
"""Columns that say whether the answer is good."""
REVERSED = ("undesirable", "is_undesirable", "rejected", "is_rejected", "disliked", "bad", "is_bad", "thumbs_down")
"""Columns that say whether the answer is bad."""
CLASSES = ("label", "labels", "correct", "preference")
"""Columns that may as well hold the number of a class or a choice, or a class that is the answer."""
MAY_BE_TEXTS = ("chosen", "rejected", "good", "bad", "correct")
"""Columns whose texts may be answers."""
ONE, ZERO = ("1", "1.0"), ("0", "0.0", "-1", "-1.0")
VERDICTS = (
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
"""The values of a good answer, then those of a bad one, in small letters."""
MEDIA = ("image", "images", "image_url", "image_path", "audio", "audios", "video", "videos", "pixel_values")
# The first never occurs in ordinary text. The second is an image in LLaVA's form: alone on its line, before a question
# or after a sentence. A text about the HTML tag has it elsewhere, or closes it.
SPECIAL_PLACEHOLDER = re.compile(r"<\|(?:image|audio|video)(?:_pad|_\d+)?\|>")
PLACEHOLDER = re.compile(
    r"^\s*(?:<(?:image|audio|video)>\s*)+$"
    r"|\A(?:<(?:image|audio|video)>\s*)+(?:(?<=>)\w|(?<=\s)(?![a-z])\w)"
    r"|[.?!\u3002\uff01\uff1f]\s*(?:<(?:image|audio|video)>\s*)+\Z",
    re.MULTILINE,
)
CLOSING = re.compile(r"</(?:image|audio|video)>")
KIND = re.compile(r"<\|?(image|audio|video)[^>]*>")


def require_supervised(row: Row, columns: Mapping[str, str]) -> None:
    """Reject a row of preference data, or with images or sound.

    Args:
        row: Under standard column names.
        columns: The recipe's `data.columns`; a preferred answer that is mapped there is trained on.

    Raises:
        DataError: With what to type to train on what can be learned.
    """
    nested = [name for name, value in row.values.items() if isinstance(value, (dict, list))]
    if not _is_suspicious(tuple(row.values)) and not any(name in LISTS or name not in TURNS for name in nested):
        return
    values = {name: value for name, value in row.values.items() if has_value(value)}
    for name, value in values.items():
        _require_no_media(row, columns.get(name, name), name, value)
    _require_no_pair(row, values, columns)
    _require_one_answer(row, values, columns)
    _require_no_ranking(row, values, columns)
    _require_no_judgement(row, values)


@lru_cache(maxsize=1024)
def _is_suspicious(names: tuple[str, ...]) -> bool:
    """Return whether the names of the columns suggest other data; cached, since most rows of a file have the same."""
    lower = [name.lower() for name in names]
    known = (*MEDIA, *JUDGEMENTS, *REVERSED)
    return any(
        name in known or NUMBERED.fullmatch(name) or any(other in lower for other in _names_of_rejected(name))
        for name in lower
    )


def require_no_placeholder(turns: Sequence[Turn], location: str) -> None:
    """Reject a conversation whose questions hold a placeholder of an image, of sound or of a video.

    Raises:
        DataError: With the turn.
    """
    for number, turn in enumerate(turns, 1):
        if turn.role != "user":
            continue
        text = turn.text()
        found = SPECIAL_PLACEHOLDER.search(text) or PLACEHOLDER.search(text)
        place = KIND.search(found[0]) if found else None
        if place is None or CLOSING.search(text):
            continue
        kind = {"image": "an image", "audio": "sound", "video": "a video"}[place[1]]
        without = f"select(tostring | contains({json.dumps(place[0])}) | not)"
        raise DataError(
            Problem(
                f"{location}: question {number} holds {place[0]}, a placeholder of {kind}, and neft trains on text",
                describe_value(text),
                f"{jq(location, without)}    keeps the rows without it",
            )
        )


def _require_no_media(row: Row, own: str, name: str, value: Any) -> None:
    is_bytes = isinstance(value, dict) and "bytes" in value
    if name.lower() not in MEDIA and not is_bytes:
        return
    word = next((word for word in ("audio", "video") if word in name.lower()), "image")
    kind = "a file" if is_bytes and word not in name.lower() else f"{word} data"
    raise DataError(
        Problem(
            f"{row.location}: the column {own} holds {kind}, and neft trains on text",
            f"{type(value).__name__}: {'bytes' if is_bytes else str(value)[:60]}",
            f"{without_column(row.location, own)}    keeps the text of every row; {_without_value(row.location, own)}",
        )
    )


def _without_value(location: str, column: str) -> str:
    return f"{jq(location, f'select({jq_key(column)} | length == 0)')}    keeps the rows without {column}"


def _require_no_pair(row: Row, values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Reject a preferred answer with a rejected one in a second column."""
    by_lower = {name.lower(): name for name in row.values}
    for lower, name in by_lower.items():
        for rejected in _names_of_rejected(lower):
            other = by_lower.get(rejected)
            if other is None or not any(isinstance(values.get(column), str | list | dict) for column in (name, other)):
                continue
            raise DataError(
                Problem(
                    f"{row.location}: this is preference data ({name} and {other} answer the same question), and neft "
                    "trains on one answer",
                    ", ".join(row.values),
                    f"{_train_on(row, values, name, columns)}    trains on {name}",
                )
            )


def _names_of_rejected(name: str) -> list[str]:
    """The names that the column of the rejected answer may have if the one of this name holds the preferred answer."""
    names = [name.replace(good, bad) for good, bad in PAIRS if good in name]
    words = name.split("_")
    for good, bad in SIDES:
        if good in words and all(word in (good, *ANSWER_WORDS) for word in words):
            names.append("_".join(bad if word == good else word for word in words))
    return names


def _train_on(row: Row, values: Mapping[str, Any], good: str, columns: Mapping[str, str]) -> str:
    """The flag or command that trains on one of the answers."""
    answer = values.get(good)
    asked = values.get("input")
    if isinstance(asked, dict) and is_conversation(asked.get("messages")):  # OpenAI's form
        return jq(row.location, f"{{messages: (.input.messages + {jq_key(good)})}}")
    if is_conversation(answer) and isinstance(answer, list) and any(_role(turn) == "user" for turn in answer):
        return mapping({"messages": good}, columns)
    conversation = conversation_column(values, (good,))
    question = question_column(values, (good,))
    if conversation and (question is None or is_turn(answer)):
        return mapping({"prompt": conversation, "completion": good}, columns)
    if question == "instruction":
        return mapping({"output": good}, columns)
    if question:
        return mapping({"prompt": question, "completion": good}, columns)
    return mapping({"text": good}, columns)


def _role(turn: Any) -> str:
    return ROLES.get(str(turn.get("role", turn.get("from"))).lower(), "") if isinstance(turn, dict) else ""


def _require_one_answer(row: Row, values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Reject several answers in numbered columns, with a column that says which is better."""
    if any(name in values for name in ANSWERED):
        return
    bases: dict[str, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, str | list) and (parts := NUMBERED.fullmatch(name)):
            bases.setdefault(parts[1], []).append(name)
    several = next((names for names in bases.values() if len(names) > 1), [])
    judged = [name for name in row.values if VERDICT.search(name) and name not in several]
    if several and judged:
        raise DataError(
            Problem(
                f"{row.location}: this is preference data ({', '.join(several)} answer one question, and {judged[0]} "
                "judges them), and neft trains on one answer",
                ", ".join(row.values),
                f'{{"prompt": ..., "completion": ...}} with the better one; or all of {several[0]}: '
                + _train_on(row, values, several[0], columns),
            )
        )


def _require_no_ranking(row: Row, values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Reject a column that holds several answers to a question, with ranks or scores in it or in a second column."""
    judges = [name for name in row.values if VERDICT.search(name)]
    for name in LISTS:
        answers = values.get(name)
        if not isinstance(answers, list) or len(answers) < 2 or is_turn(answers[0]):
            continue
        own = columns.get(name, name)
        if all(isinstance(answer, str) for answer in answers):
            several = bool(judges) or name in ANSWERED
            best, kept = ".[0]", "the first answer"
        elif all(isinstance(answer, dict) for answer in answers):
            judge = next((key for key, item in answers[0].items() if VERDICT.search(key) and _is_number(item)), "")
            several = bool(judges or judge)
            text = path_to_text(answers[0]) or "."
            best, kept = f".[0]{text}", "the first answer"
            if judge:
                by = "min_by" if "rank" in judge.lower() else "max_by"
                best, kept = f"({by}({jq_key(judge)}) | {text})", "the best answer"
        else:
            continue
        if several:
            raise DataError(
                Problem(
                    f"{row.location}: this is preference data ({own} holds {len(answers)} answers to one question), "
                    "and neft trains on one answer",
                    describe_value(answers),
                    f"{jq(row.location, f'{jq_key(own)} |= {best}')}    keeps {kept}",
                )
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_no_judgement(row: Row, values: Mapping[str, Any]) -> None:
    """Reject an answer with a column that says whether it is good (KTO)."""
    if not any(name in values for name in ANSWERS):
        return
    for name, value in values.items():
        good = _values_of_good(name.lower(), value, values)
        if not good:
            continue
        key = jq_key(name)
        is_good = f'test("^ *({"|".join(good)}) *$"; "i")'
        raise DataError(
            Problem(
                f"{row.location}: this is preference data ({name} says whether the answer is good), and neft would "
                "train on the bad answers as well",
                f"{name}: {value}",
                f"{jq(row.location, f'select({key} | tostring | {is_good}) | del({key})')}    keeps the good answers; "
                "a column that means something else needs another name",
            )
        )


def _values_of_good(name: str, value: Any, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that a good answer has in a column of judgements; empty if the column holds none."""
    if name not in (*JUDGEMENTS, *REVERSED) or not isinstance(value, str | bool | int | float):
        return ()
    if name in MAY_BE_TEXTS and isinstance(value, str):
        return ()
    verdict = str(value).strip().lower()
    good, bad = next((pair for pair in VERDICTS if verdict in (*pair[0], *pair[1])), ((), ()))
    is_label_of_pair = name == "label" and "prompt" in values and "completion" in values
    if name in CLASSES and ((good == ONE and not is_label_of_pair) or verdict in _answers(values)):
        return ()
    return bad if name in REVERSED else good


def _answers(values: Mapping[str, Any]) -> list[str]:
    """The texts of the last answers, in small letters."""
    texts = []
    for value in (values.get(name) for name in ANSWERS):
        turn = value[-1] if isinstance(value, list) and value else value
        text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
        texts.append(str(text).strip().lower())
    return texts
