"""Displays of a workflow: an observer for a terminal, one for plain lines, and one for JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.system.distributed import is_main_process
from neftcli.system.environment import report_dropped

if TYPE_CHECKING:
    from neftcli.events import Event, Observer


class Silent:
    """Tells nobody."""

    def notify(self, event: Event) -> None:
        """Says nothing."""


@contextmanager
def choose_display(*, json_lines: bool, quiet: bool) -> Iterator[Observer]:
    """The display for where the output goes: JSON if asked for, live on a terminal, plain lines elsewhere.

    Of several processes only the first one tells what happens.
    """
    if json_lines and quiet:
        raise InputError(Problem("--json and --quiet can't stand together", hint="--json    prints every event"))
    try:
        Path.cwd()
    except OSError:
        raise InputError(Problem("the current folder no longer exists", hint="cd FOLDER")) from None
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
    elif quiet or not sys.stdout.isatty():
        from neftcli.cli.display.plain import PlainLines

        yield PlainLines(sys.stdout, quiet=quiet)
    else:
        from neftcli.cli.display.live import LiveDisplay

        with LiveDisplay() as display:
            yield display
