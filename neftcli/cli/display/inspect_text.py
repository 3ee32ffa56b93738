"""An inspected row as text: line by line, with what carries loss marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neftcli.cli.display.formatting import acts
from neftcli.events import InspectedRow

LEGEND = r"LOSS marks what is learned; numbers count tokens; \n is a line break."


@dataclass(frozen=True, slots=True)
class Line:
    r"""A line of a row's text, or the part of it that carries loss.

    Attributes:
        tokens: Tokens of the span that begins here; 0 on its further lines.
        loss: It carries loss.
        text: Without characters that act on a terminal; a line break as \n.
    """

    tokens: int
    loss: bool
    text: str

    def gutter(self) -> str:
        """The 13 columns to the left of the text."""
        return f"{self.tokens or '':>6} {'LOSS' if self.loss else '':4} |"


def lines(event: InspectedRow) -> Iterator[Line]:
    """The row from top to bottom: a new line at every line break, and wherever loss begins or ends."""
    for span in event.spans:
        tokens = span.tokens
        for line in span.text.splitlines(keepends=True) or [""]:
            yield Line(tokens, span.loss, visible(line))
            tokens = 0


def head(event: InspectedRow) -> str:
    """The place of the row and its number of tokens."""
    return f"{visible(event.location)}: {len(event.tokens)} tokens, {event.loss_tokens()} with loss"


def end(event: InspectedRow) -> str:
    """The end of the row in words: truncated, and with or without a stop token."""
    if event.truncated:
        cut = "truncated at data.max_length: what follows is not learned"
        return cut if event.ends_with_stop_token else f"{cut}, nor is a stop token"
    if event.ends_with_stop_token:
        return "ends with its stop token, which is learned"
    return "no stop token is learned at its end"


def well_ended(event: InspectedRow) -> bool:
    """Return whether the row ends as it should: complete, with a learned stop token."""
    return event.ends_with_stop_token and not event.truncated


def visible(text: str) -> str:
    r"""Text in which line breaks, tabs and characters that could act on a terminal are spelled out: \n, \t, \x1b."""
    return "".join(_spelled(letter) if letter == "\n" or acts(letter) else letter for letter in text)


def plain(event: InspectedRow) -> list[str]:
    """The row as lines without colour."""
    return [
        head(event),
        *(f"{line.gutter()} {line.text}" for line in lines(event)),
        f"  {'' if well_ended(event) else '! '}{end(event)}",
        *(f"  ! {visible(note)}" for note in event.notes),
    ]


def coloured(event: InspectedRow) -> RenderableType:
    """The row for a terminal: what is learned is green."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for line in lines(event):
        gutter = Text(line.gutter(), style="green" if line.loss else "dim")
        grid.add_row(gutter, Text(line.text, style="bold green" if line.loss else "", overflow="fold"))
    closing = Text(f"{'' if well_ended(event) else '! '}{end(event)}", style="dim" if well_ended(event) else "yellow")
    notes = [Padding(Text(f"! {visible(note)}", style="yellow"), (0, 0, 0, 2)) for note in event.notes]
    return Group(Text(head(event), style="bold"), grid, Padding(closing, (0, 0, 0, 2)), *notes, Text())


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
