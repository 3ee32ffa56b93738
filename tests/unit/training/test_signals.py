"""Effects of a first and a second signal in the parts of a run.

The signals are real: this process sends them to itself.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext

import pytest

from neftcli.errors import Preempted
from neftcli.training import signals
from neftcli.training.signals import StopRequested, StopSignal
from tests.unit.training.conftest import Collector


def wait_for_notices(collector: Collector) -> list[str]:
    """Return the notices, which come from a thread, as soon as there is one or a second is over."""
    end = time.monotonic() + 1
    while not collector.events and time.monotonic() < end:
        time.sleep(0.005)
    return collector.notices()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("in_training", [True, False])
def test_handle_signals_first_and_second(number: signal.Signals, in_training: bool, collector: Collector) -> None:
    stop = StopSignal()
    with (
        stop.handle_signals(first=lambda: stop.announce(collector)),
        stop.finishing_steps() if in_training else nullcontext(),
    ):
        os.kill(os.getpid(), number)
        assert stop.is_requested()
        [notice] = wait_for_notices(collector)
        assert notice.startswith("stopping")
        assert ("the current step is finished and saved first" in notice) == in_training
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), number)
        assert caught.type is KeyboardInterrupt
    assert len(collector.events) == 1


def test_interruptible_ends_silently(collector: Collector) -> None:
    stop = StopSignal()
    with (
        stop.handle_signals(first=lambda: stop.announce(collector)),
        stop.finishing_steps(),
        pytest.raises(StopRequested),
        stop.interruptible(),
    ):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    assert collector.events == []


def test_handle_signals_before_the_start() -> None:
    with pytest.raises(Preempted), StopSignal().handle_signals(), StopSignal().interruptible():
        raise StopRequested


def test_handle_signals_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    stop = StopSignal()
    with stop.handle_signals(), stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)  # neither raises nor asks
        assert not stop.is_requested()


def test_handle_signals_echo_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
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
