"""Inspected rows on a pipe, on a terminal, and as a page.

Oracles: lines written out by hand, and Python's own HTML parser for the page.
"""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from neftcli import events
from neftcli.cli.display.html_page import PAGE_MARK, Page
from neftcli.cli.display.json_lines import JsonLines
from neftcli.cli.display.plain import PlainLines
from neftcli.errors import InputError
from tests.unit.cli.terminal import HOSTILE, OWN, control_characters, on_terminal

TOKENS = (
    *(events.Token(4, "<|user|>", False), events.Token(5, "\n", False), events.Token(6, "2+2?", False)),
    *(events.Token(7, "<|end|>", False), events.Token(8, "\n", False)),
    *(events.Token(9, "Four", True), events.Token(5, "\n", True), events.Token(2, "\tyes", True)),
    events.Token(3, "</s>", True),
)
SPANS = (events.Span("<|user|>\n2+2?<|end|>\n", False, 5), events.Span("Four\n\tyes</s>", True, 4))
ROW = events.InspectedRow("rows.jsonl, line 1", TOKENS, SPANS, False, True)
CUT = events.InspectedRow("rows.jsonl, line 2", TOKENS[:6], SPANS[:1], True, False, ("thinking removed",))
BODY = [
    r"     5      | <|user|>\n",
    r"            | 2+2?<|end|>\n",
    r"     4 LOSS | Four\n",
    r"       LOSS | \tyes</s>",
]


def piped(*rows: events.InspectedRow) -> list[str]:
    stream = io.StringIO()
    display = PlainLines(stream)
    for row in rows:
        display.notify(row)
    return stream.getvalue().splitlines()


def test_plain_lines_mark_the_tokens_with_loss() -> None:
    assert piped(ROW, CUT) == [
        r"LOSS marks tokens with loss; numbers count tokens; \n is a line break.",
        "rows.jsonl, line 1: 9 tokens, 4 with loss",
        *BODY,
        "  ends with its stop token, which carries loss",
        "rows.jsonl, line 2: 6 tokens, 1 with loss",
        *BODY[:2],
        "  ! truncated at data.max_length, without a stop token",
        "  ! thinking removed",
    ]


def test_a_terminal_shows_the_same_lines_within_its_width() -> None:
    shown = on_terminal(ROW, width=80)
    found = [line.rstrip() for line in shown.splitlines()]
    assert all(line in found for line in BODY)
    long = events.InspectedRow("row", (), (events.Span("word " * 100, True, 100),), False, True)
    assert max(map(len, OWN.sub("", on_terminal(long, width=80)).splitlines())) <= 80


def test_json_holds_tokens_and_spans() -> None:
    stream = io.StringIO()
    JsonLines(stream).notify(ROW)
    assert '"tokens": [{"id": 4, "text": "<|user|>", "loss": false}' in stream.getvalue()
    assert '"spans": [{"text": "<|user|>\\n2+2?<|end|>\\n", "loss": false, "tokens": 5}' in stream.getvalue()


class Reader(HTMLParser):
    """Collects the elements of a page, and the text of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps an element; an `i` with a title begins a token."""
        self.elements.append((tag, dict(attrs)))
        if tag == "i" and "title" in dict(attrs):
            self.tokens.append(("", "loss" in (dict(attrs).get("class") or "")))

    def handle_data(self, data: str) -> None:
        """Keeps the text of a token."""
        if self.tokens and self.elements[-1][0] == "i":
            text, loss = self.tokens[-1]
            self.tokens[-1] = (text + data, loss)

    def handle_endtag(self, tag: str) -> None:
        """Keeps the end of an element."""
        self.elements.append((f"/{tag}", {}))


class RecordingDisplay:
    """Display that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def notify(self, event: Any) -> None:
        """Keep an event."""
        self.events.append(event)


def page_of(path: Path, *shown: events.Event) -> tuple[str, RecordingDisplay]:
    display = RecordingDisplay()
    with Page(path, display) as page:
        for event in shown:
            page.notify(event)
    return path.read_text(encoding="utf-8"), display


def test_page_marks_the_tokens_with_loss_and_needs_nothing_else(tmp_path: Path) -> None:
    html, display = page_of(tmp_path / "rows.html", events.Notice("mind <b>this</b>"), ROW, CUT)
    reader = Reader()
    reader.feed(html)
    spelled = [(token.text.replace("\n", r"\n").replace("\t", r"\t"), token.loss) for token in (*TOKENS, *TOKENS[:6])]
    assert reader.tokens == spelled
    assert not {"script", "link", "img", "iframe", "a", "b"} & {tag for tag, _ in reader.elements}
    assert "mind &lt;b&gt;this&lt;/b&gt;" in html
    assert "thinking removed" in html
    assert "prefers-color-scheme: dark" in html
    assert "http:" not in html.replace("http-equiv", "")
    assert [event.id for event in display.events] == ["notice", "data.page"]  # rows are on the page


def test_page_of_hostile_text_is_harmless(tmp_path: Path) -> None:
    evil = '</pre><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}" onmouseover="x' + HOSTILE
    row = events.InspectedRow(evil, (events.Token(1, evil, True),), (events.Span(evil, True, 1),), False, True, (evil,))
    html, _ = page_of(tmp_path / "rows.html", events.Notice(evil), row)
    reader = Reader()
    reader.feed(html)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "i", "pre", "ul", "li", "br"}
    assert {tag.lstrip("/") for tag, _ in reader.elements} <= allowed
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert control_characters(html) == set()
    assert "{{ 7 * 7 }}" in html


@pytest.mark.parametrize("name", ["rows.jsonl", "folder", "none/rows.html", "x" * 300])
def test_page_is_written_over_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="--html"):
        Page(tmp_path / name, RecordingDisplay())
    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "rows.jsonl"]


def test_page_replaces_a_page_and_is_not_written_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "rows.html"
    path.write_text(f"{PAGE_MARK}\nan earlier one")
    with pytest.raises(KeyError), Page(path, RecordingDisplay()):
        raise KeyError
    assert path.read_text() == f"{PAGE_MARK}\nan earlier one"
    assert "earlier" not in page_of(path, ROW)[0]
