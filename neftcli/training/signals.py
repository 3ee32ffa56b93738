"""Stop requests: signals stop a run after its current step, or at once if no work would be lost."""

from __future__ import annotations

import _thread
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Preempted, Problem
from neftcli.events import Notice, Observer
from neftcli.system import distributed

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

REQUEUE_SIGNAL = "SIGUSR1"
"""Signal that Slurm sends as a warning, with `--signal=B:USR1@120`."""
WARNINGS = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")
"""Signals by which a scheduler can warn of the end of a job's time."""
ECHO = 1.0
"""Seconds in which one request can arrive twice: a launcher repeats the Ctrl-C that its terminal sends as well."""
REDELIVERY = 0.02
"""Seconds after which a stop is raised again that Python ignored, long enough for a `__del__` to end."""


class StopRequested(KeyboardInterrupt):
    """A stop was requested while no work would be lost. Libraries that catch `Exception` don't catch it."""


def _never() -> bool:
    return False


class StopSignal:
    """The request to stop a run.

    The first signal lets the current step end; the second raises KeyboardInterrupt at once. If several processes train
    together, rank 0 decides and `synchronize` tells the others, which react to a second signal only.

    Args:
        requested_elsewhere: Returns whether a stop was requested in another way; a sweep stops its cells by it.

    Attributes:
        stopping: All processes know of the stop; set by `synchronize`.
        in_training: Steps are being trained, so a stop saves a checkpoint first.
    """

    def __init__(self, requested_elsewhere: Callable[[], bool] = _never) -> None:
        self._requested_elsewhere = requested_elsewhere
        self._signals = 0
        self._interruptible = False
        self.stopping = False
        self.in_training = False

    def is_requested(self) -> bool:
        """Return whether this process was asked to stop."""
        return (self._signals > 0 and distributed.is_main_process()) or self._requested_elsewhere()

    def synchronize(self) -> bool:
        """Return whether rank 0 was asked to stop; all processes must call this until it was."""
        if not self.stopping:
            self.stopping = distributed.broadcast_object(self.is_requested())
        return self.stopping

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block at once instead of waiting for the end of the step.

        Raises:
            StopRequested: A stop is requested, within the block or before it.
        """
        if self.is_requested():
            raise StopRequested
        before, self._interruptible = self._interruptible, True
        try:
            yield
        finally:
            self._interruptible = before

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Mark a block in which steps are trained: a stop waits for the current step and a checkpoint."""
        self.in_training = True
        try:
            yield
        finally:
            self.in_training = False

    def announce(self, observer: Observer) -> None:
        """Notify the observer of the effect of a first signal."""
        announce_stop(observer, "the current step is finished and saved first" if self.in_training else "")

    @contextmanager
    def handle_signals(
        self, requeue_signal: str = REQUEUE_SIGNAL, first: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Handle Ctrl-C, SIGTERM and `requeue_signal` within the block.

        Args:
            requeue_signal: Name of the signal by which a scheduler warns that time is running out.
            first: Called at the first signal if it does not stop the block at once.

        Raises:
            Preempted: A signal arrived before anything was started.
            InputError: There is no such signal.
        """
        last = -ECHO
        redelivery = _Redelivery()

        def handle(number: int, _frame: object) -> None:
            nonlocal last
            if redelivery.take():
                if redelivery.has_ended():
                    return
            else:
                if distributed.launched_externally() and time.monotonic() - last < ECHO:
                    return
                last = time.monotonic()
                self._signals += 1
            if self._signals > 1:
                raise redelivery.watch(KeyboardInterrupt(), signal.Signals(number))
            if not distributed.is_main_process():
                return
            if self._interruptible:
                raise redelivery.watch(StopRequested(), signal.Signals(number))
            if first is not None:
                first()

        numbers = {signal.SIGINT, signal.SIGTERM, signal_number(requeue_signal)}
        handlers_before = {number: signal.signal(number, handle) for number in numbers}
        try:
            with redelivery.active():
                yield
        except StopRequested:
            raise Preempted(Problem("stopped before anything was started", hint="run the same command again")) from None
        finally:
            for number, handler in handlers_before.items():
                signal.signal(number, handler)


class _Redelivery:
    """Raises a stop again that Python ignored because it was raised in a `__del__` or a callback of weakref or gc."""

    def __init__(self) -> None:
        self._raised: tuple[BaseException, signal.Signals] | None = None
        self._is_due = False
        self._ended = Event()
        self._thread: Thread | None = None

    def watch(self, error: BaseException, number: signal.Signals) -> BaseException:
        """Return `error`, which the handler of the signal `number` is about to raise."""
        self._raised = error, number
        return error

    def take(self) -> bool:
        """Return whether the handler is called by a redelivery and not by a signal."""
        is_due, self._is_due = self._is_due, False
        return is_due

    def has_ended(self) -> bool:
        """Return whether the block of `active` has ended."""
        return self._ended.is_set()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Redeliver ignored stops within the block."""
        hook_before = sys.unraisablehook

        def hook(unraisable: UnraisableHookArgs, /) -> None:
            if self._raised is None or unraisable.exc_value is not self._raised[0]:
                hook_before(unraisable)
                return
            # Raised here it would be ignored too, so a thread interrupts the main thread later.
            self._thread = Thread(target=self._redeliver, args=(self._raised[1],), daemon=True)
            self._thread.start()

        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = hook_before
            self._ended.set()
            if self._thread is not None:
                self._thread.join()

    def _redeliver(self, number: signal.Signals) -> None:
        if not self._ended.wait(REDELIVERY):
            self._is_due = True
            _thread.interrupt_main(number)


def announce_stop(observer: Observer, unfinished: str) -> None:
    """Notify the observer of a stop, and of the unfinished work that is completed before.

    In a separate thread, since the interrupted one may be in the middle of writing.
    """
    notice = Notice("stopping")
    if unfinished:
        notice = Notice(f"stopping: {unfinished}; Ctrl-C again stops at once, without saving")
    Thread(target=observer.notify, args=(notice,), daemon=True).start()


def signal_number(name: str) -> signal.Signals:
    """Return the signal with a name such as SIGUSR1 or USR1.

    Raises:
        InputError: It is not one of WARNINGS.
    """
    full_name = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    number = getattr(signal, full_name, None)
    if not isinstance(number, signal.Signals) or full_name not in WARNINGS:
        raise InputError(
            Problem(f"--requeue-signal must be one of {', '.join(WARNINGS)}", name, "--requeue-signal SIGUSR1")
        )
    return number
