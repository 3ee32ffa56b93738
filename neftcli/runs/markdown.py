"""Markdown of the documents that neft writes: model cards and reports of sweeps."""

from __future__ import annotations

import re

ACTIVE = re.compile(r"([\\`*\[\]|~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|!(?=\[)|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#|^>)")
"""A character that Markdown would interpret at its position."""


def quote_markdown(text: str, *, in_table: bool = False) -> str:
    """Format text as inline code, so that Markdown in it has no effect.

    The fence is one backtick longer than the longest sequence of them in the text (CommonMark 0.31, 6.1). In a table,
    a | needs a backslash, which tables remove again.
    """
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line.replace('|', chr(92) + '|') if in_table else line}{space}{fence}"


def escape_markdown(text: str) -> str:
    """Escape a sentence for Markdown: a backslash before each character that could have a meaning in its place.

    By CommonMark 0.31: < before a tag or an address (6.5, 6.6), & before a name and ; (2.5), ! before [ (6.4), _ unless
    it is between letters or digits (6.2), # after a space (4.2), > at the beginning (5.1).
    """
    return ACTIVE.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
