"""Verdicts in trackers. Oracle: the numbers of the sample reports, written out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neftcli import events
from neftcli.trackers.backends import Backend, TrackedRun
from neftcli.trackers.registry import TRACKERS, Tracker
from neftcli.trackers.verdicts import report_verdict, verdict_of_evaluation, verdict_of_sweep
from tests.unit.cli.sample_events import REPORT, SWEEP

VERDICT = verdict_of_evaluation(REPORT)
PROBLEM = "OSError: no such server"


class Fake(Backend):
    """A tracker that keeps verdicts, or fails in a given method."""

    fails = ""
    calls: list[Any]

    def start(self) -> Any:
        """Start."""
        self._call("start")
        self.id, self.location, self.view = "abc", "a folder", "show it"

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Keep the verdict."""
        print("output of the tracker")
        self._call("verdict", tuple(sentences), dict(numbers))

    def end_run(self, status: str) -> None:
        """Keep the status."""
        self._call("end", status)

    def _call(self, *call: Any) -> None:
        type(self).calls.append(call)
        if self.fails == call[0]:
            raise OSError("no such server")


class Collector:
    """An observer that keeps the events."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def notify(self, event: events.Event) -> None:
        """Keep an event."""
        self.events.append(event)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Register a fake tracker."""

    class OfThisTest(Fake):
        calls: list[Any] = []  # noqa: RUF012 - the class is of one test

    monkeypatch.setitem(TRACKERS, "fake", Tracker("fake", "Fake", "json", OfThisTest, "FAKE_DIR", {"FAKE": ("OFF",)}))
    return OfThisTest


def report(observer: Collector) -> dict[str, str | None]:
    """Report the verdict to the fake tracker."""
    return report_verdict(VERDICT, [("fake", TrackedRun("mine", Path("store")))], observer)


def test_verdict_of_evaluation_has_the_comparisons_with_the_baseline() -> None:
    """Those with the base model are left out, and so are numbers that are not known."""
    assert VERDICT.sentences == (*REPORT.conclusion, REPORT.scope)
    assert VERDICT.source == REPORT.folder
    assert {name: value for name, value in VERDICT.numbers.items() if name.startswith("held_out_loss")} == {
        "held_out_loss/difference": -0.0004,
        "held_out_loss/ci_low": -0.0025,
        "held_out_loss/ci_high": 0.0016,
        "held_out_loss/p": 1.0,
    }
    assert {name.partition("/")[0] for name in VERDICT.numbers} == {"held_out_loss", "win_rate", "answer_tokens"}
    untested = replace(REPORT.comparisons[0], low=None, high=None, p_adjusted=None)
    assert verdict_of_evaluation(replace(REPORT, comparisons=(untested,))).numbers == {
        "held_out_loss/difference": -0.0004
    }


def test_verdict_of_sweep_has_the_recommended_alpha() -> None:
    arm = next(arm for arm in SWEEP.arms if arm.comparisons)
    comparison = arm.comparisons[0]
    grid = replace(arm, arm="neftune.alpha=5 training.learning_rate=1e-05")
    verdict = verdict_of_sweep(replace(SWEEP, arms=(grid,), recommended=grid.arm))
    assert verdict.numbers["recommended_alpha"] == 5.0
    assert verdict.numbers[f"alpha_5_learning_rate_1e-05/{comparison.metric}/difference"] == comparison.difference
    assert "recommended_alpha" not in verdict_of_sweep(replace(SWEEP, recommended="")).numbers


def test_report_verdict_starts_and_ends_the_run(fake: type[Fake], capsys: pytest.CaptureFixture[str]) -> None:
    observer = Collector()
    assert report(observer) == {"fake": "abc"}
    assert fake.calls == [("start",), ("verdict", VERDICT.sentences, VERDICT.numbers), ("end", "finished")]
    assert observer.events == [events.TrackerOpened("fake", "a folder", "show it")]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fails", "ends"),
    [("start", ["failed"]), ("verdict", ["failed"]), ("end", ["finished"])],
)
def test_report_verdict_failure_is_a_notice(fails: str, ends: list[str], fake: type[Fake]) -> None:
    fake.fails = fails
    observer = Collector()
    assert report(observer) == {}
    assert observer.events == [events.Notice(f"Fake failed: {PROBLEM}; the verdict is in {REPORT.folder}")]
    assert [call[1] for call in fake.calls if call[0] == "end"] == ends


def test_report_verdict_leaves_out_trackers(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is switched off, and one that gets no verdicts; a package that is missing is a notice."""
    monkeypatch.setenv("FAKE", "off")
    observer = Collector()
    assert (report(observer), observer.events) == ({}, [])
    monkeypatch.delenv("FAKE")
    with monkeypatch.context() as without_verdicts:
        without_verdicts.setattr(fake, "add_verdict", Backend.add_verdict)
        assert (report(observer), observer.events) == ({}, [])
    monkeypatch.setitem(TRACKERS, "fake", replace(TRACKERS["fake"], module="no_such_module"))
    assert report(observer) == {}
    [notice] = observer.events
    assert isinstance(notice, events.Notice)
    assert "no_such_module is not installed; the verdict is in " in notice.message
    assert ("start",) not in fake.calls
