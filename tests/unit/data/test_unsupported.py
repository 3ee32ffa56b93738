"""Rows that are not for supervised fine-tuning, and rows whose columns fit no layout: what is typed next works.

Oracles: the first line of what is said; a shell that runs the command that a message says to type, and the examples
that are read by what it wrote or by the flag that it shows.
"""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from neftcli.data.formats import STANDARD, Example, detect, to_example
from neftcli.data.readers import Row
from neftcli.data.sources import read_rows
from neftcli.data.unsupported import MEDIA
from neftcli.errors import DataError
from neftcli.recipe.loading import load_recipe, parse_assignment

WHERE = "rows.jsonl, line 17"
EARLIER = [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q"}]
ASKED = [{"role": "user", "content": "q"}]
QA = {"prompt": "question", "completion": "answer"}
GOOD, BAD = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]


def read(values: dict[str, Any], columns: dict[str, str] | None = None, *, answers: bool = True) -> Example:
    row = Row(values, WHERE)
    row_format = detect(row, columns or {}, answers=answers)
    return to_example(row, row_format, answers=answers, columns=columns)


def refused(values: dict[str, Any], columns: dict[str, str] | None = None, location: str = WHERE) -> tuple[str, str]:
    """What is said first, and what to type."""
    row = Row(values, location)
    with pytest.raises(DataError) as raised:
        to_example(row, detect(row, columns or {}), columns=columns)
    [problem] = raised.value.problems
    return problem.message.removeprefix(f"{location}: "), problem.hint


def typed_columns(hint: str) -> dict[str, str]:
    """The mapping of a `--set data.columns=...` as the command line reads it."""
    flag = next(word for word in shlex.split(hint) if word.startswith("data.columns="))
    return dict(load_recipe("quickstart", [parse_assignment(flag)]).data.columns)


def by_shell(values: dict[str, Any], hint: str, folder: Path, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    """The rows that the command of a message writes."""
    command = hint[hint.index("jq ") :].partition("    ")[0]
    content = json.dumps(values) + "\n" if name.endswith("l") else json.dumps([values])
    (folder / name).write_text(content)
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    return [row.values for row in read_rows(str(folder / f"new-{name}"))]


def last(example: Example) -> tuple[str, ...]:
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
def test_preference_pairs_are_refused(values: dict[str, Any], expected: tuple[str, ...]) -> None:
    """By what they are; the mapping in the message trains on the chosen answer, with the whole question before it."""
    what, hint = refused(values)
    assert what.startswith("this is preference data (")
    assert last(read(values, typed_columns(hint))) == expected


def test_preference_pair_with_chosen_as_completion() -> None:
    """The mapping {completion: chosen} works whether the chosen answer repeats the prompt or not, as text or turns."""
    for prompt in ("q", ASKED):
        for chosen in ("good", GOOD, GOOD[0], [*ASKED, *GOOD]):
            values = {"prompt": prompt, "chosen": chosen, "rejected": "bad"}
            assert last(read(values, {"completion": "chosen"})) == ("q", "good")


def test_preference_pair_in_any_row() -> None:
    """Also where the first row has a plain layout, and where another column is mapped."""
    values = {"conversations": [*EARLIER[:2]], "chosen": "good", "rejected": "bad"}
    with pytest.raises(DataError, match="preference data"):
        to_example(Row(values, WHERE), "sharegpt")
    values = {"dialog": EARLIER, "chosen": "good", "rejected": "bad"}
    what, hint = refused(values, {"conversations": "dialog"})
    assert what.startswith("this is preference data")
    assert last(read(values, typed_columns(hint))) == ("q1", "a1", "q", "good")


def test_preference_columns_without_a_value() -> None:
    """Null and empty are as good as missing."""
    values = {"messages": [*ASKED, *GOOD], "chosen": None, "rejected": [], "label": None, "images": [], "image": ""}
    assert last(read(values)) == ("q", "good")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "q", "completion": "good", "label": True}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "label": 1}, ("q", "good")),
        ({"prompt": ASKED, "completion": GOOD, "label": True}, ("q", "good")),
        ({"messages": [*ASKED, *GOOD], "label": "True"}, ("q", "good")),
        ({"conversations": [EARLIER[2], {"from": "gpt", "value": "good"}], "kto_tag": True}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "desirable": True}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "undesirable": False}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "Liked": 1.0}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "label": "1"}, ("q", "good")),
        ({"prompt": "q", "completion": "good", "label": " Chosen "}, ("q", "good")),
        ({"instruction": "q", "output": "good", "is_chosen": 1}, ("q", "good")),
        ({"instruction": "q", "output": "good", "label": "positive"}, ("q", "good")),
        ({"messages": [*ASKED, *GOOD], "label": "chosen"}, ("q", "good")),
        ({"messages": [*ASKED, *GOOD], "feedback": "thumbs_up"}, ("q", "good")),
        ({"input": {"messages": ASKED}, "preferred_output": GOOD, "non_preferred_output": BAD}, ("q", "good")),
        ({"instruction": "q", "output": ["good", "bad"]}, ("q", "good")),
        ({"prompt": "q", "completion": ["good", "bad"]}, ("q", "good")),
    ],
)
def test_judged_and_ranked_answers_are_refused(
    values: dict[str, Any], expected: tuple[str, ...], tmp_path: Path
) -> None:
    """The command in the message leaves the good answers."""
    what, hint = refused(values)
    assert what.startswith("this is preference data (")
    for name in ("rows.jsonl", "rows.json"):
        _, hint = refused(values, location=f"{name}, line 17")
        assert [last(read(row)) for row in by_shell(values, hint, tmp_path, name)] == [expected]


@pytest.mark.parametrize(
    ("column", "verdict"),
    [
        *(("label", verdict) for verdict in (False, 0, -1, -1.0, "0", "False")),
        *(("label", verdict) for verdict in ("bad", "Rejected", "negative", "dislike", "undesirable", "incorrect")),
        *((column, False) for column in ("desirable", "liked", "preferred", "accepted", "is_chosen", "kto_tag")),
        *((column, True) for column in ("undesirable", "rejected", "disliked")),
    ],
)
def test_answers_judged_bad_are_left_out(column: str, verdict: Any, tmp_path: Path) -> None:
    """By the same command."""
    values = {"prompt": "q", "completion": "bad answer", column: verdict}
    what, hint = refused(values)
    assert what.startswith(f"this is preference data ({column} says whether the answer is good)")
    with pytest.raises(DataError, match="is empty"):
        by_shell(values, hint, tmp_path)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        (
            {"instruction": "q", "completions": [{"response": "bad", "score": 1}, {"response": "good", "score": 2}]},
            "good",
        ),
        ({"prompt": "q", "answers": [{"answer": "bad", "rank": 2}, {"answer": "good", "rank": 1}]}, "good"),
        ({"prompt": "q", "responses": ["good", "bad"], "scores": [2, 1]}, "good"),
        ({"prompt": "q", "completions": ["good", "bad"], "labels": [True, False]}, "good"),
    ],
)
def test_ranked_lists_are_refused(values: dict[str, Any], best: str, tmp_path: Path) -> None:
    """The command keeps the best answer; its column is then named as any other."""
    what, hint = refused(values)
    assert what.startswith("this is preference data (")
    [row] = by_shell(values, hint, tmp_path)
    assert last(read(row, typed_columns(refused(row)[1]))) == ("q", best)


def test_numbered_answers_are_refused() -> None:
    """A column beside them says which is better."""
    for values in (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"question": "q", "answer_a": "a", "answer_b": "b", "preference": "a"},
        {"prompt": "q", "conversation_a": ASKED, "conversation_b": ASKED, "winner": "model_a"},
    ):
        assert refused(values)[0].startswith("this is preference data (")
    assert last(read({"prompt": "q", "completion": "a", "answer_1": "x", "answer_2": "y", "score": 1})) == ("q", "a")


def test_labels_of_other_data_are_columns_like_others() -> None:
    """Classes of texts and of questions are no judgement of an answer."""
    assert read({"text": "a film", "label": 1}).text == "a film"
    assert read({"text": "a film", "label": True}).text == "a film"
    assert last(read({"prompt": "q", "completion": "a", "label": "sports"})) == ("q", "a")
    assert last(read({"instruction": "q", "output": "a", "label": 3})) == ("q", "a")
    assert last(read({"instruction": "q", "output": "a", "label": 1})) == ("q", "a")
    assert last(read({"question": "q", "choices": ["a", "b"], "answer": "a", "correct": 0}, QA)) == ("q", "a")
    assert last(read({"instruction": "q", "output": "Positive", "label": "positive"})) == ("q", "Positive")
    assert last(read({"messages": [*ASKED, *GOOD], "label": "good"})) == ("q", "good")
    assert last(read({"prompt": "q", "completion": "a", "desirable": 0.7, "feedback": "It is short."})) == ("q", "a")
    assert read({"text": "a film", "label": "negative"}).text == "a film"


def test_columns_of_two_sides_that_are_no_answers() -> None:
    """Words for good and bad beside other words, and counts."""
    images = {"positive_prompt": "sharp", "negative_prompt": "blurred"}
    assert last(read({"prompt": "q", "completion": "a", **images})) == ("q", "a")
    assert last(read({"prompt": "q", "completion": "a", "positive": 3, "negative": 1})) == ("q", "a")


# Images and sound


@pytest.mark.parametrize("column", ["image", "images", "Image", "audio", "audios", "video", "videos"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": b"x", "path": None}, [{"path": "a"}]])
def test_images_and_sound_are_refused(column: str, value: Any) -> None:
    """In any layout, by what they are."""
    kind = next((word for word in ("audio", "video") if word in column), "image")
    for values in ({"messages": [*ASKED, *GOOD]}, {"prompt": "q", "completion": "a"}, {"text": "x"}):
        assert (
            refused({**values, column: value})[0] == f"the column {column} holds {kind} data, and neft trains on text"
        )


def test_bytes_under_any_name_are_refused() -> None:
    """As hub sets hold pictures and sound."""
    what, _ = refused({"prompt": "q", "completion": "a", "scan": {"bytes": b"x", "path": "x.png"}})
    assert what == "the column scan holds a file, and neft trains on text"


def test_image_column_is_removed_by_the_command(tmp_path: Path) -> None:
    """Or the rows that have a value in it; a table by Python."""
    values = {"prompt": "q", "completion": "a", "images": ["a.png"]}
    text, rows = refused(values)[1].split("; ")
    [row] = by_shell(values, text, tmp_path)
    assert row == {"prompt": "q", "completion": "a"}
    assert by_shell(values | {"images": []}, rows, tmp_path) == [values | {"images": []}]
    with pytest.raises(DataError, match="is empty"):
        by_shell(values, rows, tmp_path)
    assert refused(values, location="d/rows.parquet, row 1")[1].startswith(
        "python -c 'from datasets import load_dataset; "
        'load_dataset("parquet", data_files="d/rows.parquet", split="train").remove_columns("images")'
        '.to_json("new-rows.jsonl")\''
    )


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
def test_placeholders_are_refused(question: str, tmp_path: Path) -> None:
    """The question is about what the model does not see; the command keeps the rows without them."""
    for values in (
        {"instruction": question, "output": "a"},
        {"conversations": [{"from": "human", "value": question}, EARLIER[1]]},
    ):
        what, hint = refused(values)
        assert what.endswith("and neft trains on text")
        with pytest.raises(DataError, match="is empty"):
            by_shell(values, hint, tmp_path)


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
def test_words_about_images_are_no_placeholders(question: str) -> None:
    """Who asks about the tag is answered."""
    assert last(read({"instruction": question, "output": "a"})) == (question, "a")
    assert last(read({"instruction": "q", "output": question})) == ("q", question)


# Columns that fit no layout


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
def test_obvious_columns_are_suggested(values: dict[str, Any], expected: tuple[str, ...]) -> None:
    """The mapping in the message reads the row."""
    what, hint = refused(values)
    assert what == "the columns fit no known layout"
    assert last(read(values, typed_columns(hint))) == expected


def test_text_column_is_suggested() -> None:
    """A text alone under another name."""
    assert typed_columns(refused({"content": "words", "id": 1})[1]) == {"text": "content"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": [[*ASKED, *GOOD], [*ASKED, *BAD]]}, [("q", "good"), ("q", "bad")]),
        ({"messages": ["q", "good", "r", "s"]}, [("q", "good", "r", "s")]),
        ({"conversations": [{"human": "q", "assistant": "good"}]}, [("q", "good")]),
        ({"prompt": [["q"]], "completion": "a"}, [("q", "a")]),
        ({"instruction": "q", "output": [{"text": "good"}]}, [("q", "good")]),
        ({"instruction": "q", "output": {"parts": [{"content": "good"}]}}, [("q", "good")]),
        (
            {"query": "q", "tools": '[{"name": "f"}]', "answers": '[{"name": "f", "arguments": {"x": 1}}]'},
            [("q", "")],
        ),
    ],
)
def test_nested_lists_are_flattened_by_the_command(values: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    """What can't be mapped is rewritten by the line in the message."""
    assert [last(read(row)) for row in by_shell(values, refused(values)[1], tmp_path)] == expected


PAIR_ROW = {"prompt": "q", "completion": "a"}
NESTED: list[tuple[dict[str, Any], str]] = [
    ({"meta": {"v": 1}, "data": {"train": [PAIR_ROW], "test": [{}]}}, ".data.train, not those in .data.test"),
    ({"version": "1.0", "data": {"test": [{}], "train": [PAIR_ROW]}}, ".data.train, not those in .data.test"),
    ({"authors": ["x", "y"], "data": {"my rows": [PAIR_ROW]}}, '.data."my rows"'),
    ({"a": {"b": {"c": [PAIR_ROW]}}}, ".a.b.c"),
]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "a list in rows.json"])
@pytest.mark.parametrize(("values", "read_from"), NESTED)
def test_nested_rows_are_read_by_the_command(
    values: dict[str, Any], read_from: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an object in objects, whether it is the file, a line of it or an element of its list."""
    monkeypatch.chdir(tmp_path)
    file = name.removeprefix("a list in ")
    Path(file).write_text(json.dumps([values] if name != file else values) + "\n")
    [row] = read_rows(file)
    what, hint = refused(row.values, location=row.location)
    command, _, said = hint.partition("    ")
    assert (what, said) == ("the columns fit no known layout", f"reads the rows in {read_from}")
    subprocess.run(["bash", "-c", command], check=True)
    assert [row.values for row in read_rows("new-rows.jsonl")] == [PAIR_ROW]


def test_nested_answers_are_flattened_and_mapped(tmp_path: Path) -> None:
    """A line to flatten and a mapping to type."""
    values = {"question": "q", "answers": {"text": ["good"], "answer_start": [3]}}
    _, hint = refused(values)
    [row] = by_shell(values, hint, tmp_path)
    assert last(read(row, typed_columns(hint))) == ("q", "good")
    what, hint = refused(values, {"instruction": "question", "output": "answers"})
    assert what == "output (the column answers) must be text, and nested lists and objects can't be mapped"
    [row] = by_shell(values, hint, tmp_path)
    assert last(read(row, {"instruction": "question", "output": "answers"})) == ("q", "good")
    pair = {"prompt": "question", "completion": "answers"}
    assert refused({"question": "q", "answers": [{"text": "good"}]}, pair) == (
        "completion (the column answers) must be text, and nested lists and objects can't be mapped",
        "jq -c '.answers |= .[0].text' < rows.jsonl > new-rows.jsonl    takes their first text",
    )


def test_nested_lists_of_a_table_are_flattened_by_the_command(tmp_path: Path) -> None:
    """From Parquet by way of JSON lines."""
    values = {"instruction": "q", "output": [{"text": "good"}]}
    parquet.write_table(pyarrow.Table.from_pylist([values]), tmp_path / "rows.parquet")
    _, hint = refused(values, location="rows.parquet, row 1")
    command = hint.partition("    ")[0]
    assert command.startswith("python -c 'from datasets import load_dataset; ")
    assert command.endswith("&& jq -c '.output |= .[0].text' < rows.jsonl > new-rows.jsonl")


def test_turns_as_rows_are_told_as_such(tmp_path: Path) -> None:
    """A .json file that is one conversation becomes a list of one."""
    for turn, whole in (
        (EARLIER[0], {"conversations": EARLIER[:2]}),
        (ASKED[0], [*ASKED, *GOOD]),
    ):
        _, hint = refused(turn, location="rows.json, row 1")
        (tmp_path / "rows.json").write_text(json.dumps(whole))
        subprocess.run(["bash", "-c", hint.partition("    ")[0]], cwd=tmp_path, check=True)
        [row] = read_rows(str(tmp_path / "new-rows.json"))
        assert len(last(read(row.values))) == 2
    assert refused(EARLIER[0])[1].startswith('{"messages": [')


@settings(deadline=None)
@given(name=st.text(min_size=1, max_size=8).filter(lambda name: name.lower() not in (*STANDARD, *MEDIA)))
def test_any_column_name_survives_the_command_line(name: str) -> None:
    """Quoted for the shell and for YAML."""
    values = {name: [*ASKED, *GOOD]}
    assert typed_columns(refused(values)[1]) == {"messages": name}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("conversation", [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]),
        (
            "contents",
            [
                {"role": role, "parts": [{"text": text}]}
                for role, text in zip(("user", "model") * 2, "qarb", strict=True)
            ],
        ),
    ],
)
def test_turns_in_an_unusual_form_are_kept_together(tmp_path: Path, column: str, value: Any) -> None:
    """Capybara's pairs and Gemini's parts: the command makes one conversation of a row, not a row of each turn."""
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({column: value}))
    with pytest.raises(DataError) as raised:
        detect(Row({column: value}, f"{source}, line 1"), {})
    command = next(line for line in str(raised.value).splitlines() if "jq -c" in line).split("try", 1)[1]
    subprocess.run(["bash", "-c", command], check=True)
    row = Row(json.loads((tmp_path / "new-rows.jsonl").read_text()), "new-rows.jsonl, line 1")
    said = [(turn.role, turn.content) for turn in to_example(row, detect(row, {})).turns]
    assert said == [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
