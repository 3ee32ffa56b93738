"""Text quoted in Markdown: shown literally.

Oracle: markdown-it-py, an independent reader of CommonMark and its tables, which shows how a text would be rendered.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neftcli.runs.markdown import quote_markdown
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


def test_element_types_of_a_hostile_text() -> None:
    """Outside of quotes the reader finds the image, the tag and the link."""
    assert {"image", "html_inline", "link_open"} <= set(element_types(HOSTILE))
