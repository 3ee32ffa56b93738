"""Output in encodings that don't hold every letter, such as ASCII and Latin-1."""

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
"""What neft's own signs become; every other letter is escaped, as in Python: \\xf6, \\u4f60, \\U0001f600."""


def hold_any_letter(*streams: IO[str] | None) -> None:
    """Makes text streams write what their encoding doesn't hold in ASCII, in place of failing over it."""
    codecs.register_error(ERRORS, _legible)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


def holds_any_letter(stream: TextIO) -> bool:
    """Whether a stream's encoding holds every letter."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")


def _legible(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    shown = (ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(shown), error.end
