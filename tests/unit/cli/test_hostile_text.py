"""Text of models, data and file names on its way to a terminal: it can't act there, and isn't read as markup.

Oracles: Unicode's categories of characters, what a terminal is written without the text, and the json module.
"""

from __future__ import annotations

import dataclasses
import io
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from neftcli import events
from neftcli.cli.display import screens, text
from neftcli.cli.display.chat import ChatScreen, PlainAnswers
from neftcli.cli.display.json_lines import JsonLines
from neftcli.cli.display.plain import PlainLines
from neftcli.cli.display.screens import print_problems
from neftcli.errors import Problem
from tests.unit.cli.sample_events import MODELS, REPORT, RUN, SWEEP
from tests.unit.cli.terminal import ACTS, HOSTILE, control_characters, on_terminal

CHAT = events.ChatStarted(
    (
        events.ChatModel(MODELS[0], "own", False, "Be brief.", 2048),
        events.ChatModel(MODELS[2], "own", False, "Be brief.", 2048),
    ),
    8,
    1.2,
    True,
    0.7,
    0.9,
    0,
)
MARKUP = ("[red]x[/red]", "[link=http://127.0.0.1]", "[/nope]", ":smile:")
WORDS = (
    "role",
    "against",
    "verdict",
    "better",
    "status",
    "format",
    "phase",
    "kind",
    "length",
    "schedule",
    "loss_on",
    "metrics",
)

LOGITS = events.LogitComparison(4, 64, 0.001, 30.0, 0.1, 64)
EVENTS: list[events.Event] = [
    *RUN,
    REPORT,
    events.EvaluationDataReady(
        events.RowsSource("rows.jsonl"),
        "text",
        4,
        3,
        0,
        0,
        0,
        {"it is empty": ("rows.jsonl, line 3",)},
        {"column": events.Occurrences(3, "rows.jsonl, line 1")},
        {"emotion": events.Occurrences(3, "rows.jsonl, line 1")},
        {"what follows": events.Occurrences(1, "rows.jsonl, line 2")},
    ),
    events.PhaseProgress(events.PhaseId.GENERATING_ANSWERS, 3, 9, 1.0, 2.0, "answers", 50.0, "tokens", "mine"),
    events.SweepStarted("runs/s", (events.CellState("abc", "neftune.alpha=0", 0, "failed", problem="why"),), True),
    events.CellState("abc", "neftune.alpha=0", 0, "failed", problem="why"),
    SWEEP,
    events.InspectedRow(
        "rows.jsonl, line 1",
        (events.Token(7, "a", False), events.Token(8, "b", True)),
        (events.Span("a", False, 1), events.Span("b", True, 1)),
        False,
        True,
        ("a note",),
    ),
    events.PageWritten("page.html", 3),
    CHAT,
    events.AnswersWritten(CHAT.models[0].model, "answers.jsonl", 3, 1, 1, 40, 2.0),
    events.RecipeResolved("name: x"),
    events.TrackerOpened("mlflow", "runs/x/trackers", "mlflow ui"),
    events.TrackerOpened("wandb", "https://wandb.ai/x", ""),
    events.ModelSelected(5, 1.5, 10, 1.6, 20, "best", 3, "rouge_l", 0.5, 0.25),
    events.ModelSelected(10, 1.5, 10, 1.5, 10, "best", None, "held_out_loss", 1.5, 1.5),
    events.ModelSelected(10, 1.5, 10, 1.5, 20, "last", 3, "held_out_loss", 1.5, 1.5),
    events.ModelSelected(10, 1.5, 10, 1.5, 10, "last", None, "held_out_loss", 1.5, 1.5),
    events.MergeFinished("runs/x", "out", "m", "lora", "float32", 9, True, LOGITS, 2.0),
    events.ExportFinished("runs/x", "gguf", "x.gguf", "f16", 9, LOGITS, "llama-cli -m x.gguf", 2.0),
    events.PushPlanned("runs/x", "me/x", "https://hub/me/x", True, True, (events.PushedFile("a", 3),), "tags:\n- x"),
    events.PushFinished("runs/x", "me/x", "https://hub/me/x", "0123456789", False, 3, 9, 2.0),
    events.TrainingPlan(
        events.ModelSource("hub", "owner/m", "main"),
        events.Method("full"),
        events.Device("cuda", "NVIDIA H200", processes=2),
        "fp32",
        3,
        10,
        10,
        1,
        1,
        1,
        1,
        1,
        5,
        8,
        keeps_freed=True,
    ),
]


def hostile(value: Any, name: str = "") -> Any:
    """The value with hostile text before every text in it that is not one of the project's own words."""
    if isinstance(value, str):
        return value if name in WORDS else HOSTILE + value
    if isinstance(value, tuple):
        return tuple(hostile(item, name) for item in value)
    if isinstance(value, dict):
        return {hostile(key, name): hostile(item, name) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: hostile(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def test_hostile_text_has_each_kind() -> None:
    """Each kind of it would be found in an output that holds it."""
    assert control_characters(HOSTILE) == set("\x1b\x07\x9b\x08\x7f\u202e\u202c\u2066\u2069\u200f")


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_plain_lines_are_sanitized(event: events.Event) -> None:
    stream = io.StringIO()
    PlainLines(stream).notify(hostile(event))
    assert control_characters(stream.getvalue()) == set()


def test_live_is_sanitized_and_reads_no_markup() -> None:
    """Of every event; Rich raises where it takes [/nope] for the end of a style."""
    shown = "".join(on_terminal(hostile(event)) for event in EVENTS)
    assert control_characters(shown) == set()
    assert MARKUP[-1] in shown


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("models", [1, 2])
def test_chat_screen_is_sanitized_and_reads_no_markup(models: int, width: int) -> None:
    """Of every part of an answer, even if a part is a single character of an escape sequence."""
    stream = io.StringIO()
    options: dict[str, Any] = {"width": width, "force_terminal": True, "color_system": None, "highlight": False}
    screen = ChatScreen(Console(file=stream, markup=False, emoji=False, **options))
    for event in _chat_events(models):
        screen.notify(hostile(event) if isinstance(event, events.ChatStarted) else event)
    assert control_characters(stream.getvalue()) == set()
    assert models == 2 or MARKUP[-1] in stream.getvalue()


def test_plain_answers_are_sanitized() -> None:
    stream, notices = io.StringIO(), io.StringIO()
    display = PlainAnswers(stream, notices)
    for event in (*_chat_events(2), hostile(events.Notice("x"))):
        display.notify(hostile(event) if isinstance(event, events.ChatStarted) else event)
    assert control_characters(stream.getvalue() + notices.getvalue()) == set()


def _chat_events(models: int) -> list[events.Event]:
    started = dataclasses.replace(CHAT, models=CHAT.models[:models])
    result: list[events.Event] = [started]
    for index in range(models):
        result.append(events.AnswerStarted(index, HOSTILE, HOSTILE))
        result += [events.AnswerText(index, letter, place % 2 == 0) for place, letter in enumerate(HOSTILE + "\t")]
        stop = events.StopReason.MAX_NEW_TOKENS
        result.append(events.AnswerFinished(index, HOSTILE, HOSTILE, HOSTILE, stop, 8, 8, 0, 1.0))
    return result


@pytest.mark.parametrize("width", [80, 140])
def test_evaluation_report_is_sanitized_and_reads_no_markup(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False)
    console.print(screens.evaluation_report(hostile(REPORT), width))
    assert control_characters(stream.getvalue()) == set()
    assert all(markup in "".join(stream.getvalue().split("\n")) for markup in ("[red]x[/red]", "[/nope]"))


def test_print_problems_sanitizes_and_reads_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_problems([hostile(Problem("x must be y", "z", "type a", "b"))], started=True)
    shown = capsys.readouterr().err
    assert control_characters(shown) == set()
    assert len(shown.splitlines()) == 4
    assert all(shown.count(markup) == 4 for markup in MARKUP)


def test_json_lines_are_escaped_and_equal() -> None:
    stream = io.StringIO()
    event = hostile(events.Notice("x"))
    JsonLines(stream).notify(event)
    assert control_characters(stream.getvalue()) == set()
    assert json.loads(stream.getvalue())["message"] == event.message


@given(st.text())
def test_sanitize_keeps_all_other_characters(given: str) -> None:
    """Letter by letter: the same, or the replacement character; joiners, which writing and emoji need, stay."""
    shown = text.sanitize(given)
    assert len(shown) == len(given)
    for before, after in zip(given, shown, strict=True):
        stays = before in "\n\u200c\u200d" or unicodedata.category(before) not in ACTS
        assert after == (before if stays else "\N{REPLACEMENT CHARACTER}")


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs", "Cc", "Cf"])))
def test_escape_json_is_the_same_json(given: str) -> None:
    """The same as JSON in pure ASCII; half characters (which JSON files can hold and UTF-8 can't) among it."""
    written = text.escape_json(json.dumps({given: [given]}, ensure_ascii=False))
    assert json.loads(written.encode("utf-8")) == json.loads(json.dumps({given: [given]}))
    assert control_characters(written.replace("\u200c", "").replace("\u200d", "")) == set()


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_sanitize_event_reaches_every_text(event: events.Event) -> None:
    """Nothing that acts is left anywhere in it; an event without hostile text stays what it is."""
    cleaned = text.sanitize_event(hostile(event))
    assert type(cleaned) is type(event)
    assert control_characters("".join(map(str, _texts(cleaned)))) == set()
    harmless = text.sanitize_event(event)
    assert text.sanitize_event(harmless) == harmless


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple | list):
        return [part for item in value for part in _texts(item)]
    if isinstance(value, dict):
        return _texts([*value.keys(), *value.values()])
    if dataclasses.is_dataclass(value):
        return [part for field in dataclasses.fields(value) for part in _texts(getattr(value, field.name))]
    return []
