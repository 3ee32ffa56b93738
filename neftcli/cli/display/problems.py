"""Print errors: what was violated, what was received, what to type."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from neftcli.cli.display.formatting import all_harmless, some
from neftcli.errors import Problem


def print_problems(problems: Sequence[Problem], *, started: bool) -> None:
    """Prints problems on stderr; without colour where that is no terminal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        first, *rest = all_harmless(problem).lines()
        console.print(Text(first, style="bold red"))
        for line in rest:
            label, text = line[:11], line[11:]
            console.print(Text.assemble((label, "dim"), text))
    if not started:
        console.print(Text(f"{some(len(problems), 'problem')}; nothing was started.", style="dim"))
