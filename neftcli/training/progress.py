"""How far the rows are, told now and then: many rows take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

from neftcli.events import Observer, Phase, PhaseId, PhaseProgress

EVERY = 2.0
"""Seconds between two of these events; what takes less tells none."""


class _Pace:
    def __init__(self) -> None:
        self.begun = self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to tell again."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return False
        self._last = now
        return True


def reading(observer: Observer) -> Callable[[int], None]:
    """Is called with the rows that are read."""
    pace = _Pace()

    def read(rows: int) -> None:
        if pace.due():
            observer.notify(Phase(PhaseId.READING_DATA, count=rows))

    return read


def tokenising(observer: Observer) -> Callable[[int, int], None]:
    """Is called with the rows that are tokenised, and all of them."""
    observer.notify(Phase(PhaseId.TOKENIZING))
    pace = _Pace()

    def tokenised(done: int, total: int) -> None:
        if pace.due():
            elapsed = time.monotonic() - pace.begun
            rate = done / elapsed
            observer.notify(
                PhaseProgress(PhaseId.TOKENIZING, done, total, elapsed, (total - done) / rate, rate, "rows")
            )

    return tokenised
