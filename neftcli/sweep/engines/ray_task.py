"""Task of a Ray cluster: runs one cell in the sweep's folder, which all nodes share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import Preempted, Problem, RunLockedError, panics_as_errors
from neftcli.events import CellStarted, CellStatus, Event
from neftcli.sweep.cell import run_cell
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.sweep.engines.worker import SENT_EVENTS, failed_outcome

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.training.assets import AssetCache
    from neftcli.training.signals import StopSignal

RAY_TIMEOUT = 5.0
"""Seconds to wait for an answer over the network."""
LOCK_TIMEOUT = 180.0
"""Seconds to wait for a run that another process is training: the former worker of a restarted cell may still end, and
NFS keeps the locks of a lost node for up to 90 s."""
LOCK_POLL_INTERVAL = 1.0
"""Seconds between two attempts to lock a run."""
SHARE_HINT = "--output-dir FOLDER on a file system that all nodes share, such as NFS or Lustre"

_asset_cache: Any = None  # a worker process of Ray runs many tasks, and loads the model once


@dataclass(frozen=True)
class CellTask:
    """Arguments of a task.

    Attributes:
        recipe: Recipe of the cell; `output_dir` is absolute.
        key: Key of the cell.
        probe: File in the sweep's folder by which a node knows that it sees this folder.
        working_folder: Folder that the relative paths of the recipe start from.
    """

    recipe: Recipe
    key: str
    probe: Path
    working_folder: Path


class Mailbox:
    """Actor that keeps the events of cells until the sweep takes them, and the request to stop."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Event]] = []
        self._stop_requested = False

    def put(self, key: str, event: Event) -> None:
        """Add an event of a cell."""
        self._events.append((key, event))

    def take(self) -> list[tuple[str, Event]]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        """Ask the cells to stop."""
        self._stop_requested = True

    def is_stop_requested(self) -> bool:
        """Return whether cells are to stop; the answer also means that all events of this caller have arrived."""
        return self._stop_requested


class MailboxObserver:
    """Observer of a cell that sends its events to the mailbox and asks it for the request to stop.

    It waits for futures: a task that waits by `ray.get` gives its CPU to another task meanwhile.
    """

    def __init__(self, key: str, mailbox: Any) -> None:
        self._key = key
        self._mailbox = mailbox
        self._asked_at = time.monotonic()
        self._question = mailbox.is_stop_requested.remote().future()
        self._stop_requested = False

    def notify(self, event: Event) -> None:
        """Send an event that the sweep shows."""
        if isinstance(event, SENT_EVENTS):
            self._mailbox.put.remote(self._key, event)

    def is_stop_requested(self) -> bool:
        """Return the last known answer; the mailbox is asked once a second at most."""
        if self._question.done():
            self._receive(0)
        if time.monotonic() - self._asked_at >= 1:
            self._asked_at = time.monotonic()
            self._question = self._mailbox.is_stop_requested.remote().future()
        return self._stop_requested

    def ask(self) -> bool:
        """Ask the mailbox and wait for the answer; it then has all events that were sent."""
        self._question = self._mailbox.is_stop_requested.remote().future()
        self._receive(RAY_TIMEOUT)
        return self._stop_requested

    def _receive(self, timeout: float) -> None:
        import ray

        # A lost mailbox can't request a stop; RayEngine.close ends the task all the same.
        with suppress(ray.exceptions.RayError, TimeoutError):
            self._stop_requested = self._question.result(timeout=timeout)


def check_folder(probe: Path, inputs: Sequence[Path] = ()) -> str:
    """Return why this node can't run cells in the sweep's folder, or an empty string.

    Args:
        probe: A file that the driver wrote to the sweep's folder.
        inputs: Files and folders that the cells read.
    """
    if not probe.is_file():
        return f"it does not see {probe.parent}"
    if not os.access(probe.parent, os.W_OK | os.X_OK):
        return f"it can't write to {probe.parent}"
    missing = [str(path) for path in inputs if not path.exists()]
    return f"it does not see {', '.join(missing)}" if missing else ""


def run_task(task: CellTask, mailbox: Any) -> CellOutcome:
    """Run a cell on a node, as far as it is not done.

    Args:
        task: The cell.
        mailbox: Receives its events.
    """
    global _asset_cache
    from neftcli.system.files import restrict_umask
    from neftcli.system.libraries import prepare_libraries
    from neftcli.training.signals import StopSignal

    restrict_umask()  # Ray started this process, not the command
    prepare_libraries()
    from neftcli.training.assets import AssetCache

    _asset_cache = _asset_cache or AssetCache()
    observer = MailboxObserver(task.key, mailbox)
    observer.notify(CellStarted())
    try:
        if observer.ask():
            return CellOutcome(CellStatus.PREEMPTED)
        if reason := check_folder(task.probe):  # a node may have joined the cluster after the sweep started
            problem = Problem("a Ray node can't use the sweep's folder", reason, SHARE_HINT)
            return CellOutcome(CellStatus.FAILED, problems=(problem,))
        with panics_as_errors(), _working_folder(task):
            run = _run_unlocked_cell(task.recipe, _asset_cache, observer, StopSignal(observer.is_stop_requested))
        return CellOutcome(CellStatus.FINISHED, run)
    except Preempted:
        return CellOutcome(CellStatus.PREEMPTED)
    except Exception as error:
        return failed_outcome(error)
    finally:
        observer.ask()


def _run_unlocked_cell(recipe: Recipe, asset_cache: AssetCache, observer: MailboxObserver, stop: StopSignal) -> str:
    """Run a cell, after waiting for another process that is training it.

    Raises:
        RunLockedError: The other process is still training it after `LOCK_TIMEOUT`.
        NeftError: The cell can't be trained or evaluated.
        Preempted: A stop was requested.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return run_cell(recipe, asset_cache, observer, stop)
        except RunLockedError:
            if time.monotonic() >= deadline:
                raise
        if stop.is_requested():
            raise Preempted(Problem("stopped before the cell was started"))
        time.sleep(LOCK_POLL_INTERVAL)


@contextmanager
def _working_folder(task: CellTask) -> Iterator[None]:
    """Change to the folder that relative paths start from; to the sweep's folder if the node does not have it."""
    before = Path.cwd()
    sys.path[:] = [path for path in sys.path if path]  # nothing is imported from the current folder
    os.chdir(task.working_folder if task.working_folder.is_dir() else task.probe.parent)
    try:
        yield
    finally:
        os.chdir(before)
