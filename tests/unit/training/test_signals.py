"""What a first signal says and does, in a run's parts.

Oracle: signals that this process sends to itself.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext

import pytest

from neftcli.errors import Preempted
from neftcli.events import Event, Notice
from neftcli.training import signals
from neftcli.training.signals import StopRequested, StopSignal


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def notify(self, event: Event) -> None:
        """Keeps one."""
        assert isinstance(event, Notice)
        self.said.append(event.message)


def wait_for(told: Told) -> list[str]:
    """What is said, by another thread, within a second."""
    end = time.monotonic() + 1
    while not told.said and time.monotonic() < end:
        time.sleep(0.005)
    return told.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("in_updates", [True, False])
def test_a_first_signal_says_what_it_does_and_a_second_ends_it(number: signal.Signals, in_updates: bool) -> None:
    told, stop = Told(), StopSignal()
    with (
        stop.handle_signals(first=lambda: stop.announce(told)),
        stop.finishing_steps() if in_updates else nullcontext(),
    ):
        os.kill(os.getpid(), number)
        assert stop.is_requested()
        [said] = wait_for(told)
        assert said.startswith("stopping")
        assert ("the current step is finished and saved first" in said) == in_updates
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), number)
        assert caught.type is KeyboardInterrupt
    assert len(told.said) == 1


def test_where_nothing_would_be_lost_it_ends_at_once_and_says_nothing() -> None:
    told, stop = Told(), StopSignal()
    with (
        stop.handle_signals(first=lambda: stop.announce(told)),
        stop.finishing_steps(),
        pytest.raises(StopRequested),
        stop.interruptible(),
    ):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    assert told.said == []


def test_before_anything_was_begun_it_is_told_so() -> None:
    with pytest.raises(Preempted), StopSignal().handle_signals(), StopSignal().interruptible():
        raise StopRequested


def test_of_several_processes_the_first_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    stop = StopSignal()
    with stop.handle_signals(), stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)  # neither raises nor asks
        assert not stop.is_requested()


def test_of_several_processes_a_launchers_echo_is_no_second_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(signals, "ECHO", 0.1)
    stop = StopSignal()
    with stop.handle_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_requested()
        time.sleep(0.15)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
