"""Progress of a phase whose items are counted."""

from __future__ import annotations

import time

from neftcli.events import Observer, PhaseId, PhaseProgress

PROGRESS_UNITS = {
    PhaseId.COMPUTING_LOSSES: ("rows", "rows"),
    PhaseId.GENERATING_ANSWERS: ("answers", "tokens"),
    PhaseId.MERGING_LAYERS: ("layers", "layers"),
    PhaseId.WRITING_GGUF: ("weights", "weights"),
    PhaseId.UPLOADING: ("bytes", "bytes"),
}
"""Unit of the items of a phase, and unit of its rate."""


class ProgressReporter:
    """Notifies an observer of the progress of a phase, with its rate and the remaining time.

    Args:
        phase: The phase.
        target: The model, task or cell that the phase is about; empty if there is only one.
        known: Items done before.
        total: Items in all.
        observer: Receives the progress.
    """

    def __init__(self, phase: PhaseId, target: str, known: int, total: int, observer: Observer) -> None:
        self._phase, self._target, self._known, self._total = phase, target, known, total
        self._units, self._observer = PROGRESS_UNITS[phase], observer
        self._begun, self._amount = time.perf_counter(), 0
        self._report(known, 0.0, 0.0, 0.0)

    def add(self, done: int, amount: int) -> None:
        """Notify that `done` items are done in all, and `amount` more of the rate's unit since the last call."""
        self._amount += amount
        elapsed = time.perf_counter() - self._begun
        remaining = elapsed / max(1, done - self._known) * (self._total - done)
        rate = self._amount / elapsed if elapsed else 0.0
        self._report(done, elapsed, remaining, rate)

    def _report(self, done: int, elapsed: float, remaining: float, rate: float) -> None:
        unit, rate_unit = self._units
        self._observer.notify(
            PhaseProgress(self._phase, done, self._total, elapsed, remaining, unit, rate, rate_unit, self._target)
        )
