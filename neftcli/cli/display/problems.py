"""Print errors in parts: message, got, did you mean, hint."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from neftcli.cli.display.formatting import all_harmless, some
from neftcli.errors import Problem


def print_problems(problems: Sequence[Problem], *, started: bool) -> None:
    """Print problems on stderr, without colour unless it is a terminal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        printable = all_harmless(problem)
        console.print(Text(printable.message, style="bold red"))
        for label, text in printable.details():
            console.print(Text.assemble((label, "dim"), text))
    if not started:
        console.print(Text(f"{some(len(problems), 'error')}; nothing was started.", style="dim"))
