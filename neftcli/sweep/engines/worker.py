"""A warm worker: a process that runs one cell after another, and loads libraries, model and rows once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.events import (
    CellEvaluationStarted,
    CellStarted,
    CellStatus,
    Evaluated,
    Event,
    Notice,
    PhaseProgress,
    TrainingProgress,
)
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.system.files import open_without_links

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from neftcli.recipe.schema import Recipe
    from neftcli.training.assets import AssetCache

SENT_EVENTS = (CellStarted, CellEvaluationStarted, TrainingProgress, Evaluated, PhaseProgress, Notice)
"""Events of a cell that a worker sends to the sweep; the run records the others itself."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""A scheduler sends them to every process of a job; only the sweep's own process handles them."""


@contextmanager
def block_signals() -> Iterator[None]:
    """Block `SIGNALS` in the block, also in a process that is started there, until that process unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # The first process that is spawned starts it, which unblocks SIGINT and SIGTERM in this process.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore `SIGNALS` and unblock them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class ConnectionObserver:
    """Observer that sends the events of a cell to the sweep."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def notify(self, event: Event) -> None:
        """Send an event that the sweep shows."""
        if isinstance(event, SENT_EVENTS):
            self._connection.send(event)


def run_worker(connection: Connection, stop: Any, device: str | None, log: Path) -> None:
    """Run the cells that come through `connection`, until the sweep ends this process.

    The answer to each is its events, then its outcome.

    Args:
        connection: To the sweep.
        stop: Its value is 1 when cells are to stop after their current step.
        device: CUDA_VISIBLE_DEVICES, or None to leave it.
        log: File for output that no run's log takes.
    """
    ignore_signals()
    exit_with_parent()
    with open_without_links(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    from neftcli.system.libraries import prepare_libraries

    prepare_libraries()
    from neftcli.training.assets import AssetCache

    asset_cache, observer = AssetCache(), ConnectionObserver(connection)
    while True:
        connection.send(run_assigned_cell(connection.recv(), asset_cache, observer, stop))


def run_assigned_cell(recipe: Recipe, asset_cache: AssetCache, observer: ConnectionObserver, stop: Any) -> CellOutcome:
    """Run a cell and return its outcome."""
    from neftcli.errors import Preempted, panics_as_errors
    from neftcli.sweep.cell import run_cell
    from neftcli.training.signals import StopSignal

    observer.notify(CellStarted())
    try:
        with panics_as_errors():
            run = run_cell(recipe, asset_cache, observer, StopSignal(lambda: bool(stop.value)))
        return CellOutcome(CellStatus.FINISHED, run)
    except Preempted:
        return CellOutcome(CellStatus.PREEMPTED)
    except Exception as error:
        return failed_outcome(error)


def failed_outcome(error: Exception) -> CellOutcome:
    """Return the outcome of a cell that failed; after an unexpected error a retry may help."""
    from neftcli.errors import DISK_FULL, NeftError, Problem
    from neftcli.training.failures import is_disk_full

    if isinstance(error, NeftError):
        return CellOutcome(CellStatus.FAILED, problems=error.problems)
    received = f"{type(error).__name__}: {error}"
    if is_disk_full(error):
        problem = Problem("the disk is full", received, "free some space", code=DISK_FULL)
        return CellOutcome(CellStatus.FAILED, problems=(problem,))
    problem = Problem("the cell failed with an unexpected error", received)
    return CellOutcome(CellStatus.FAILED, problems=(problem,), may_retry=True)


def exit_with_parent() -> None:
    """Exit when the sweep's process is gone, even if it was killed: nobody would receive the results."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
