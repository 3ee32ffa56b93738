"""A warm worker: a process that does one cell after another, and loads libraries, model and rows once."""

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
from neftcli.system.files import open_without_links

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from neftcli.errors import Problem
    from neftcli.recipe.schema import Recipe

SENT_EVENTS = (CellStarted, CellEvaluationStarted, TrainingProgress, Evaluated, PhaseProgress, Notice)
"""Events of a cell that a worker sends to the sweep; the run records the others itself."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""A scheduler sends them to every process of a job; the sweep alone decides what that means."""


@contextmanager
def signals_put_off() -> Iterator[None]:
    """Puts `SIGNALS` off in the block, also in a process that is started there, until that lets them through itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # It comes with the first process that is spawned, and lets SIGINT and SIGTERM through again in this one.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignores `SIGNALS`, which were put off until here."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class Teller:
    """Passes events on to the sweep."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def notify(self, event: Event) -> None:
        """Sends what the sweep shows."""
        if isinstance(event, SENT_EVENTS):
            self._connection.send(event)


def work(connection: Connection, stop: Any, device: str | None, log: Path) -> None:
    """Does the cells that come through `connection`, until the sweep ends this process.

    Each is answered by events, then by (FINISHED, folder), (FAILED, problems, whether another try may help) or
    (PREEMPTED,).

    Args:
        connection: To the sweep.
        stop: Its value is 1 when cells are to stop behind their update.
        device: CUDA_VISIBLE_DEVICES, or None to leave it.
        log: Takes what libraries write past their logs.
    """
    ignore_signals()
    end_with_the_parent()
    with open_without_links(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    from neftcli.system.libraries import prepare_libraries

    prepare_libraries()
    from neftcli.training.assets import AssetCache

    asset_cache, teller = AssetCache(), Teller(connection)
    while True:
        connection.send(_outcome(connection.recv(), asset_cache, teller, stop))


def _outcome(recipe: Recipe, asset_cache: Any, teller: Teller, stop: Any) -> tuple[Any, ...]:
    from neftcli.errors import Preempted, panics_as_errors
    from neftcli.sweep.cell import do_cell
    from neftcli.training.signals import StopSignal

    teller.notify(CellStarted())
    try:
        with panics_as_errors():
            return CellStatus.FINISHED, do_cell(recipe, asset_cache, teller, StopSignal(lambda: bool(stop.value)))
    except Preempted:
        return (CellStatus.PREEMPTED,)
    except Exception as error:
        return CellStatus.FAILED, *why(error)


def why(error: Exception) -> tuple[tuple[Problem, ...], bool]:
    """Why a cell failed, and whether another try may help."""
    from neftcli.errors import NeftError, Problem
    from neftcli.training.failures import is_disk_full

    if isinstance(error, NeftError):
        return error.problems, False
    told = f"{type(error).__name__}: {error}"
    if is_disk_full(error):
        return (Problem("the disk is full", told, "make room"),), False
    return (Problem("the cell failed by a fault", told),), True


def end_with_the_parent() -> None:
    """Ends this process when the sweep's is gone, also by a kill: nobody would hear of what it does."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
