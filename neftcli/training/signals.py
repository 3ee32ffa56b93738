"""How a run is asked to stop: behind its update, where it can be saved; at once, where nothing would be lost by it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from neftcli.errors import InputError, Preempted, Problem
from neftcli.events import Notice, Observer
from neftcli.system import distributed

REQUEUE_SIGNAL = "SIGUSR1"
"""What Slurm sends as a warning, by `--signal=B:USR1@120`."""


ECHO = 1.0
"""Seconds in which one wish to stop can come twice: a launcher passes on the Ctrl-C that its terminal sends as well."""
WARNINGS = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")


class StopRequested(KeyboardInterrupt):
    """A stop was asked for while nothing would be lost; no library that catches exceptions keeps it."""


def _nobody() -> bool:
    return False


class StopSignal:
    """Whether a run is to stop.

    The first signal lets the update end, the second raises KeyboardInterrupt at once. Of several processes that train
    together the first one's counts; `is_agreed` tells the others, which only heed a second.

    Args:
        asked: Is asked beside the signals; a worker of a sweep is told in this way.
    """

    def __init__(self, asked: Callable[[], bool] = _nobody) -> None:
        self._asked_elsewhere = asked
        self._signals = 0
        self._at_once = False
        self._in_updates = False

    def is_requested(self) -> bool:
        """Whether the run is to stop behind its update."""
        return (self._signals > 0 and distributed.is_main_process()) or self._asked_elsewhere()

    def is_agreed(self) -> bool:
        """Whether the first process is asked to stop; all that train together have to call it."""
        return distributed.broadcast_object(self.is_requested())

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within the block a signal raises `StopRequested` in place of waiting for the update's end.

        Raises:
            StopRequested: Also where a stop was asked for before the block.
        """
        if self.is_requested():
            raise StopRequested
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Within the block updates are done, and what was done up to a stop is saved."""
        self._in_updates = True
        try:
            yield
        finally:
            self._in_updates = False

    def announce(self, observer: Observer) -> None:
        """Says what a first signal does."""
        announce_stop(observer, "this update is finished and saved first" if self._in_updates else "")

    @contextmanager
    def handle_signals(
        self, requeue_signal: str = REQUEUE_SIGNAL, first: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Listens to Ctrl-C, SIGTERM and `requeue_signal` within the block.

        Args:
            requeue_signal: The name of the signal by which a scheduler says that time is running out.
            first: Is called at the first signal, where the update's end is waited for.

        Raises:
            Preempted: A signal came while nothing had been begun.
            InputError: There is no such signal.
        """
        last = -ECHO

        def heard(_number: int, _frame: object) -> None:
            nonlocal last
            if distributed.launched_externally() and time.monotonic() - last < ECHO:
                return
            last = time.monotonic()
            self._signals += 1
            if self._signals > 1:
                raise KeyboardInterrupt
            if not distributed.is_main_process():
                return
            if self._at_once:
                raise StopRequested
            if first is not None:
                first()

        numbers = {signal.SIGINT, signal.SIGTERM, signal_number(requeue_signal)}
        before = {number: signal.signal(number, heard) for number in numbers}
        try:
            yield
        except StopRequested:
            raise Preempted(Problem("stopped before anything was begun", hint="the same command again")) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def announce_stop(observer: Observer, first: str) -> None:
    """Says what comes `first`; by a thread, since the one that was interrupted may be writing just now."""
    notice = Notice(f"stopping: {first}; Ctrl-C again stops at once, without saving" if first else "stopping")
    Thread(target=observer.notify, args=(notice,), daemon=True).start()


def signal_number(name: str) -> signal.Signals:
    """The signal of a name: SIGUSR1 or USR1.

    Raises:
        InputError: It is none that a scheduler warns by.
    """
    whole = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    found = getattr(signal, whole, None)
    if not isinstance(found, signal.Signals) or whole not in WARNINGS:
        raise InputError(
            Problem(f"--requeue-signal must be one of {', '.join(WARNINGS)}", name, "--requeue-signal SIGUSR1")
        )
    return found
