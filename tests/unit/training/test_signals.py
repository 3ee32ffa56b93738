"""Effects of a first and a second signal in the parts of a run.

The signals are real: this process sends them to itself.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
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


def _signal_in_del(send: Callable[[], None]) -> None:
    class Sender:
        def __del__(self) -> None:
            send()

    Sender()


def _signal_in_weakref_callback(send: Callable[[], None]) -> None:
    class Target:
        pass

    target = Target()
    reference = weakref.ref(target, lambda _: send())
    del target
    assert reference() is None


def _signal_in_gc_callback(send: Callable[[], None]) -> None:
    def callback(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            send()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


SWALLOWING = [_signal_in_del, _signal_in_weakref_callback, _signal_in_gc_callback]
"""Places where Python ignores an exception."""


def _swallow_and_wait(swallow: Callable[[Callable[[], None]], None], number: signal.Signals) -> None:
    swallow(lambda: os.kill(os.getpid(), number))
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize("swallow", SWALLOWING)
def test_handle_signals_stop_ignored_by_python(
    swallow: Callable[[Callable[[], None]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    stop, hook = StopSignal(), sys.unraisablehook
    with stop.handle_signals():
        with pytest.raises(StopRequested), stop.interruptible():
            _swallow_and_wait(swallow, signal.SIGTERM)
        assert stop.is_requested()
        with pytest.raises(KeyboardInterrupt) as caught:  # a redelivery does not count as a second signal
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.type is KeyboardInterrupt
    assert sys.unraisablehook is hook
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("swallow", SWALLOWING)
def test_handle_signals_second_signal_ignored_by_python(swallow: Callable[[Callable[[], None]], None]) -> None:
    stop = StopSignal()
    with stop.handle_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as caught:
            _swallow_and_wait(swallow, signal.SIGINT)
    assert caught.type is KeyboardInterrupt


def test_handle_signals_ignored_stop_after_the_block(collector: Collector) -> None:
    """A stop that Python ignored at the end of an interruptible block is announced, and the next block sees it."""
    stop = StopSignal()
    with stop.handle_signals(first=lambda: stop.announce(collector)):
        with stop.interruptible():
            _signal_in_del(lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert wait_for_notices(collector) == ["stopping"]
        with pytest.raises(StopRequested), stop.interruptible():
            pass


def test_handle_signals_ignored_stop_at_the_end() -> None:
    """Nothing arrives after the block, where the signal would have its default effect: end the process."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.handle_signals(), stop.interruptible():
        _signal_in_del(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    time.sleep(5 * signals.REDELIVERY)


def test_handle_signals_other_ignored_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that are no stop reach the former hook."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    def fail() -> None:
        raise ValueError

    with StopSignal().handle_signals():
        _signal_in_del(fail)
    assert reported == [ValueError]
