"""Detecting the format of rows, and converting each row to an example.

Oracles: examples written out by hand for a row of each format, and the exact message for each wrong row.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from neftcli.errors import DataError
from neftcli.events import Occurrences
from neftcli.recipe.keys import choices
from neftcli.recipe.schema import Data
from neftcli.rows.example import Example, RowNotes, Turn, UnusableRow
from neftcli.rows.formats import ROW_FORMATS, detect_format, rename_columns, to_example
from neftcli.rows.readers import Row
from neftcli.rows.turns import ROLES

DOCS = Path(__file__).parents[3] / "docs/data.md"
WHERE = "rows.jsonl, line 17"
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
QUESTION_AND_ANSWER = (Turn("user", "q"), Turn("assistant", "a"))

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("text", {"text": "words"}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"prompt": CHAT[:1], "completion": CHAT[1:]}),
    ("alpaca", {"instruction": "q", "output": "a"}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("messages", {"messages": CHAT}),
    ("sharegpt", {"conversations": SHAREGPT}),
]


def row(**values: Any) -> Row:
    return Row(values, WHERE)


def turns(row_format: str, system_prompt: str | None = None, **values: Any) -> tuple[tuple[str, str], ...]:
    """Role and content of each turn of a row's example."""
    return tuple((turn.role, turn.content) for turn in to_example(row(**values), row_format, system_prompt).turns)


def error_message(row_format: str, **values: Any) -> str:
    with pytest.raises(DataError) as raised:
        to_example(row(**values), row_format)
    return str(raised.value)


def reason(row_format: str, **values: Any) -> str:
    with pytest.raises(UnusableRow) as raised:
        to_example(row(**values), row_format)
    return str(raised.value)


# Detecting the format


@pytest.mark.parametrize(("row_format", "values"), ROWS)
def test_detect_format_by_columns(row_format: str, values: dict[str, Any]) -> None:
    """The columns determine the format; further columns don't matter."""
    assert detect_format(row(**values), {}) == row_format
    assert detect_format(row(id=7, **values, source="web"), {}) == row_format


@pytest.mark.parametrize(("row_format", "values"), ROWS[1:])
def test_to_example_same_for_each_format(row_format: str, values: dict[str, Any]) -> None:
    """Each format gives the same example; a pair of lists of turns stores where its completion begins."""
    completion = 1 if isinstance(values.get("completion"), list) else 0
    assert to_example(row(**values), row_format) == Example(QUESTION_AND_ANSWER, "", WHERE, completion=completion)


def test_to_example_plain_text_unchanged() -> None:
    """Plain text keeps its white space and has no turns."""
    assert to_example(row(text="  words\n"), "text") == Example((), "  words\n", WHERE)


def test_detect_format_order() -> None:
    """A row that fits several formats is read as conversation, pair, instruction, text, in this order."""
    values = {name: "" for row_format in ROW_FORMATS.values() for name in row_format.required}
    found = []
    while values:
        row_format = detect_format(row(**values), {})
        found.append(row_format)
        for name in ROW_FORMATS[row_format].required:
            del values[name]
    assert found == ["messages", "sharegpt", "prompt_completion", "alpaca", "text"]


def test_detect_format_alpaca_with_text_column() -> None:
    """tatsu-lab/alpaca also has a text column, which is the rendered prompt."""
    assert detect_format(row(instruction="q", input="", output="a", text="### Instruction: q"), {}) == "alpaca"


@pytest.mark.parametrize(
    ("values", "lacks"),
    [
        ({"a": "q", "b": "a", "c": "b"}, ""),
        ({"prompt": "q"}, ", and completion is missing"),
        ({"instruction": "q"}, ", and output is missing"),
    ],
)
def test_detect_format_unknown_columns(values: dict[str, str], lacks: str) -> None:
    """Half of a format's columns don't determine it; the error shows the missing one and a mapping to type."""
    with pytest.raises(DataError) as raised:
        detect_format(row(**values), {})
    assert str(raised.value) == (
        f"rows.jsonl, line 17: the columns match no known row format{lacks}\n"
        f"  got      {', '.join(values)}\n"
        "  hint     --set data.columns='{prompt: your_prompt_column, completion: your_answer_column}'    "
        "row formats: messages; conversations; prompt, completion; instruction, output; text"
    )


def test_detect_format_no_columns() -> None:
    """The error for an empty object says so."""
    with pytest.raises(DataError, match="  got      no column\n"):
        detect_format(row(), {})


# data.columns


@pytest.mark.parametrize(
    ("columns", "row_format"),
    [
        ({"instruction": "question", "output": "answer"}, "alpaca"),
        ({"prompt": "question", "completion": "answer"}, "prompt_completion"),
        ({"text": "answer"}, "text"),
    ],
)
def test_detect_format_mapped_columns(columns: Mapping[str, str], row_format: str) -> None:
    """Standard names replace the row's own."""
    given = row(question="q", answer="a", id=7)
    assert detect_format(given, columns) == row_format
    values = rename_columns(given, columns).values
    assert {name: values[name] for name in columns} == {name: given.values[own] for name, own in columns.items()}
    assert not set(columns.values()) & set(values)
    assert values["id"] == 7


def test_detect_format_mapped_columns_first() -> None:
    """Mapped columns take precedence, even if the row also has a conversation and a text."""
    given = row(messages=CHAT, text="words", question="q", answer="a")
    assert detect_format(given, {"instruction": "question", "output": "answer"}) == "alpaca"
    assert detect_format(given, {"text": "answer"}) == "text"
    assert detect_format(given, {}) == "messages"


def test_rename_columns_swaps() -> None:
    """Two columns can be swapped: all names are mapped at once."""
    swapped = rename_columns(row(prompt="a", completion="q"), {"prompt": "completion", "completion": "prompt"})
    assert swapped.values == {"prompt": "q", "completion": "a"}
    assert swapped.location == WHERE


def test_detect_format_missing_mapped_column() -> None:
    """A misspelt column is an error, not an empty value."""
    with pytest.raises(DataError) as raised:
        detect_format(row(question="q", answer="a"), {"instruction": "question", "output": "anwser"})
    assert str(raised.value) == (
        "rows.jsonl, line 17: data.columns names a missing column: anwser\n"
        "  got      question, answer\n"
        "  did you mean answer?\n"
        "  hint     --set data.columns='{standard_name: name_in_your_rows}'"
    )


# Turns


@pytest.mark.parametrize(
    ("own", "standard"),
    [
        ("human", "user"),
        ("user", "user"),
        ("User", "user"),
        ("gpt", "assistant"),
        ("GPT", "assistant"),
        ("chatgpt", "assistant"),
        ("bing", "assistant"),
        ("bard", "assistant"),
        ("assistant", "assistant"),
        ("system", "system"),
        ("developer", "system"),
    ],
)
def test_to_example_maps_roles(own: str, standard: str) -> None:
    """The names of ShareGPT and others are mapped to system, user or assistant."""
    conversation = [{"from": own, "value": "x"}, *SHAREGPT]
    if standard == "assistant":
        conversation = [*SHAREGPT, {"from": "human", "value": "y"}, {"from": own, "value": "x"}]
    assert (standard, "x") in turns("sharegpt", conversations=conversation)


def test_roles_are_those_of_templates() -> None:
    """Each role maps to one that chat templates know."""
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}


def test_to_example_sharegpt_with_role_and_content() -> None:
    """Newer ShareGPT files have the keys of messages."""
    assert to_example(row(conversations=CHAT), "sharegpt").turns == QUESTION_AND_ANSWER


def test_to_example_strips_turns() -> None:
    """White space around a turn is stripped in any format; inside it is kept."""
    assert turns("alpaca", instruction=" q\n q ", output="\na ") == (("user", "q\n q"), ("assistant", "a"))
    assert turns("prompt_completion", prompt="q ", completion=" a") == (("user", "q"), ("assistant", "a"))
    spaced = [{"role": turn["role"], "content": f"\n{turn['content']} "} for turn in CHAT]
    assert turns("messages", messages=spaced) == (("user", "q"), ("assistant", "a"))


def test_to_example_drops_unanswered_questions() -> None:
    """A conversation ends with its last answer."""
    more = [{"role": "user", "content": "and?"}, {"role": "system", "content": "s"}, {"role": "user", "content": "?"}]
    assert turns("messages", messages=CHAT + more) == (("user", "q"), ("assistant", "a"))


def test_to_example_drops_answers_before_the_first_question() -> None:
    """A conversation begins with its first question, after its system turn; most templates reject others."""
    greeting = {"from": "gpt", "value": "Hello! How can I help?"}
    assert turns("sharegpt", conversations=[greeting, greeting, *SHAREGPT]) == (("user", "q"), ("assistant", "a"))
    system = {"from": "system", "value": "s"}
    expected = (("system", "s"), ("user", "q"), ("assistant", "a"))
    assert turns("sharegpt", conversations=[system, greeting, *SHAREGPT]) == expected
    assert turns("sharegpt", "s", conversations=[greeting, *SHAREGPT]) == expected


def test_to_example_system_prompt() -> None:
    """The row's own system turn takes precedence over data.system_prompt."""
    assert turns("messages", "s", messages=CHAT)[0] == ("system", "s")
    own = [{"role": "system", "content": "own"}, *CHAT]
    assert turns("messages", "s", messages=own) == (("system", "own"), ("user", "q"), ("assistant", "a"))
    assert to_example(row(text="words"), "text", "s").text == "words"


@pytest.mark.parametrize("context", ["", None, "  ", "2, 3, 5"])
def test_to_example_alpaca_input(context: str | None) -> None:
    """The input column is kept as the turn's context, and is part of the prompt."""
    example = to_example(row(instruction="Add", input=context, output="10"), "alpaca")
    kept = (context or "").strip()
    assert example.turns[0] == Turn("user", "Add", kept)
    assert example.prompt() == ("Add\n2, 3, 5" if kept else "Add")


def test_to_example_alpaca_input_without_instruction() -> None:
    """A row with an input but an empty instruction has a question."""
    assert to_example(row(instruction="", input="2 + 3", output="5"), "alpaca").prompt() == "2 + 3"


def test_example_prompt_and_answer() -> None:
    """The answer is the last one; the prompt is everything before it except system turns."""
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    ]
    example = to_example(row(messages=conversation), "messages")
    assert (example.prompt(), example.answer()) == ("q1\na1\nq2", "a2")
    text = to_example(row(text="words"), "text")
    assert (text.prompt(), text.answer()) == ("words", "")


# Rows that hold nothing to learn


@pytest.mark.parametrize(
    ("row_format", "values", "message"),
    [
        ("text", {"text": " \n"}, "its text is empty"),
        ("text", {"text": None}, "its text is empty"),
        ("alpaca", {"instruction": "q", "output": " "}, "an answer is empty"),
        ("alpaca", {"instruction": "q", "output": None}, "an answer is empty"),
        ("alpaca", {"instruction": "", "input": " ", "output": "a"}, "it has no question"),
        ("prompt_completion", {"prompt": " ", "completion": "a"}, "it has no question"),
        ("prompt_completion", {"prompt": "q", "completion": ""}, "an answer is empty"),
        ("messages", {"messages": []}, "it has no answer"),
        ("messages", {"messages": CHAT[:1]}, "it has no answer"),
        ("messages", {"messages": CHAT[1:]}, "it has no question"),
        ("messages", {"messages": [{"role": "system", "content": "s"}, CHAT[1]]}, "it has no question"),
        ("messages", {"messages": [CHAT[0], {"role": "assistant", "content": "\n"}, *CHAT]}, "an answer is empty"),
        ("sharegpt", {"conversations": SHAREGPT[:1]}, "it has no answer"),
    ],
)
def test_to_example_unusable_row(row_format: str, values: dict[str, Any], message: str) -> None:
    """An empty answer would teach only the stop token; an empty question would teach to answer nothing."""
    assert reason(row_format, **values) == message


# Rows that are wrong


@pytest.mark.parametrize(
    ("row_format", "values", "message"),
    [
        ("text", {"text": 7}, 'rows.jsonl, line 17: text must be text\n  got      int: 7\n  hint     "7"'),
        (
            "alpaca",
            {"instruction": ["q"], "output": "a"},
            "rows.jsonl, line 17: instruction must be text, and nested lists and objects can't be mapped\n"
            "  got      list: ['q']\n"
            "  hint     replace instruction by the text in instruction[0]",
        ),
        (
            "alpaca",
            {"instruction": "q", "input": {"a": 1}, "output": "a"},
            "rows.jsonl, line 17: input must be text\n  got      dict: {'a': 1}\n  hint     a string: \"...\"",
        ),
        (
            "prompt_completion",
            {"prompt": "q", "completion": 0.5},
            'rows.jsonl, line 17: completion must be text\n  got      float: 0.5\n  hint     "0.5"',
        ),
        (
            "messages",
            {"messages": "q"},
            "rows.jsonl, line 17: messages must be a list of turns\n"
            "  got      str: q\n"
            '  hint     [{"role": ..., "content": ...}, ...]',
        ),
        (
            "sharegpt",
            {"conversations": None},
            "rows.jsonl, line 17: conversations must be a list of turns\n"
            "  got      null\n"
            '  hint     [{"from": ..., "value": ...}, ...]',
        ),
        (
            "messages",
            {"messages": [7]},
            "rows.jsonl, line 17: turn 1 must have role and content\n"
            "  got      int: 7\n"
            '  hint     {"role": "user", "content": "..."}',
        ),
        (
            "messages",
            {"messages": [*CHAT, {"role": "user"}]},
            "rows.jsonl, line 17: turn 3 must have role and content\n"
            "  got      dict: {'role': 'user'}\n"
            '  hint     {"role": "user", "content": "..."}',
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "text": "q"}]},
            "rows.jsonl, line 17: turn 1 must have from and value\n"
            "  got      dict: {'from': 'human', 'text': 'q'}\n"
            '  hint     {"from": "user", "value": "..."}',
        ),
        (
            "messages",
            {"messages": [CHAT[0], {"role": "asistant", "content": "a"}]},
            "rows.jsonl, line 17: turn 2 has an unknown role\n"
            "  got      str: asistant\n"
            "  did you mean assistant?\n"
            f"  hint     one of {', '.join(ROLES)}",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "rows.jsonl, line 17: turn 1: content, part 1 is an image, and neft trains on text\n"
            "  got      dict: {'type': 'image'}\n"
            '  hint     keep text parts only, {"type": "text", "text": "..."}, or remove the row',
        ),
        (
            "text",
            {"text": "cut \ud83e"},
            "rows.jsonl, line 17: text contains an unpaired surrogate, such as half of an emoji\n"
            "  got      'cut \\ud83e'\n"
            "  hint     remove it, or write the whole character",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "\udd9c?"}]},
            "rows.jsonl, line 17: turn 1: value contains an unpaired surrogate, such as half of an emoji\n"
            "  got      '\\udd9c?'\n"
            "  hint     remove it, or write the whole character",
        ),
    ],
)
def test_to_example_rejects_a_value_of_the_wrong_type(row_format: str, values: dict[str, Any], message: str) -> None:
    """Row, turn, key and what was found; nothing is turned into text by itself."""
    assert error_message(row_format, **values) == message


@pytest.mark.parametrize(("row_format", "values"), ROWS)
def test_to_example_missing_column(row_format: str, values: dict[str, Any]) -> None:
    """The first row determines the format; a row that lacks one of its columns is an error."""
    missing = ROW_FORMATS[row_format].required[-1]
    others = {name: value for name, value in values.items() if name != missing} | {"id": 7}
    assert error_message(row_format, **others) == (
        f"rows.jsonl, line 17: the column {missing} is missing\n"
        f"  got      {', '.join(others)}\n"
        f"  hint     all rows need the columns of the row format {row_format}: "
        + ", ".join(ROW_FORMATS[row_format].required)
    )


def test_to_example_error_shortens_a_long_value() -> None:
    """The message quotes only the beginning of the value."""
    assert error_message("text", text=["x" * 1000]).splitlines()[1] == "  got      list: ['" + "x" * 58


# The registry


def test_row_formats_are_documented_values_of_the_option() -> None:
    """data.format takes auto and the registry's entries; docs/data.md has a row for each."""
    hints = get_type_hints(Data, include_extras=True)
    assert choices(hints["format"]) == ["auto", *ROW_FORMATS]
    docs = DOCS.read_text(encoding="utf-8").splitlines()
    for row_format_id, row_format in ROW_FORMATS.items():
        assert row_format.id == row_format_id
        optional = ", ".join(f"`{column}`" for column in row_format.optional)
        assert " ".join(f"| `{row_format.id}` | {row_format.columns} | {optional} |".split()) in docs


# Columns next to a conversation

WITH_TURNS: list[tuple[str, dict[str, Any]]] = [values for values in ROWS if values[0] != "text"]


@pytest.mark.parametrize(("row_format", "values"), WITH_TURNS)
def test_to_example_system_column(row_format: str, values: dict[str, Any]) -> None:
    """In every format; it takes precedence over data.system_prompt, and an empty value is ignored."""
    assert turns(row_format, "t", **values, system=" s ") == (("system", "s"), ("user", "q"), ("assistant", "a"))
    for empty in (None, "", " "):
        assert turns(row_format, **values, system=empty) == (("user", "q"), ("assistant", "a"))


def test_to_example_system_column_and_system_turn() -> None:
    """Two equal ones count once; two different ones are rejected, since one of them would be lost."""
    chat = [{"role": "system", "content": "s"}, *CHAT]
    assert turns("messages", messages=chat, system="s\n") == (("system", "s"), ("user", "q"), ("assistant", "a"))
    assert error_message("messages", messages=chat, system="t") == (
        "rows.jsonl, line 17: the column system differs from the first turn\n"
        "  got      t\n"
        "  hint     keep one of the two system turns"
    )


@pytest.mark.parametrize(("row_format", "values"), WITH_TURNS)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_to_example_tools_column(row_format: str, values: dict[str, Any], column: str) -> None:
    """A list of schemas or its JSON text becomes OpenAI's form; an empty value is ignored."""
    schema = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
    wrapped = [{"type": "function", "function": schema}]
    for tools in ([schema], wrapped, json.dumps([schema]), [json.dumps(schema)], [{"type": "function", **schema}]):
        example = to_example(row(**values, **{column: tools}), row_format)
        assert json.loads(example.tools) == wrapped
        assert [turn.text() for turn in example.turns] == ["q", "a"]
    for empty in (None, "", [], "[]"):
        assert to_example(row(**values, **{column: empty}), row_format).tools == ""


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("no json", "tools must be JSON: Expecting value"),
        ('{"name": "clock"}', "tools must be a list of tool schemas"),
        ([{"description": "x"}], "tools, tool 1 must have a name"),
        ([{"name": "clock"}, 7], "tools, tool 2 must be an object"),
        ([{"name": "\ud800"}], "tools contains an unpaired surrogate, such as half of an emoji"),
    ],
)
def test_to_example_rejects_malformed_tools(tools: Any, message: str) -> None:
    """A row is never learned without its tools."""
    assert error_message("messages", messages=CHAT, tools=tools).splitlines()[0] == f"rows.jsonl, line 17: {message}"


def test_to_example_alpaca_history() -> None:
    """The history's questions and answers come before the row's own, in order; null and empty values are ignored."""
    expected = (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q"))
    history = [["q1", "a1"], [" q2", "a2 "]]
    for given in (history, json.dumps(history)):
        assert turns("alpaca", instruction="q", output="a", history=given)[:-1] == expected
    for empty in (None, [], ""):
        assert turns("alpaca", instruction="q", output="a", history=empty) == (("user", "q"), ("assistant", "a"))
    for wrong in ([["q1"]], ["q1", "a1"], {"q": "a"}, [["q1", None]], "q1"):
        assert "history" in error_message("alpaca", instruction="q", output="a", history=wrong)


# Pairs


@pytest.mark.parametrize(
    ("prompt", "completion", "roles", "first"),
    [
        (CHAT[:1], "a", "ua", 1),
        ("q", CHAT[1:], "ua", 1),
        ("q", CHAT[1], "ua", 1),
        (SHAREGPT[:1], SHAREGPT[1], "ua", 1),
        ("q", CHAT, "ua", 1),
        (CHAT[:1], CHAT, "ua", 1),
        ("q", [{"role": "system", "content": "s"}, *CHAT], "sua", 2),
        ([{"role": "system", "content": "s"}, CHAT[0]], CHAT, "sua", 2),
        ([{"role": "system", "content": "s"}], CHAT, "sua", 1),
        ([*CHAT, {"role": "user", "content": "q2"}], CHAT[1:], "uaua", 3),
        ([CHAT[1], CHAT[0]], CHAT[1:], "ua", 1),
        (json.dumps(CHAT[:1]), json.dumps(CHAT[1:]), "ua", 1),
    ],
)
def test_to_example_pair_of_turns(prompt: Any, completion: Any, roles: str, first: int) -> None:
    """Either side may be turns, the completion with or without the prompt; its beginning is stored."""
    example = to_example(row(prompt=prompt, completion=completion), "prompt_completion")
    assert ("".join(turn.role[0] for turn in example.turns), example.completion) == (roles, first)
    assert example.answer() == "a"
    with_system = to_example(row(prompt=prompt, completion=completion), "prompt_completion", "t")
    assert with_system.completion == first + (roles[0] != "s")


def test_to_example_completion_without_an_answer() -> None:
    """Earlier answers in the prompt don't count as answers of the completion."""
    prompt = [*CHAT, CHAT[0]]
    for completion in ([], [CHAT[0]] * 0, None):
        assert (
            reason("prompt_completion", prompt=prompt, completion=completion)
            == "its completion has no answer to train on"
        )
    asked = to_example(row(prompt=prompt), "prompt_completion", answers=False)
    assert (len(asked.turns), asked.answer(), asked.completion) == (3, "", 0)


@pytest.mark.parametrize("repeats_prompt", [False, True])
def test_to_example_marked_answer_of_the_prompt(repeats_prompt: bool) -> None:
    """A mark overrides `data.loss_on`, also if no answer of the completion is trained on."""
    prompt = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "first"}, *chat(1), *chat(None)[:1]]
    completion = [{"role": "assistant", "content": "last", "weight": 0}]
    if repeats_prompt:
        completion = [{**turn, "weight": None} for turn in prompt] + completion
    notes = RowNotes()
    example = to_example(row(prompt=prompt, completion=completion), "prompt_completion", notes=notes)
    assert [(turn.content, turn.learn) for turn in example.turns if turn.role == "assistant"] == [
        ("first", None),
        ("a0", True),
    ]
    assert example.completion == len(example.turns)
    assert dict(notes.shortened) == {"turns after the last answer that is trained on": Occurrences(1, WHERE)}


def test_to_example_pair_without_a_learned_answer() -> None:
    """The row is left out, and not listed as shortened."""
    notes = RowNotes()
    completion = [{"role": "assistant", "content": "last", "weight": 0}]
    values = row(prompt=[*CHAT, CHAT[0]], completion=completion)
    with pytest.raises(UnusableRow, match="its completion has no answer to train on"):
        to_example(values, "prompt_completion", notes=notes)
    assert not notes.shortened


def test_to_example_completion_with_a_different_question() -> None:
    """A completion must be the answer or the whole conversation."""
    other = [{"role": "user", "content": "something else"}, CHAT[1]]
    assert error_message("prompt_completion", prompt="q", completion=other) == (
        "rows.jsonl, line 17: completion must begin with the answer, or with the whole prompt\n"
        "  got      user: something else\n"
        '  hint     {"prompt": [... the question], "completion": [... the answer]}'
    )


def test_to_example_json_prompt_stays_text() -> None:
    """A JSON list of other objects is the text of the question."""
    assert turns("prompt_completion", prompt='[{"a": 1}]', completion="a")[0] == ("user", '[{"a": 1}]')


# Marks


@pytest.mark.parametrize(("row_format", "values"), ROWS)
@pytest.mark.parametrize("column", ["weight", "train", "trainable", "loss"])
def test_to_example_marks_of_a_row(row_format: str, values: dict[str, Any], column: str) -> None:
    """A row marked 0 is skipped, and one marked 1 is learned as if unmarked; in a CSV the marks are text."""
    unmarked = to_example(row(**values), row_format)
    for mark in (1, 1.0, True, "1", "true", "True", None, ""):
        assert to_example(row(**values, **{column: mark}), row_format) == unmarked
    for mark in (0, 0.0, False, "0", "false", "False"):
        assert reason(row_format, **values, **{column: mark}) == f"it is marked not to be trained on ({column}: {mark})"
    for mark in (0.5, 2, "yes", -1, [1]):
        what = f"{column} must be 0 or 1 (whether the row is trained on; no fractions)"
        assert error_message(row_format, **values, **{column: mark}).splitlines()[0] == f"rows.jsonl, line 17: {what}"
    assert "contradict each other" in error_message(
        row_format, **values, **{column: 0, "loss" if column != "loss" else "train": 1}
    )


def chat(*marks: bool | None, tail: str = "") -> list[dict[str, Any]]:
    """Return a conversation with one answer for each mark, and further turns by the first letters of their roles."""
    roles = {"u": "user", "s": "system", "t": "tool"}
    turns: list[dict[str, Any]] = []
    for number, mark in enumerate(marks):
        turns.append({"role": "user", "content": f"q{number}"})
        turns.append({"role": "assistant", "content": f"a{number}", "weight": mark})
    return [*turns, *({"role": roles[letter], "content": "x"} for letter in tail)]


@pytest.mark.parametrize(
    ("conversation", "kept", "dropped"),
    [
        (chat(None), 2, ""),
        (chat(None, tail="u"), 2, ""),
        (chat(None, tail="su"), 2, "turns after the last answer"),
        (chat(None, tail="t"), 2, "turns after the last answer"),
        (chat(False, None), 4, ""),
        (chat(True, False), 2, "turns after the last answer that is trained on"),
        (chat(True, False, tail="u"), 2, "turns after the last answer that is trained on"),
        ([chat(None)[1], *chat(None)], 2, "turns before the first question"),
        ([{"role": "tool", "content": "x"}, *chat(None)], 2, "turns before the first question"),
    ],
)
def test_to_example_notes_dropped_turns(conversation: list[dict[str, Any]], kept: int, dropped: str) -> None:
    """Every dropped turn is noted except an unanswered question; the last answer left is one to learn."""
    notes = RowNotes()
    example = to_example(row(messages=conversation), "messages", notes=notes)
    assert len(example.turns) == kept
    assert dict(notes.shortened) == ({dropped: Occurrences(1, WHERE)} if dropped else {})


def test_to_example_marked_answer_before_the_first_question() -> None:
    """The row is rejected, since the answer would be lost; evaluation needs the last answer only."""
    for mark in (1, True):
        messages = [{"role": "assistant", "content": "Welcome.", "weight": mark}, *chat(None)]
        for system in ([], [{"role": "system", "content": "s"}]):
            with pytest.raises(DataError, match="an answer before the first question is marked to be trained on"):
                to_example(row(messages=[*system, *messages]), "messages")
            assert len(to_example(row(messages=messages), "messages", answers=False).turns) == 2
    unmarked = [{"role": "assistant", "content": "Welcome.", "weight": 0}, *chat(True)]
    assert [turn.content for turn in to_example(row(messages=unmarked), "messages").turns] == ["q0", "a0"]


@pytest.mark.parametrize(
    ("ids", "noted"), [(("c1", "c1"), False), (("c1", "c2"), True), (("c1", None), False), ((None, "c1"), True)]
)
def test_to_example_notes_unmatched_tool_result(ids: tuple[str | None, str | None], noted: bool) -> None:
    """Ids are compared with those of earlier calls, even in the prompt of a pair; without an id nothing is noted."""
    call = {"type": "function", "function": {"name": "add", "arguments": {}}, "id": ids[0]}
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answered = [{"role": "tool", "content": "2", "tool_call_id": ids[1]}, {"role": "assistant", "content": "Two."}]
    for row_format, values in (
        ("messages", {"messages": [*asked, *answered]}),
        ("prompt_completion", {"prompt": [*asked, answered[0]], "completion": answered[1:]}),
    ):
        notes = RowNotes()
        to_example(row(**values), row_format, notes=notes)
        expected = {"a tool_call_id matches no tool call of its conversation": Occurrences(1, WHERE)} if noted else {}
        assert dict(notes.remarks) == expected


def test_to_example_no_answer_to_learn() -> None:
    """The row is skipped with a reason; in evaluation, the bad answer is no reference."""
    assert reason("messages", messages=chat(False, False)) == "every answer in it is marked not to be trained on"
    question = to_example(row(messages=chat(None, False)), "messages", answers=False)
    assert ([turn.content for turn in question.turns], question.answer()) == (["q0", "a0", "q1"], "")


# Unread columns


def test_to_example_counts_unread_columns() -> None:
    """The number of rows with a value and the first of them; null and empty values don't count."""
    notes = RowNotes()
    rows = [
        {"instruction": "q", "output": "a", "score": None, "id": "", "tags": [], "meta": {}},
        {"instruction": "q", "output": "a", "score": 0, "": 1},
        {"instruction": "q", "output": " ", "score": 5},
    ]
    for line, values in enumerate(rows, 1):
        with suppress(UnusableRow):
            to_example(Row(values, f"line {line}"), "alpaca", notes=notes)
    assert dict(notes.unread_columns) == {"score": Occurrences(2, "line 2"), '""': Occurrences(1, "line 2")}


def test_to_example_error_names_the_mapped_column() -> None:
    """The message names the row's own column."""
    given = row(question="q", reply=["a"], rank=1)
    with pytest.raises(DataError) as raised:
        to_example(given, "alpaca", columns={"instruction": "question", "output": "reply"})
    assert str(raised.value).splitlines()[0] == (
        "rows.jsonl, line 17: output (the column reply) must be text, and nested lists and objects can't be mapped"
    )


# Tool turns in prompts and answers

CALL = {"name": "clock", "arguments": {"place": "Lima"}}
CALLED = json.dumps([{"type": "function", "function": CALL}])


def test_example_prompt_and_answer_with_tools() -> None:
    """Calls and results are part of prompt and answer; an answer that is only a call is not empty."""
    conversation = [
        CHAT[0],
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
        {"role": "tool", "content": "10:20"},
        CHAT[1],
    ]
    whole = to_example(row(messages=conversation), "messages")
    assert whole.prompt() == f"q\n{CALLED}\n10:20"
    assert set(whole.prompts()) == {"q", f"q\n{CALLED}\n10:20"}
    assert whole.transcript() == f"User: q\n\nAssistant: {CALLED}\n\nTool: 10:20"
    call = to_example(row(messages=conversation[:2]), "messages")
    assert (call.prompt(), call.answer()) == ("q", CALLED)


def test_row_formats_are_documented() -> None:
    """A line of the table in docs/data.md for each entry of the registry."""
    docs = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for entry in ROW_FORMATS.values():
        optional = ", ".join(f"`{column}`" for column in entry.optional)
        assert f"| `{entry.id}` | {entry.columns} |{f' {optional}' if optional else ''} |" in docs
