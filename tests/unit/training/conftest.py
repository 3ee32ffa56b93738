"""Fixtures of the tests of training."""

from __future__ import annotations

import pytest

from neftcli import events


class Collector:
    """An observer that keeps the events."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def notify(self, event: events.Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def notices(self) -> list[str]:
        """Return the messages of the notices."""
        return [event.message for event in self.events if isinstance(event, events.Notice)]


class FakeClock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time

    def wait(self, seconds: float) -> None:
        """Move the clock on."""
        self.time += seconds


@pytest.fixture
def collector() -> Collector:
    """An observer that keeps the events."""
    return Collector()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that tests advance."""
    return FakeClock()
