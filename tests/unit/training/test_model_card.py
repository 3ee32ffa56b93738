"""The model card as Markdown: names in it are shown literally.

Oracle: markdown-it-py, an independent reader of CommonMark and its tables, which shows how a text would be rendered.
"""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from neftcli.events import RunFinished
from neftcli.models.registry import ModelReference
from neftcli.recipe.schema import Data, Recipe
from neftcli.runs.markdown import quote_markdown
from neftcli.training.model_card import model_card

READER = MarkdownIt("commonmark").enable("table")
HOSTILE = (
    "![](http://127.0.0.1/seen.png) <img src=http://127.0.0.1/seen.png> [x](http://127.0.0.1) | a `b` ``c`` \\` | "
    "<script>x</script>\n\n# heading\n---\n\x1b]8;;http://127.0.0.1\x07link \u202egnp.exe &lt; *a* _b_"
)
RECORD = {
    "noise_to_embedding": 0.1,
    "model_fingerprint": "sha256 0",
    "data_sha256": "0",
    "recipe_sha256": "0",
    "device": "CPU",
    "precision": "fp32",
    "weights_sha256": {"model.safetensors": "0"},
    "versions": {"torch": "2"},
    "resumed": [{"checkpoint": "checkpoint-4", "changes": {"neftune.alpha": [5.0, 10.0], "data.source": ["a", "b"]}}],
}
FINISHED = RunFinished("runs/x", 1.0, 2.0, 1.0, 2.0, 1.0, (), 5.0)


def kinds(text: str) -> list[str]:
    """Return the elements of a text in order: paragraphs, tables, code, images, links, tags."""
    return [part.type for block in READER.parse(text) for part in [block, *(block.children or [])]]


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


def card_of(name: str, source: str) -> str:
    recipe = Recipe(data=Data(source=source))
    return model_card(recipe, ModelReference(name, "folder", name), RECORD, FINISHED, chat=True)


def test_model_card_hostile_names() -> None:
    """A card with hostile names has the elements of one with plain names: no more images, links, tags or columns."""
    plain, hostile = card_of("model", "rows.jsonl"), card_of(HOSTILE, HOSTILE)
    assert kinds(hostile) == kinds(plain)
    assert not any(kind.startswith(("image", "link", "html")) for kind in kinds(hostile))
    assert set(hostile) <= set(string.printable) | {"\N{REPLACEMENT CHARACTER}"}
    assert not set(hostile) & set("\x1b\x07\r")


def test_reader_finds_what_is_hostile() -> None:
    """The reader finds the image, the tag and the link in the same text outside of the card."""
    assert {"image", "html_inline", "link_open"} <= set(kinds(HOSTILE))


def test_model_card_front_matter() -> None:
    """The hub reads it as YAML."""
    from ruamel.yaml import YAML

    card = model_card(Recipe(), ModelReference("x", "hub", 'a/b"\nlicense: none'), RECORD, FINISHED, chat=True)
    head = YAML(typ="safe", pure=True).load(card.split("---")[1])
    assert head["base_model"] == 'a/b"\nlicense: none'
    assert sorted(head) == ["base_model", "library_name", "tags"]
