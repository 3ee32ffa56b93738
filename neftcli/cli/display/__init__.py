"""Displays: observers that show a workflow on a terminal, as plain lines, or as JSON.

`format` turns events into words and numbers; `live` (with `screens`), `plain` and `json_lines` render them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.system.distributed import is_main_process
from neftcli.system.environment import report_dropped

if TYPE_CHECKING:
    from neftcli.events import Event, Observer


class Silent:
    """Observe nothing."""

    def notify(self, event: Event) -> None:
        """Ignore an event."""


@contextmanager
def choose_display(*, json_lines: bool, quiet: bool) -> Iterator[Observer]:
    """Yield the display for stdout: JSON if requested, live on a terminal or in a notebook, else plain lines.

    Of several processes only the main process has one.

    Raises:
        InputError: The options contradict each other, or the current folder does not exist.
    """
    if json_lines and quiet:
        raise InputError(Problem("--json and --quiet can't be combined", hint="--json    prints every event"))
    try:
        Path.cwd()
    except OSError:
        raise InputError(
            Problem("the current folder no longer exists", hint="cd ~    or another folder that exists")
        ) from None
    with _display(json_lines=json_lines, quiet=quiet) as display:
        report_dropped(display)
        yield display


@contextmanager
def _display(*, json_lines: bool, quiet: bool) -> Iterator[Observer]:
    if not is_main_process():
        yield Silent()
    elif json_lines:
        from neftcli.cli.display.json_lines import JsonLines

        yield JsonLines(sys.stdout)
    elif quiet or not (sys.stdout.isatty() or _is_notebook()):
        from neftcli.cli.display.plain import PlainLines

        yield PlainLines(sys.stdout, quiet=quiet)
    else:
        from neftcli.cli.display.live import LiveDisplay

        with LiveDisplay() as display:
            yield display


def _is_notebook() -> bool:
    """Return whether a notebook runs this process and has ipywidgets, which a table that changes needs."""
    if "IPython" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter
