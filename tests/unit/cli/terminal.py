"""Hostile text, the control characters of an output, and the output of the live display, for tests of displays."""

from __future__ import annotations

import io
import re
import unicodedata

from neftcli import events
from neftcli.cli.display.live import LiveDisplay

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://127.0.0.1\x1b\\link\x1b]8;;\x1b\\ \x9b31m \rover \x08\x7f "
    "\u202egnp.exe\u202c \u2066x\u2069 \u200f [red]x[/red] [link=http://127.0.0.1]y[/link] [/nope] :smile: "
)

ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")

OWN = re.compile(r"\x1b\[(\?25[lh]|[12]?[KA])|\r")  # what Rich's live display itself draws with


def control_characters(shown: str) -> set[str]:
    """The characters of an output that could act on a terminal, line breaks and Rich's own aside."""
    return {letter for letter in OWN.sub("", shown) if letter != "\n" and unicodedata.category(letter) in ACTS}


def on_terminal(event: events.Event, width: int = 100) -> str:
    """Return the output of the live display for an event, on a console as `neft` makes it, and at the end."""
    display = LiveDisplay()
    display.console.file = stream = io.StringIO()
    display.console.width = width
    display.console._force_terminal = True
    display.console._color_system = None
    with display:
        display.notify(event)
    return stream.getvalue()
