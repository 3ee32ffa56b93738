"""Markdown as an independent parser, markdown-it-py, reads it, and a text full of Markdown and HTML."""

from __future__ import annotations

from markdown_it import MarkdownIt

READER = MarkdownIt("commonmark").enable("table")
HOSTILE = (
    "![](http://127.0.0.1/seen.png) <img src=http://127.0.0.1/seen.png> [x](http://127.0.0.1) | a `b` ``c`` \\` | "
    "<script>x</script>\n\n# heading\n---\n\x1b]8;;http://127.0.0.1\x07link \u202egnp.exe &lt; *a* _b_"
)


def element_types(text: str) -> list[str]:
    """Return the types of a text's elements in order: paragraphs, tables, code, images, links, tags."""
    return [part.type for block in READER.parse(text) for part in [block, *(block.children or [])]]
