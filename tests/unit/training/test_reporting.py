"""Reporting to trackers: no secret in a message; a tracker that fails is ended, and the observer is notified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.events import Evaluated, Event, Notice
from neftcli.trackers.backends import Backend
from neftcli.trackers.isolation import redact
from neftcli.trackers.registry import TRACKERS, Tracker
from neftcli.training.reporting import Reporter

PROBLEM = "OSError: no such server"


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("WANDB_API_KEY", "0123abcd" * 5)
    monkeypatch.setenv("COMET_CLIENT_SECRET", "between you and me")
    monkeypatch.setenv("SHORT_KEY", "a")  # would hide every a
    text = f"401 for https://ann:hunter22@host/a?x=1 with {'0123abcd' * 5}, between you and me"
    assert redact(text) == "401 for https://***@host/a?x=1 with ***, ***"


class Fake(Backend):
    """A tracker that fails in a given method, after it has changed the environment.

    Attributes:
        fails: The method.
        ended: Statuses with which runs were ended.
    """

    fails = ""
    ended: list[str]

    def start(self) -> Any:
        """Start, and return a callback."""
        self.set_variable("NEFT_TEST_STORE", "neft's")
        self._fail_in("start")

        def on_train_begin(*args: Any, **kwargs: Any) -> None:
            self._fail_in("on_train_begin")

        return SimpleNamespace(on_train_begin=on_train_begin)

    def end_run(self, status: str) -> None:
        """Keep the status."""
        type(self).ended.append(status)
        self._fail_in("end_run")

    def _fail_in(self, method: str) -> None:
        if self.fails == method:
            raise OSError("no such server")


class Trial:
    """A reporter to fake trackers, and what its observer is notified of."""

    def __init__(self, folder: Path, *, resume: bool, trackers: dict[str, Any] | None = None) -> None:
        self.notices: list[str] = []
        self.trackers: dict[str, Any] = {}
        record = SimpleNamespace(
            fields={"trackers": trackers or {}}, update=lambda trackers: self.trackers.update(trackers)
        )
        recipe = SimpleNamespace(training=SimpleNamespace(report_to=("fake",)))
        state = SimpleNamespace(step=3, changes=()) if resume else None
        self.reporter = Reporter(recipe, SimpleNamespace(path=folder), record, state, self)  # type: ignore[arg-type]

    def notify(self, event: Event) -> None:
        """Keep notices."""
        if isinstance(event, Notice):
            self.notices.append(event.message)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Register a fake tracker."""

    class OfThisTest(Fake):
        ended: list[str] = []  # noqa: RUF012 - the class is of one test

    monkeypatch.setitem(TRACKERS, "fake", Tracker("fake", "Fake", "json", OfThisTest, "FAKE_DIR"))
    monkeypatch.delenv("NEFT_TEST_STORE", raising=False)
    return OfThisTest


def test_reporter_ends_a_tracker_that_does_not_start(fake: type[Fake], tmp_path: Path) -> None:
    """The new run is rejected, and the next run of the process finds nothing of it."""
    fake.fails = "start"
    with pytest.raises(InputError) as error:
        Trial(tmp_path, resume=False)
    assert error.value.problems[0].message == "training.report_to: fake can't be started"
    assert fake.ended == ["failed"]
    assert "NEFT_TEST_STORE" not in os.environ


def test_reporter_notifies_of_a_tracker_that_does_not_start_on_resume(fake: type[Fake], tmp_path: Path) -> None:
    """Also if no earlier process has reported to it."""
    fake.fails = "start"
    trial = Trial(tmp_path, resume=True)
    assert trial.notices == [f"Fake failed: {PROBLEM}; the run continues without it"]
    assert fake.ended == ["failed"]
    trial.reporter.finish("finished")
    assert trial.notices[1:] == [f"Fake has only a part of this run ({PROBLEM}); all rows are in metrics.jsonl"]
    assert trial.trackers["fake"]["problem"] == PROBLEM
    assert fake.ended == ["failed"]


def test_reporter_ends_a_tracker_that_fails_in_the_middle(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, so that the next run of the process can start its own."""
    monkeypatch.setattr("neftcli.training.reporting.keys", lambda: ())
    monkeypatch.setattr("neftcli.training.reporting.to_yaml", lambda recipe: "")
    fake.fails = "on_train_begin"
    trial = Trial(tmp_path, resume=False)
    assert os.environ["NEFT_TEST_STORE"] == "neft's"
    state = SimpleNamespace(global_step=0)
    trainer = SimpleNamespace(args=None, control=None, model=None, state=state, add_callback=lambda callback: None)
    trial.reporter.begin(trainer)  # type: ignore[arg-type]
    assert trial.notices == [f"Fake failed: {PROBLEM}; the run continues without it"]
    assert fake.ended == ["failed"]
    assert "NEFT_TEST_STORE" not in os.environ


def test_reporter_reports_lost_rows(fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows up to the checkpoint that a kill has lost come from metrics.jsonl; later ones are trained again."""
    steps = [{"event": "training.step", "step": step, "loss": step / 8, "memory_bytes": 7} for step in range(1, 6)]
    evaluated = [
        {"event": "training.evaluated", "step": step, "held_out_loss": 2.0, "train_loss": None, **answers}
        for step, answers in ((0, {}), (2, {"answer_metrics": {"rouge_l": 0.5, "exact_match": None}}))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*steps, *evaluated]))
    monkeypatch.setattr("neftcli.training.reporting.keys", lambda: ())
    monkeypatch.setattr("neftcli.training.reporting.to_yaml", lambda recipe: "")
    monkeypatch.setattr(fake, "loses_rows", True)
    monkeypatch.setattr(fake, "reported_steps", lambda self: {"training.step": 1})
    rows = []

    def on_log(args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        rows.append((state.global_step, logs))

    callback = SimpleNamespace(on_train_begin=lambda *args, **kwargs: None, on_log=on_log)
    monkeypatch.setattr(fake, "start", lambda self: callback)
    trial = Trial(tmp_path, resume=True, trackers={"fake": {"id": None}})
    trial.reporter.report(Evaluated(0, 2.0, None))  # restored from the checkpoint
    state = SimpleNamespace(global_step=3)
    trainer = SimpleNamespace(args=None, control=None, model=None, state=state, add_callback=lambda callback: None)
    trial.reporter.begin(trainer)  # type: ignore[arg-type]
    evaluated_again = {"eval_held_out_loss": 2.0, "eval_rouge_l": 0.5}
    losses = [(2, {"loss": 0.25}), (3, {"loss": 0.375})]
    assert rows == [*losses, (0, {"eval_held_out_loss": 2.0}), (2, evaluated_again)]


def test_reporter_ends_trackers_of_an_interrupted_run_at_once(fake: type[Fake], tmp_path: Path) -> None:
    """Without the callback's end of training, which may upload a model."""
    trial = Trial(tmp_path, resume=True)
    trial.reporter._trainer = SimpleNamespace(state=SimpleNamespace(global_step=3))  # type: ignore[assignment]
    trial.reporter.finish("interrupted")
    assert (fake.ended, trial.notices) == (["interrupted"], [])


def test_reporter_ends_a_tracker_whose_end_fails_only_once(fake: type[Fake], tmp_path: Path) -> None:
    fake.fails = "end_run"
    trial = Trial(tmp_path, resume=False)
    trial.reporter.finish("failed")
    assert fake.ended == ["failed"]
    assert trial.notices == [f"Fake failed: {PROBLEM}; it may lack the last rows"]
    assert "NEFT_TEST_STORE" not in os.environ
