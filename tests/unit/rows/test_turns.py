"""Turns in every spelling that data has.

Oracles: the turn written out by hand beside each item, and the first line of each error message.
"""

import json
from typing import Any

import pytest

from neftcli.errors import DataError
from neftcli.events import Occurrences
from neftcli.rows.example import RowNotes, Turn, UnusableRow
from neftcli.rows.turns import LOSS_MARKS, REASONING, ROLES, read_turns

WHERE = "rows.jsonl, line 17"
KEYS = ("role", "content")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Bergen"}}}


def turn(notes: RowNotes | None = None, **item: Any) -> Turn:
    return read_turns([item], WHERE, "", KEYS, notes or RowNotes())[0]


def error_message(**item: Any) -> str:
    with pytest.raises(DataError) as raised:
        turn(**item)
    return str(raised.value).splitlines()[0].removeprefix(f"{WHERE}: turn 1")


def calls(**item: Any) -> Any:
    return json.loads(turn(**item).tool_calls)


# Marks


@pytest.mark.parametrize("mark", LOSS_MARKS)
def test_read_mark_of_an_assistant_turn(mark: str) -> None:
    """0 and 1 in each spelling that files use; null counts as missing."""
    for value, learn in (
        (0, False),
        (False, False),
        (0.0, False),
        ("0", False),
        (1, True),
        (True, True),
        ("true", True),
    ):
        assert turn(role="assistant", content="a", **{mark: value}).learn is learn
    assert turn(role="assistant", content="a", **{mark: None}).learn is None
    for value in (0.5, 2, -1, "half", "no", "", [], [1], {}, {"a": 1}):
        assert error_message(role="assistant", content="a", **{mark: value}) == (
            f": {mark} must be 0 or 1 (whether the turn is trained on; no fractions)"
        )


def test_read_mark_contradiction() -> None:
    """Two marks that agree are accepted."""
    assert turn(role="assistant", content="a", weight=0, train=False, loss=None).learn is False
    assert error_message(role="assistant", content="a", weight=0, train=True) == ": these marks contradict each other"


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_read_mark_of_other_turns(role: str) -> None:
    """Only an answer can be marked as learned; any turn can be marked as not learned."""
    assert turn(role=role, content="q", weight=0).learn is False
    assert (
        error_message(role=role, content="q", train=True)
        == " is marked to be trained on, but only assistant turns can be"
    )


# Content


def test_read_turns_joins_parts() -> None:
    """Parts of text are joined as chat templates join them; a thinking part becomes the reasoning."""
    parts = [
        {"type": "text", "text": " a"},
        "b",
        {"type": "input_text", "text": "c", "image_url": None},
        {"text": "d "},
    ]
    assert turn(role="user", content=parts).content == "abcd"
    assert turn(role="tool", content=[{"type": "text", "text": "9"}]).content == "9"
    thinking = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    assert turn(role="assistant", content=thinking) == Turn("assistant", "a", reasoning="hm")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image"}, "is an image, and neft trains on text"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "is an image, and neft trains on text"),
        ({"type": "input_image", "image_url": "x"}, "is an image, and neft trains on text"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "is audio, and neft trains on text"),
        ({"type": "video", "video": "x.mp4"}, "is a video, and neft trains on text"),
        ({"type": "file", "file": {"file_id": "x"}}, "is a file, and neft trains on text"),
        ({"image": "a.png", "text": None}, "is an image, and neft trains on text"),
        ({"type": "tool_use", "name": "x"}, "is not text (tool calls are read from the turn's key tool_calls)"),
        ({"type": "refusal", "refusal": "no"}, "is a refusal, which is not read"),
        ({"type": "text"}, "is not text"),
        ({}, "is not text"),
        (7, "is not text"),
    ],
)
def test_read_turns_rejects_parts_other_than_text(part: Any, expected: str) -> None:
    """The message names the kind of the part, with the turn and the part's number."""
    assert error_message(role="user", content=[{"type": "text", "text": "q"}, part]) == f": content, part 2 {expected}"


def test_read_turns_null_content() -> None:
    """Content may only be missing if the turn has a tool call."""
    for role in ("user", "assistant", "tool"):
        assert error_message(role=role, content=None) == ": content must be text"
    assert error_message(role="assistant", content=None, tool_calls=[]) == ": content must be text"
    assert error_message(role="assistant", tool_calls=None) == " must have role and content"
    assert turn(role="assistant", content=None, tool_calls=[CALL]).content == ""
    assert turn(role="assistant", tool_calls=[CALL]).content == ""


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def rejection(messages: list[dict[str, Any]]) -> tuple[str, str]:
    with pytest.raises(DataError) as raised:
        read_turns(messages, WHERE, "", KEYS, RowNotes())
    [problem] = raised.value.problems
    return problem.message.removeprefix(f"{WHERE}: "), problem.hint


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"role": "assistant", "content": None, "refusal": "No."},
            "turn 2 has its answer in the key refusal, not in content",
        ),
        (
            {"role": "assistant", "refusal": "No."},
            "turn 2 has its answer in the key refusal, not in content",
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            "turn 2: content, part 1 is a refusal, which is not read",
        ),
    ],
)
def test_read_turns_refusal_of_openai(answer: dict[str, Any], message: str) -> None:
    """A refusal without content is rejected; null, as OpenAI writes it with a content, counts as missing."""
    hint = "move the refusal into the content to train on it, or remove the row"
    assert rejection([QUESTION, answer]) == (message, hint)
    notes = RowNotes()
    assert turn(notes, **ANSWER, refusal=None).content == "a"
    assert not notes.unread_turn_keys


@pytest.mark.parametrize(("result", "kind"), [({"x": 2}, "an object"), ([{"x": 2}], "an array"), ([1, 2], "an array")])
def test_read_turns_tool_result_as_object(result: Any, kind: str) -> None:
    """An object is rejected with the hint to write it as JSON text, which is read."""
    message, hint = rejection([QUESTION, {"role": "tool", "content": result}, ANSWER])
    assert message == f"turn 2: content must be text, and this tool result is {kind}"
    assert hint == f"write the {kind.partition(' ')[2]} as JSON text"
    assert json.loads(turn(role="tool", content=json.dumps(result)).content) == result


def test_read_turns_tool_result_in_parts() -> None:
    """A list of text parts is joined, not taken for a result in JSON; the key `type` is optional."""
    assert turn(role="tool", content=[{"type": "text", "text": "1"}, {"text": "2"}, "3"]).content == "123"


def test_read_turns_either_spelling_of_role_and_content() -> None:
    """The key with a value counts; a table of mixed rows has all four keys."""
    assert turn(**{"from": "gpt", "value": "a", "role": None, "content": None}) == Turn("assistant", "a")
    assert turn(role="user", value="q") == Turn("user", "q")


# Reasoning


@pytest.mark.parametrize("key", REASONING)
def test_read_turns_reasoning(key: str) -> None:
    """White space around it is stripped; of other turns it is noted as not read."""
    assert turn(role="assistant", content="a", **{key: "\nhm "}) == Turn("assistant", "a", reasoning="hm")
    assert turn(role="assistant", content="a", **{key: None}) == Turn("assistant", "a")
    assert error_message(role="assistant", content="a", **{key: ["hm"]}) == f": {key} must be text"
    notes = RowNotes()
    assert turn(notes, role="user", content="q", **{key: "hm"}) == Turn("user", "q")
    assert list(notes.unread_turn_keys) == [key]


def test_read_turns_reasoning_in_two_keys() -> None:
    """Two equal texts count once; two that differ are rejected. Thinking inside the content stays there."""
    assert turn(role="assistant", content="a", reasoning="hm", reasoning_content="hm").reasoning == "hm"
    assert error_message(role="assistant", content="a", reasoning="hm", thinking="oh") == (
        ": reasoning and thinking have different reasoning"
    )
    assert turn(role="assistant", content="<think>hm</think>a") == Turn("assistant", "<think>hm</think>a")


# Tool calls


@pytest.mark.parametrize(
    "given",
    [
        [CALL],
        [{"function": CALL["function"]}],
        [{"name": "weather", "arguments": {"place": "Bergen"}}],
        [{"name": "weather", "parameters": {"place": "Bergen"}}],
        [
            {
                "type": "function",
                "function": {"name": "weather", "arguments": '{"place": "Bergen"}'},
                "index": 0,
                "x": None,
            }
        ],
        json.dumps([CALL]),
        [json.dumps(CALL)],
        CALL,
    ],
)
def test_read_tool_calls_normalises(given: Any) -> None:
    """Arguments become an object, even if the file has them as JSON text."""
    assert calls(role="assistant", content="", tool_calls=given) == [CALL]


def test_read_tool_calls_older_files() -> None:
    """The key function_call of OpenAI's older files, and the turns of ShareGPT."""
    function = {"name": "weather", "arguments": '{"place": "Bergen"}'}
    assert calls(role="assistant", content=None, function_call=function) == [CALL]
    for role in ("function_call", "tool_call"):
        assert calls(**{"from": role, "value": json.dumps(CALL["function"])}) == [CALL]
        assert calls(**{"from": role, "value": json.dumps([function, function])}) == [CALL, CALL]
    assert error_message(role="assistant", content="", function_call=function, tool_calls=[CALL]) == (
        " has both tool_calls and function_call"
    )


def test_read_tool_calls_keeps_ids_and_letters() -> None:
    """Ids link calls and results; letters are not escaped, since templates write them as they are."""
    given = [CALL | {"id": "c1"}, {"id": "c2", "function": {"name": "é", "arguments": {"a": None}}}]
    read = turn(role="assistant", content="I look.", tool_calls=given)
    assert json.loads(read.tool_calls) == [given[0], {"type": "function", **given[1]}]
    assert "é" in read.tool_calls
    assert (read.content, read.text()) == ("I look.", f"I look.\n{read.tool_calls}")
    assert calls(role="assistant", tool_calls=[{"function": {"name": "now", "arguments": ""}}])[0]["function"] == {
        "name": "now",
        "arguments": {},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([{"function": {"name": "f", "arguments": "{place"}}], "call 1: arguments must be JSON: "),
        (
            [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}],
            "call 1: arguments: the key a occurs twice in an object",
        ),
        ([{"function": {"name": "f", "arguments": "[1]"}}], "call 1: arguments must be an object, or its JSON text"),
        ([CALL, {"function": {"arguments": {}}}], "call 2 must have a name"),
        ([CALL | {"type": "custom"}], "call 1 has an unknown type"),
        ([CALL | {"weight": 0}], "call 1 has a key that is not read: weight"),
        ([{"function": {"name": "f", "strict": True}}], "call 1: function has a key that is not read: strict"),
        ([CALL | {"id": 7}], "call 1: id must be text"),
        ([CALL | {"index": 5}], "call 1 is out of order"),
        ([7], "call 1 must be an object"),
        (7, "call 1 must be an object"),
        ("no json", " must be JSON: Expecting value"),
        ([{"name": "f", "arguments": {"a": "\ud800"}}], " contains an unpaired surrogate, such as half of an emoji"),
    ],
)
def test_read_tool_calls_rejects_malformed_calls(given: Any, expected: str) -> None:
    """The message names the call and its key; a dropped call would teach the model to stay silent."""
    message = error_message(role="assistant", content="x", tool_calls=given)
    assert message.startswith(f": tool_calls{expected if expected.startswith(' ') else f', {expected}'}")


def test_read_tool_calls_rejects_other_roles() -> None:
    """Only an assistant turn may have tool calls."""
    assert (
        error_message(role="user", content="q", tool_calls=[CALL])
        == " has tool_calls, but only an assistant turn can call a tool"
    )


@pytest.mark.parametrize("role", [role for role, standard in ROLES.items() if standard == "tool"])
def test_read_turns_tool_turn(role: str) -> None:
    """A tool's result is read with its name and the id of the call."""
    expected = Turn("tool", "9", name="weather", tool_call_id="c1")
    assert turn(role=role, content="9", name="weather", tool_call_id="c1") == expected
    assert turn(**{"from": role, "value": "9"}) == Turn("tool", "9")
    assert turn(role=role, content="") == Turn("tool", "")


# Keys that are not read


def test_read_turns_notes_unread_keys() -> None:
    """Each key counts once a row; null and empty values don't count."""
    notes = RowNotes()
    items = [
        {"role": "user", "content": "q", "emotion": "sad", "tool_call_id": "c"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "a", "annotations": [1]}],
            "emotion": "glad",
            "x": None,
        },
    ]
    for location in ("line 1", "line 2"):
        read_turns(items, location, "", KEYS, notes)
    read_turns([{"role": "user", "content": "q", "emotion": ""}], "line 3", "", KEYS, notes)
    found = Occurrences(2, "line 1")
    keys = ("emotion", "tool_call_id", "content.annotations")
    assert dict(notes.unread_turn_keys) == dict.fromkeys(keys, found)


@pytest.mark.parametrize("key", ["mask", "train_on", "Loss_Mask"])
def test_read_turns_notes_unread_marks(key: str) -> None:
    """The remark names the keys that are read."""
    notes = RowNotes()
    assert turn(notes, role="assistant", content="a", **{key: False}).learn is None
    remark = f"neft does not read the turn key {key}; weight or train (0 or 1) marks turns to train on"
    assert dict(notes.remarks) == {remark: Occurrences(1, WHERE)}
    assert not notes.unread_turn_keys


def test_read_turns_keeps_names() -> None:
    """Any turn may have a name, which must be text."""
    assert turn(role="user", content="q", name="ann").name == "ann"
    assert error_message(role="user", content="q", name=7) == ": name must be text"


def test_read_turns_text_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is skipped."""
    monkeypatch.setattr("neftcli.rows.turns.MAX_TEXT_LENGTH", 5)
    for item in ({"content": "x" * 6}, {"content": "x", "reasoning": "y" * 6}, {"content": [{"text": "z" * 6}]}):
        with pytest.raises(UnusableRow, match="longer than 5 characters"):
            turn(role="assistant", **item)
