"""Displays of a chat: on a terminal, where answers appear as they are written, and as plain text for pipes."""

from __future__ import annotations

from functools import singledispatchmethod
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neftcli import events
from neftcli.cli.display import format, screens
from neftcli.cli.display.text import sanitize, write_to_stream

SIDE_BY_SIDE = 100
"""Columns from which two answers are shown side by side."""
ANSWER_GAP = 3
"""Spaces between two answers."""
FRAME_LINES = 5
"""Lines of the terminal that the tail of two growing answers leaves free."""
TAB = " " * 4


def displayed(text: str) -> str:
    """Return a part of an answer for a terminal: sanitized, with spaces for tabs."""
    return sanitize(text.replace("\t", TAB))


class ChatScreen:
    """Shows a chat on a terminal: one answer as it is written, two below each other or side by side."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        self._names: list[str] = []
        self._live: Live | None = None
        self._answers: list[Text] = []
        self._remarks: list[str] = []

    def close(self) -> None:
        """Stop drawing; answers that are shown side by side stay on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.console.print(self._columns(tail=False))

    @singledispatchmethod
    def notify(self, event: events.Event) -> None:
        """Show an event."""
        for line in format.lines(event):
            self.console.print(screens.line(format.Line(line.label, sanitize(line.text), line.style)))

    @notify.register
    def _(self, event: events.ChatStarted) -> None:
        self._names = [sanitize(format.chat_model_name(model)) for model in event.models]
        for line in format.lines(event):
            self.console.print(screens.line(format.Line(line.label, sanitize(line.text), line.style)))

    @notify.register
    def _(self, event: events.AnswerStarted) -> None:
        if event.model == 0:
            self._answers = [Text() for _ in self._names]
            self._remarks = [""] * len(self._names)
        if self._is_wide():
            if self._live is None:
                self._live = Live(console=self.console, transient=True, refresh_per_second=10)
                self._live.get_renderable = lambda: self._columns(tail=True)  # type: ignore[method-assign]
                self._live.start()
        elif len(self._names) > 1:
            self.console.print(Text(self._names[event.model], style="bold"))

    @notify.register
    def _(self, event: events.AnswerText) -> None:
        text, style = displayed(event.text), "dim" if event.reasoning else ""
        self._answers[event.model].append(text, style)
        if self._live is None:
            self.console.out(text, style=style or None, end="", highlight=False)
            self.console.file.flush()

    @notify.register
    def _(self, event: events.AnswerFinished) -> None:
        remark = format.answer_remark(event, compared=len(self._names) > 1)
        self._remarks[event.model] = remark
        if self._live is not None:
            if event.model == len(self._names) - 1:
                self.close()
                self.console.print()
            return
        if not event.answer:
            self.console.print(Text("(no text)", style="dim"), end="")
        self.console.print()
        if remark:
            self.console.print(Text(remark, style="dim"))
        self.console.print()

    def _is_wide(self) -> bool:
        return len(self._names) > 1 and self.console.width >= SIDE_BY_SIDE

    def _columns(self, *, tail: bool) -> RenderableType:
        """Render the answers side by side; with `tail` only as many lines as the terminal has room for."""
        count = len(self._names)
        width = (self.console.width - ANSWER_GAP * (count - 1)) // count
        table = Table.grid(padding=(0, ANSWER_GAP, 0, 0), pad_edge=False)
        for _ in self._names:
            table.add_column(width=width, overflow="fold")
        table.add_row(*(Text(name, style="bold") for name in self._names))
        cells: list[RenderableType] = []
        for answer in self._answers:
            lines = answer.wrap(self.console, width, overflow="fold")
            shown = lines[-max(1, self.console.height - FRAME_LINES) :] if tail else lines
            cells.append(Group(*shown))
        table.add_row(*cells)
        table.add_row(*(Text(remark, style="dim") for remark in self._remarks))
        return table


class PlainAnswers:
    """Writes nothing but the answers, for pipes; notices go to a second stream."""

    def __init__(self, stream: TextIO, notices: TextIO) -> None:
        self._stream, self._notices = stream, notices
        self._names: list[str] = []

    @singledispatchmethod
    def notify(self, event: events.Event) -> None:
        """Ignore other events."""

    @notify.register
    def _(self, event: events.ChatStarted) -> None:
        self._names = [sanitize(format.chat_model_name(model)) for model in event.models]

    @notify.register
    def _(self, event: events.Notice) -> None:
        write_to_stream(self._notices, f"note: {sanitize(event.message)}\n")

    @notify.register
    def _(self, event: events.AnswerStarted) -> None:
        if len(self._names) > 1:
            write_to_stream(self._stream, f"{self._names[event.model]}:\n")

    @notify.register
    def _(self, event: events.AnswerText) -> None:
        write_to_stream(self._stream, displayed(event.text))

    @notify.register
    def _(self, event: events.AnswerFinished) -> None:
        write_to_stream(self._stream, "\n")
