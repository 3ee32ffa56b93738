"""Text quoted in Markdown: shown literally.

Oracle: markdown-it-py, an independent reader of CommonMark and its tables, which shows how a text would be rendered.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.runs.markdown import escape_markdown, quote_markdown
from tests.markdown import HOSTILE, READER, element_types


def as_shown(text: str) -> str:
    """Return a text as one line, with characters that can't be printed replaced."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


@given(st.text(alphabet=st.sampled_from("`|\\<>![]()*_&\n \r\x1b\u202e#ab"), min_size=1))
def test_quote_markdown_any_text(text: str) -> None:
    """It is one inline code in a paragraph and in a cell of a table, with the text's characters."""
    if not text.split():
        return
    [paragraph] = [block for block in READER.parse(f"x {quote_markdown(text)} y") if block.type == "inline"]
    assert [part.type for part in paragraph.children or []] == ["text", "code_inline", "text"]
    assert (paragraph.children or [])[1].content == as_shown(text)
    table = f"| a | b |\n|---|---|\n| {quote_markdown(text, in_table=True)} | y |\n"
    cells = [block for block in READER.parse(table) if block.type == "inline"]
    assert [part.type for part in cells[2].children or []] == ["code_inline"]
    assert (cells[2].children or [])[0].content == as_shown(text)
    assert cells[3].content == "y"


@given(st.text(alphabet=st.sampled_from("`|\\<>![]()*_&;/? \n\x1b#1aé€"), min_size=1))
def test_escape_markdown_any_text(text: str) -> None:
    """It is plain text in a paragraph, a heading, a list and a table."""
    if not text.split():
        return
    escaped = escape_markdown(text)
    table = f"| a | b |\n|---|---|\n| {escaped} | y |\n"
    for page, block, shown in (
        (f"x {escaped} y", 0, f"x {as_shown(text)} y"),
        (f"# x {escaped}", 0, f"x {as_shown(text)}"),
        (f"- x {escaped}", 0, f"x {as_shown(text)}"),
        (table, 2, as_shown(text)),
    ):
        inline = [part for part in READER.parse(page) if part.type == "inline"][block]
        assert [part.type for part in inline.children or []] == ["text"], page
        assert (inline.children or [])[0].content == shown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("p < 0.001, R&D & more, learning_rate 1e-05, c# and a > b!", None),
        ("p<b, _x_, &lt;, ![a]", "p\\<b, \\_x\\_, \\&lt;, \\!\\[a\\]"),
        ("# a", "\\# a"),
        ("-0.001", None),
    ],
)
def test_escape_markdown_only_where_needed(text: str, escaped: str | None) -> None:
    assert escape_markdown(text) == (text if escaped is None else escaped)


def test_element_types_of_a_hostile_text() -> None:
    """Outside of quotes the reader finds the image, the tag and the link."""
    assert {"image", "html_inline", "link_open"} <= set(element_types(HOSTILE))
