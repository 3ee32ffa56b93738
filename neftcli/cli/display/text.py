"""Text on its way to a terminal: encodings, control characters, readers that have gone."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import select
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer

ERROR_HANDLER = "neft.ascii"
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
CONTROL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (as for right to left), surrogates, line breaks
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # Persian and emoji need them
MAX_LINE = 300
"""Most characters of a prompt or an answer on a screen."""

Value = TypeVar("Value")


def replace_unencodable(*streams: IO[str] | None) -> None:
    """Make text streams write characters outside their encoding in ASCII instead of raising an error."""
    codecs.register_error(ERROR_HANDLER, _in_ascii)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERROR_HANDLER)


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream's encoding is a Unicode encoding."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for character in error.object[error.start : error.end]:
        parts.append(ASCII.get(character) or character.encode("ascii", "backslashreplace").decode())
    return "".join(parts), error.end


class _StandardStream(io.FileIO):
    """File of stdout or stderr that discards output after the reader has gone or the disk is full."""

    def write(self, data: Buffer) -> int:
        """Write all bytes, or discard them; wait if a pipe that does not block is full."""
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        while rest:
            try:
                written: int | None = super().write(rest)
            except OSError as error:
                if error.errno not in READER_GONE:
                    _lost.append(error)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
                break
            if written is None:
                select.select((), (self,), ())
            else:
                rest = rest[written:]
        return size


READER_GONE = (errno.EPIPE, errno.EIO)
"""Numbers of errors of writing to a pipe that is closed, and to a terminal that is."""
_lost: list[OSError] = []


def lost_output() -> str:
    """Return why output could not be written, such as a full disk; empty if it was written, or its reader had gone."""
    return _lost[0].strerror or str(_lost[0]) if _lost else ""


def drop_unread_output() -> None:
    """Let the command continue to its end if stdout or stderr is closed, unread or on a full disk.

    `neft train | head -1` trains and saves the model, and `neft models | head -1` succeeds with `set -o pipefail`.
    `lost_output` returns why output was lost otherwise.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the parent process has closed it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
            continue
        file: Any = _StandardStream(stream.fileno(), "w", closefd=False)
        stream.flush()
        if not isinstance(stream.buffer, io.RawIOBase):  # it is, with python -u
            file = io.BufferedWriter(file)
        text = io.TextIOWrapper(
            file,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, text)


def write_to_stream(stream: IO[str], text: str) -> None:
    """Write and flush."""
    stream.write(text)
    stream.flush()


def is_control(character: str) -> bool:
    """Return whether a character could control a terminal."""
    return character not in "\n" + JOINERS and unicodedata.category(character) in CONTROL_CATEGORIES


def sanitize(text: str) -> str:
    """Replace control characters, except line breaks, by U+FFFD."""
    return "".join("\N{REPLACEMENT CHARACTER}" if is_control(character) else character for character in text)


def sanitize_event(value: Value) -> Value:
    """Sanitize every text of an event, or of a part of one: file names, models' names, problems and answers."""
    return _sanitized(value)  # type: ignore[no-any-return]


def _sanitized(value: Any) -> Any:
    if isinstance(value, str):
        clean = sanitize(value)
        return value if clean == value else clean  # an unchanged enum stays an enum
    if isinstance(value, tuple | list):
        return type(value)(map(_sanitized, value))
    if isinstance(value, Mapping):
        return {_sanitized(key): _sanitized(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _sanitized(getattr(value, field.name)) for field in fields(value)})
    return value


def escape_json(json_text: str) -> str:
    """Escape the control characters of a JSON text; it stays the same JSON."""

    def escape(match: re.Match[str]) -> str:
        return json.dumps(match[0])[1:-1] if is_control(match[0]) else match[0]

    return re.sub(r"[^ -~]", escape, json_text)


def spell_out(text: str) -> str:
    r"""Write line breaks, tabs and control characters as escapes: \n, \t, \x1b."""
    parts = []
    for character in text:
        if character == "\n" or is_control(character):
            character = character.encode("unicode_escape").decode("ascii")
        parts.append(character)
    return "".join(parts)


def one_line(text: str) -> str:
    """Return a prompt or an answer as one sanitized line of at most 300 characters; "(no text)" if it is blank."""
    lines = [line.strip() for line in sanitize(text).splitlines()]
    joined = " ".join(line for line in lines if line)
    if not joined:
        return "(no text)"
    return joined if len(joined) <= MAX_LINE else joined[: MAX_LINE - 3] + "..."
