"""Rows that supervised fine-tuning can't use, and rows with unknown columns.

Oracles: the message and the hint written out by hand, and the examples that are read by the flag in a hint.
"""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.errors import DataError
from neftcli.recipe.loading import load_recipe, parse_assignment
from neftcli.rows.example import Example
from neftcli.rows.formats import STANDARD_COLUMNS, detect_format, to_example
from neftcli.rows.readers import Row
from neftcli.rows.unsupported import MEDIA_COLUMNS, UNSUPPORTED_ROWS

WHERE = "rows.jsonl, line 17"
EARLIER = [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q"}]
ASKED = [{"role": "user", "content": "q"}]
QA = {"prompt": "question", "completion": "answer"}
GOOD, BAD = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]


def read(values: dict[str, Any], columns: dict[str, str] | None = None, *, answers: bool = True) -> Example:
    row = Row(values, WHERE)
    row_format = detect_format(row, columns or {}, answers=answers)
    return to_example(row, row_format, answers=answers, columns=columns)


def rejection(values: dict[str, Any], columns: dict[str, str] | None = None, location: str = WHERE) -> tuple[str, str]:
    """Return message and hint of the error."""
    row = Row(values, location)
    with pytest.raises(DataError) as raised:
        to_example(row, detect_format(row, columns or {}), columns=columns)
    [problem] = raised.value.problems
    return problem.message.removeprefix(f"{location}: "), problem.hint


def parse_columns(hint: str) -> dict[str, str]:
    """Return the mapping of a `--set data.columns=...` as the command line parses it."""
    flag = next(word for word in shlex.split(hint) if word.startswith("data.columns="))
    return dict(load_recipe("quickstart", [parse_assignment(flag)]).data.columns)


def turn_texts(example: Example) -> tuple[str, ...]:
    return tuple(turn.content for turn in example.turns)


# Preference data

PAIRS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, ("q", "good")),
    ({"prompt": "q", "Chosen": "good", "Rejected": "bad"}, ("q", "good")),
    ({"question": "q", "chosen": "good", "rejected": "bad", "system": "s"}, ("s", "q", "good")),
    ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, ("q", "good")),
    ({"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}, ("q", "good")),
    ({"prompt": "q", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]}, ("q", "good")),
    ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD}, ("q", "good")),
    ({"prompt": "q", "chosen": GOOD, "rejected": BAD}, ("q", "good")),
    ({"prompt": "q", "messages": [*ASKED, *BAD], "chosen": [*ASKED, *GOOD], "rejected": None}, ("q", "good")),
    ({"chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]}, ("q", "good")),
    ({"conversations": EARLIER, "chosen": {"from": "gpt", "value": "good"}, "rejected": {}}, ("q1", "a1", "q", "good")),
    ({"conversations": EARLIER, "chosen": "good", "rejected": "bad"}, ("q1", "a1", "q", "good")),
    ({"prompt": "q", "conversations": EARLIER[:1], "chosen": "good", "rejected": "bad"}, ("q", "good")),
    ({"prompt": "q", "completion": "other", "chosen": "good", "rejected": "bad"}, ("q", "good")),
    ({"prompt": "q", "win": "good", "lose": "bad"}, ("q", "good")),
    ({"prompt": "q", "winner": "good", "loser": "bad"}, ("q", "good")),
    ({"question": "q", "good": "good", "bad": "bad"}, ("q", "good")),
    ({"query": "q", "positive": "good", "negative": "bad"}, ("q", "good")),
    ({"prompt": "q", "completion": "other", "Good_Response": "good", "Bad_Response": "bad"}, ("q", "good")),
    ({"prompt": "q", "response_win": GOOD, "response_lose": BAD}, ("q", "good")),
    ({"question": "q", "correct_answer": "good", "incorrect_answer": "bad"}, ("q", "good")),
]


@pytest.mark.parametrize(("values", "expected"), PAIRS)
def test_reject_unsupported_row_preference_pair(values: dict[str, Any], expected: tuple[str, ...]) -> None:
    """The mapping in the hint trains on the chosen answer, with the whole question before it."""
    what, hint = rejection(values)
    assert what.startswith("this is preference data (")
    assert turn_texts(read(values, parse_columns(hint))) == expected


def test_to_example_chosen_as_completion() -> None:
    """The mapping {completion: chosen} works whether the chosen answer repeats the prompt or not, as text or turns."""
    for prompt in ("q", ASKED):
        for chosen in ("good", GOOD, GOOD[0], [*ASKED, *GOOD]):
            values = {"prompt": prompt, "chosen": chosen, "rejected": "bad"}
            assert turn_texts(read(values, {"completion": "chosen"})) == ("q", "good")


def test_reject_unsupported_row_later_preference_pair() -> None:
    """Even if the first row has a plain format, or another column is mapped."""
    values = {"conversations": [*EARLIER[:2]], "chosen": "good", "rejected": "bad"}
    with pytest.raises(DataError, match="preference data"):
        to_example(Row(values, WHERE), "sharegpt")
    values = {"dialog": EARLIER, "chosen": "good", "rejected": "bad"}
    what, hint = rejection(values, {"conversations": "dialog"})
    assert what.startswith("this is preference data")
    assert turn_texts(read(values, parse_columns(hint))) == ("q1", "a1", "q", "good")


def test_reject_unsupported_row_ignores_empty_columns() -> None:
    """Null and empty values count as missing."""
    values = {"messages": [*ASKED, *GOOD], "chosen": None, "rejected": [], "label": None, "images": [], "image": ""}
    assert turn_texts(read(values)) == ("q", "good")


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"prompt": "q", "completion": "good", "label": True}, "whose label is true"),
        ({"prompt": "q", "completion": "good", "label": 1}, "whose label is 1 and"),
        ({"prompt": ASKED, "completion": GOOD, "label": True}, "whose label is true"),
        ({"messages": [*ASKED, *GOOD], "label": "True"}, "whose label is true"),
        ({"conversations": [EARLIER[2], {"from": "gpt", "value": "good"}], "kto_tag": True}, "whose kto_tag is true"),
        ({"prompt": "q", "completion": "good", "desirable": True}, "whose desirable is true"),
        ({"prompt": "q", "completion": "good", "undesirable": False}, "whose undesirable is false"),
        ({"prompt": "q", "completion": "good", "Liked": 1.0}, "whose Liked is 1 and"),
        ({"prompt": "q", "completion": "good", "label": "1"}, "whose label is 1 and"),
        ({"prompt": "q", "completion": "good", "label": " Chosen "}, "whose label is chosen or accepted or preferred"),
        ({"instruction": "q", "output": "good", "is_chosen": 1}, "whose is_chosen is 1 and"),
        ({"instruction": "q", "output": "good", "label": "positive"}, "whose label is positive"),
        ({"messages": [*ASKED, *GOOD], "label": "chosen"}, "whose label is chosen or accepted or preferred"),
        ({"messages": [*ASKED, *GOOD], "feedback": "thumbs_up"}, "whose feedback is thumbs_up or"),
    ],
)
def test_reject_unsupported_row_judged_answer(values: dict[str, Any], hint: str) -> None:
    """The hint names the values of good answers."""
    message, actual = rejection(values)
    assert message.startswith("this is preference data (")
    assert actual.startswith(f"keep the rows {hint}")
    assert actual.endswith("and remove the column; rename it if it means something else")


@pytest.mark.parametrize(
    ("column", "judgement"),
    [
        *(("label", judgement) for judgement in (False, 0, -1, -1.0, "0", "False")),
        *(("label", judgement) for judgement in ("bad", "Rejected", "negative", "dislike", "undesirable", "incorrect")),
        *((column, False) for column in ("desirable", "liked", "preferred", "accepted", "is_chosen", "kto_tag")),
        *((column, True) for column in ("undesirable", "rejected", "disliked")),
    ],
)
def test_reject_unsupported_row_answer_judged_bad(column: str, judgement: Any) -> None:
    """The hint does not name the value of this row."""
    values = {"prompt": "q", "completion": "bad answer", column: judgement}
    message, hint = rejection(values)
    assert message.startswith(f"this is preference data ({column} marks answers as good or bad)")
    good = hint.removeprefix(f"keep the rows whose {column} is ").partition(" and remove")[0].split(" or ")
    assert str(judgement).lower() not in good


@pytest.mark.parametrize(
    ("values", "best"),
    [
        (
            {"instruction": "q", "completions": [{"response": "bad", "score": 1}, {"response": "good", "score": 2}]},
            "response of the answer with the highest score",
        ),
        (
            {"prompt": "q", "answers": [{"answer": "bad", "rank": 2}, {"answer": "good", "rank": 1}]},
            "answer of the answer with the lowest rank",
        ),
        ({"prompt": "q", "responses": ["good", "bad"], "scores": [2, 1]}, "first answer"),
        ({"prompt": "q", "completions": ["good", "bad"], "labels": [True, False]}, "first answer"),
        ({"instruction": "q", "output": ["good", "bad"]}, "first answer"),
        ({"prompt": "q", "completion": ["good", "bad"]}, "first answer"),
    ],
)
def test_reject_unsupported_row_ranked_list(values: dict[str, Any], best: str) -> None:
    """The hint names the best answer."""
    message, hint = rejection(values)
    assert message.startswith("this is preference data (")
    assert hint.startswith("replace ")
    assert hint.endswith(f" by one text, such as the {best}")


def test_reject_unsupported_row_preference_pair_of_openai() -> None:
    """The question is nested, so no mapping reads it."""
    values = {"input": {"messages": ASKED}, "preferred_output": GOOD, "non_preferred_output": BAD}
    message, hint = rejection(values)
    assert message.startswith("this is preference data (")
    assert hint == 'write {"messages": [... input.messages, ... preferred_output]}    trains on preferred_output'


def test_reject_unsupported_row_numbered_answers() -> None:
    """A further column names the better one."""
    for values in (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"question": "q", "answer_a": "a", "answer_b": "b", "preference": "a"},
        {"prompt": "q", "conversation_a": ASKED, "conversation_b": ASKED, "winner": "model_a"},
    ):
        assert rejection(values)[0].startswith("this is preference data (")
    assert turn_texts(read({"prompt": "q", "completion": "a", "answer_1": "x", "answer_2": "y", "score": 1})) == (
        "q",
        "a",
    )


def test_reject_unsupported_row_accepts_labels_of_other_data() -> None:
    """A class of a text or of a question does not judge an answer."""
    assert read({"text": "a film", "label": 1}).text == "a film"
    assert read({"text": "a film", "label": True}).text == "a film"
    assert turn_texts(read({"prompt": "q", "completion": "a", "label": "sports"})) == ("q", "a")
    assert turn_texts(read({"instruction": "q", "output": "a", "label": 3})) == ("q", "a")
    assert turn_texts(read({"instruction": "q", "output": "a", "label": 1})) == ("q", "a")
    assert turn_texts(read({"question": "q", "choices": ["a", "b"], "answer": "a", "correct": 0}, QA)) == ("q", "a")
    assert turn_texts(read({"instruction": "q", "output": "Positive", "label": "positive"})) == ("q", "Positive")
    assert turn_texts(read({"messages": [*ASKED, *GOOD], "label": "good"})) == ("q", "good")
    assert turn_texts(read({"prompt": "q", "completion": "a", "desirable": 0.7, "feedback": "It is short."})) == (
        "q",
        "a",
    )
    assert read({"text": "a film", "label": "negative"}).text == "a film"


def test_reject_unsupported_row_accepts_pairs_other_than_answers() -> None:
    """Column names with good and bad for prompts of images, and for counts."""
    images = {"positive_prompt": "sharp", "negative_prompt": "blurred"}
    assert turn_texts(read({"prompt": "q", "completion": "a", **images})) == ("q", "a")
    assert turn_texts(read({"prompt": "q", "completion": "a", "positive": 3, "negative": 1})) == ("q", "a")


# Images and sound


@pytest.mark.parametrize("column", ["image", "images", "Image", "audio", "audios", "video", "videos"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": b"x", "path": None}, [{"path": "a"}]])
def test_reject_unsupported_row_media_column(column: str, value: Any) -> None:
    """In any row format; the message names the kind of the data."""
    kind = next((word for word in ("audio", "video") if word in column), "image")
    for values in ({"messages": [*ASKED, *GOOD]}, {"prompt": "q", "completion": "a"}, {"text": "x"}):
        assert (
            rejection({**values, column: value})[0] == f"the column {column} holds {kind} data, and neft trains on text"
        )


def test_reject_unsupported_row_bytes() -> None:
    """A column of bytes, as data sets on the hub store images and audio."""
    what, _ = rejection({"prompt": "q", "completion": "a", "scan": {"bytes": b"x", "path": "x.png"}})
    assert what == "the column scan holds a file, and neft trains on text"


def test_reject_unsupported_row_media_column_hint() -> None:
    """The hint is to remove the column or the rows."""
    hint = rejection({"prompt": "q", "completion": "a", "images": ["a.png"]})[1]
    assert hint == "remove the column images if the text is useful without it, else remove the rows that have it"


@pytest.mark.parametrize(
    "question",
    [
        "<image>",
        "<image>\nWhat is it?",
        "<image>What is it?",
        "<image> What is it?",
        "<image><image>\nWhich is older?",
        "What is it?\n<image>",
        "What is it? <image>",
        "What is\n<image>\nin this?",
        "What is\r\n<image>\r\nin this?",
        "Compare\n  <image> <image>  \nand say which is older",
        "Listen.\n\n<audio>\n\nWho sings?",
        "<audio>\nwho sings",
        "<video>\nwhat happens",
        "<image>\n这是什么？",
        "Describe <|image_pad|> now",
        "<|image_1|>\nWhat is it?",
        "<|audio|> Who sings?",
    ],
)
def test_reject_unsupported_turns_placeholder(question: str) -> None:
    """The question is about an image or audio that the model does not see."""
    for values in (
        {"instruction": question, "output": "a"},
        {"conversations": [{"from": "human", "value": question}, EARLIER[1]]},
    ):
        message, hint = rejection(values)
        assert message.endswith("and neft trains on text")
        assert hint.startswith("remove the rows with <")


@pytest.mark.parametrize(
    "question",
    [
        "How do I use the <image> tag in SVG?",
        "<image> tag or <img> tag?",
        "<image>, <video> and <audio>: what are they?",
        "What does this do: <image>",
        "What is\n<image> in SVG\nfor?",
        "Parse this:\n<image>\n  <url>x</url>\n</image>",
        "<image>\n<url>x</url>\n</image>",
        "What is in the image?",
        "a <|im_end|> b",
    ],
)
def test_reject_unsupported_turns_accepts_words_about_images(question: str) -> None:
    """A question about the tag itself is text."""
    assert turn_texts(read({"instruction": question, "output": "a"})) == (question, "a")
    assert turn_texts(read({"instruction": "q", "output": question})) == ("q", question)


# Columns that fit no row format


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"instruction": "q", "response": "a"}, ("q", "a")),
        ({"question": "q", "answer": "a"}, ("q", "a")),
        ({"Question": "q", "Answer ": "a", "id": 7}, ("q", "a")),
        ({"query": "q", "response": "a"}, ("q", "a")),
        ({"problem": "q", "solution": "a", "level": "5"}, ("q", "a")),
        ({"prompt": "q", "response": "a"}, ("q", "a")),
        ({"Prompt": "q", "completion": "a"}, ("q", "a")),
        ({"input": "q", "output": "a"}, ("q", "a")),
        ({"inputs": "q", "targets": "a"}, ("q", "a")),
        ({"human": "q", "assistant": "a"}, ("q", "a")),
        ({"instruction": "q", "context": "c", "response": "a"}, ("q", "a")),
        ({"question": "q", "answer": "a", "system_prompt": "s"}, ("s", "q", "a")),
        ({"dialogue": [*ASKED, *GOOD]}, ("q", "good")),
        ({"my chat's": [*ASKED, *GOOD], "prompt": "q"}, ("q", "good")),
        ({"conversation": EARLIER[:2]}, ("q1", "a1")),
    ],
)
def test_suggest_columns_of_question_and_answer(values: dict[str, Any], expected: tuple[str, ...]) -> None:
    """The mapping in the message reads the row."""
    what, hint = rejection(values)
    assert what == "the columns match no known row format"
    assert turn_texts(read(values, parse_columns(hint))) == expected


def test_suggest_text_column() -> None:
    """A text column under another name."""
    assert parse_columns(rejection({"content": "words", "id": 1})[1]) == {"text": "content"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": [[*ASKED, *GOOD], [*ASKED, *BAD]]}, "write each conversation in messages as a row of its own"),
        (
            {"messages": ["q", "good", "r", "s"]},
            'write each text as a turn: {"role": "user" or "assistant", "content": text}',
        ),
        (
            {"conversations": [{"human": "q", "assistant": "good"}]},
            'write each object in conversations as two turns of "messages": {"role": "user", "content": human}, '
            '{"role": "assistant", "content": assistant}',
        ),
        ({"prompt": [["q"]], "completion": "a"}, "replace prompt by the text in prompt[0][0]"),
        ({"instruction": "q", "output": [{"text": "good"}]}, "replace output by the text in output[0].text"),
        (
            {"instruction": "q", "output": {"parts": [{"content": "good"}]}},
            "replace output by the text in output.parts[0].content",
        ),
        (
            {"query": "q", "tools": '[{"name": "f"}]', "answers": '[{"name": "f", "arguments": {"x": 1}}]'},
            'write the tool calls as a conversation: {"messages": [{"role": "user", "content": query}, '
            '{"role": "assistant", "tool_calls": answers}], "tools": tools}',
        ),
        (
            {"conversation": [{"input": "q", "output": "a"}]},
            'write each object in conversation as two turns of "messages": {"role": "user", "content": input}, '
            '{"role": "assistant", "content": output}',
        ),
        (
            {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
            'write each object in contents as a turn of "messages": {"role": role, "content": parts[0].text}',
        ),
        ({"rows": [{"prompt": "q"}, {"prompt": "r"}]}, "write each object in rows as a row of its own"),
        (
            {"meta": {"v": 1}, "data": {"train": [QA], "test": [{}]}},
            "write the rows in data.train to a file of their own",
        ),
        ({"data": {"test": [{}], "train": [QA]}}, "write the rows in data.train to a file of their own"),
        ({"a": {"b": {"c": [QA]}}}, "write the rows in a.b.c to a file of their own"),
        (EARLIER[0], 'one conversation per row, not one turn: {"messages": [{"role": ..., "content": ...}, ...]}'),
        (ASKED[0], 'one conversation per row, not one turn: {"messages": [{"role": ..., "content": ...}, ...]}'),
    ],
)
def test_suggest_turns_of_nested_rows(values: dict[str, Any], expected: str) -> None:
    """If no mapping can read the row, the hint shows the form that it should have."""
    assert rejection(values)[1] == expected


def test_suggest_columns_of_nested_answers() -> None:
    """The hint names the text to take, then the mapping to type."""
    values = {"question": "q", "answers": {"text": ["good"], "answer_start": [3]}}
    _, hint = rejection(values)
    assert hint.startswith("replace answers by the text in answers.text[0]; then --set data.columns=")
    assert turn_texts(read({"question": "q", "answers": "good"}, parse_columns(hint))) == ("q", "good")
    assert rejection(values, {"instruction": "question", "output": "answers"}) == (
        "output (the column answers) must be text, and nested lists and objects can't be mapped",
        "replace answers by the text in answers.text[0]",
    )


@settings(deadline=None)
@given(
    name=st.text(min_size=1, max_size=8).filter(lambda name: name.lower() not in (*STANDARD_COLUMNS, *MEDIA_COLUMNS))
)
def test_format_mapping_survives_the_command_line(name: str) -> None:
    """Any column name is quoted for the shell and for YAML."""
    values = {name: [*ASKED, *GOOD]}
    assert parse_columns(rejection(values)[1]) == {"messages": name}


def test_unsupported_rows_are_documented() -> None:
    """A line of the table in docs/data.md for each entry of the registry."""
    docs = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in UNSUPPORTED_ROWS:
        assert f"| {kind.rows} | {kind.hint} |" in docs
        assert (kind.check is None) != (kind.check_turns is None)
    assert len({kind.id for kind in UNSUPPORTED_ROWS}) == len(UNSUPPORTED_ROWS)
