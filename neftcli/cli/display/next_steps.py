"""Next steps: the commands at the end of a screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


def following(commands: Sequence[tuple[str, str]]) -> Table:
    """Commands, each with why one would type it."""
    table = Table.grid(padding=(0, 1))
    for number, (command, reason) in enumerate(commands):
        table.add_row(" next " if number == 0 else "", Text(command, style="bold", overflow="fold"))
        table.add_row("", Text(reason, style="dim"))
    return table
