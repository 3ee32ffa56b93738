"""Output in encodings without all of Unicode, such as ASCII and Latin-1."""

from __future__ import annotations

import codecs
from typing import IO, TextIO

ERRORS = "neft.legible"
ASCII = {
    "\N{MIDDLE DOT}": "-",
    "\N{BULLET}": "*",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{REPLACEMENT CHARACTER}": "?",
}
"""Replacements of neft's own signs; other characters are escaped as in Python: \\xf6, \\u4f60, \\U0001f600."""


def hold_any_letter(*streams: IO[str] | None) -> None:
    """Make text streams write characters outside their encoding in ASCII instead of raising an error."""
    codecs.register_error(ERRORS, _legible)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


def holds_any_letter(stream: TextIO) -> bool:
    """Return whether a stream's encoding is a Unicode encoding."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")


def _legible(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    shown = (ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(shown), error.end
