"""The task of a node of a Ray cluster: a cell, in a temporary folder, from which its run is sent to the sweep."""

from __future__ import annotations

import time
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import Preempted, Problem, panics_as_errors
from neftcli.events import CellStarted, CellStatus, Event
from neftcli.sweep.cell import do_cell
from neftcli.sweep.engines.transfer import begun_run, name_the_recipe, packed, unpacked, workplace
from neftcli.sweep.engines.worker import SENT_EVENTS, why

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe

PATIENCE = 5.0  # seconds for an answer over the network

_asset_cache: Any = None  # a worker process of Ray does many tasks, and loads once


@dataclass(frozen=True)
class Errand:
    """A task.

    Attributes:
        recipe: The cell's, which its run will name.
        there: The same with paths on the node, relative to the folder in which it is done.
        key: The cell's.
        places: Where to write the files that come along.
        run: The name of the run that comes along; an empty string where the cell was not begun.
    """

    recipe: Recipe
    there: Recipe
    key: str
    places: tuple[str, ...]
    run: str


@dataclass(frozen=True)
class Returned:
    """The result of a task.

    Attributes:
        status: FINISHED, FAILED or PREEMPTED.
        problems: Why it failed.
        again: Another try may help.
        name: The name of the run.
        content: The run as tar, where it is finished or can be gone on with; else nothing.
    """

    status: CellStatus
    problems: tuple[Problem, ...] = ()
    again: bool = False
    name: str = ""
    content: bytes = b""


class Mailbox:
    """An actor: holds what cells say until the sweep takes it, and whether cells are to stop."""

    def __init__(self) -> None:
        self._said: list[tuple[str, Event]] = []
        self._halted = False

    def tell(self, key: str, event: Event) -> None:
        """Take an event of a cell."""
        self._said.append((key, event))

    def take(self) -> list[tuple[str, Event]]:
        """Return what was said since the last call."""
        said, self._said = self._said, []
        return said

    def halt(self) -> None:
        """Ask cells to stop."""
        self._halted = True

    def halted(self) -> bool:
        """Return whether cells are to stop; an answer also means that all that this caller said has come."""
        return self._halted


class _Line:
    """A cell's line to the mailbox: a notifier of events, and the question whether to stop.

    It waits by futures: a task that waits by `ray.get` gives its CPU to another task meanwhile.
    """

    def __init__(self, key: str, mailbox: Any) -> None:
        self._key, self._mailbox = key, mailbox
        self._asked, self._question, self._answer = time.monotonic(), mailbox.halted.remote().future(), False

    def notify(self, event: Event) -> None:
        """Send what the sweep shows."""
        if isinstance(event, SENT_EVENTS):
            self._mailbox.tell.remote(self._key, event)

    def halted(self) -> bool:
        """Return whether to stop, as far as is known; asked once a second at most."""
        if self._question.done():
            self._hear(0)
        if time.monotonic() - self._asked >= 1:
            self._asked, self._question = time.monotonic(), self._mailbox.halted.remote().future()
        return self._answer

    def ask(self) -> bool:
        """Return whether to stop; the mailbox then has all that was sent."""
        self._question = self._mailbox.halted.remote().future()
        self._hear(PATIENCE)
        return self._answer

    def _hear(self, patience: float) -> None:
        import ray

        # A lost mailbox knows of no wish to stop; close() ends the task all the same.
        with suppress(ray.exceptions.RayError, TimeoutError):
            self._answer = self._question.result(timeout=patience)


def work(errand: Errand, mailbox: Any, luggage: bytes, *contents: bytes) -> Returned:
    """Train and measure a cell on a node, as far as it is not done.

    Args:
        errand: What is to do.
        mailbox: Is told what happens.
        luggage: The run that comes along, as tar.
        contents: What the files hold that come along.
    """
    global _asset_cache
    from neftcli.system.files import restrict_umask
    from neftcli.system.libraries import prepare_libraries

    restrict_umask()  # Ray started this process, not the command
    prepare_libraries()
    from neftcli.training.assets import AssetCache

    _asset_cache = _asset_cache or AssetCache()
    line = _Line(errand.key, mailbox)
    line.notify(CellStarted())
    try:
        with panics_as_errors(), workplace() as folder, chdir(folder):
            for place, content in zip(errand.places, contents, strict=True):
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                Path(place).write_bytes(content)
            return _done(errand, line, luggage)
    except Exception as error:
        return Returned(CellStatus.FAILED, *why(error))
    finally:
        line.ask()


def _done(errand: Errand, line: _Line, luggage: bytes) -> Returned:
    """Train and measure a cell in the current folder."""
    from neftcli.runs.directory import RunDirectory
    from neftcli.training.signals import StopSignal

    if line.ask():
        return Returned(CellStatus.PREEMPTED)
    cells = Path(errand.there.output_dir)
    if luggage:
        unpacked(luggage, cells / errand.run)
        name_the_recipe(RunDirectory(cells / errand.run), errand.there, errand.recipe)
    problems: tuple[Problem, ...] = ()
    again = False
    try:
        with panics_as_errors():
            do_cell(errand.there, _asset_cache, line, StopSignal(line.halted))
        status = CellStatus.FINISHED
    except Preempted:
        status = CellStatus.PREEMPTED
    except Exception as error:
        status, (problems, again) = CellStatus.FAILED, why(error)
    run = begun_run(cells, errand.there)
    if run is None:
        return Returned(status, problems, again)
    name_the_recipe(run, errand.recipe, errand.there)
    return Returned(status, problems, again, run.path.name, packed(run.path))
