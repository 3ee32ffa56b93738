"""Scheduling, reporting and the resume command; no cell is trained.

Oracles: `shlex` for the command, `decide` on all cells, and planted results.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import NeftError, Preempted
from neftcli.events import (
    CellEvaluationStarted,
    CellStarted,
    CellState,
    CellStatus,
    Event,
    Notice,
    PhaseId,
    PhaseProgress,
    SweepReport,
    TrainingProgress,
)
from neftcli.metrics.registry import HELD_OUT_LOSS
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.recipe.schema import Recipe
from neftcli.sweep import reporter as module
from neftcli.sweep.early_stopping import Decision, decide
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.sweep.plan import Arm, Cell
from neftcli.sweep.reporter import SweepReporter
from neftcli.sweep.results import SweepResults
from neftcli.sweep.scheduler import SweepScheduler
from neftcli.sweep.sweep_alpha import ONE_SEED, SweepRequest, format_resume_command, report_options
from tests.unit.sweep.planted import ROWS, plan, planted_results, shift

SIX = ("sweep.seeds=6",)


class RecordingObserver:
    """Observer that stores all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        """Store an event."""
        self.events.append(event)

    def messages(self) -> list[str]:
        """Return the texts of the notices."""
        return [event.message for event in self.events if isinstance(event, Notice)]


class Engine:
    """Finishes each cell at once, with a run whose loss falls from 2.5 to 2."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder, self.workers = folder, workers
        self.done, self.stopped, self.rounds = set[str](), False, list[set[int]]()

    def run(self, cells: Sequence[Cell], _on_event: Any, on_outcome: Callable[[Cell, CellOutcome], None]) -> None:
        """Finish the cells."""
        self.rounds.append({cell.seed for cell in cells})
        for cell in cells:
            run = self.folder / "runs" / cell.key
            run.mkdir(parents=True)
            lines = [
                {"event": "training.evaluated", "step": step, "held_out_loss": 2.5 - 0.5 * step} for step in (0, 1)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.done.add(cell.key)
            on_outcome(cell, CellOutcome(CellStatus.FINISHED, str(run)))

    def stop(self) -> None:
        """Remember that a stop was requested."""
        self.stopped = True

    def close(self) -> None:
        """Do nothing, since there are no workers."""


@dataclass
class Sweep:
    """A sweep whose cells are finished at once with planted results."""

    scheduler: SweepScheduler
    reporter: SweepReporter
    engine: Engine
    observer: RecordingObserver

    def run(self) -> None:
        """Run the cells."""
        self.scheduler.run(self.engine, self.reporter.look)  # type: ignore[arg-type]
        self.scheduler.mark_not_needed()

    def finish(self, cells: Sequence[Cell]) -> None:
        """Finish some cells."""
        self.engine.run(cells, None, self.scheduler.handle_outcome)

    def report(self) -> SweepReport:
        """Judge the results."""
        return self.reporter.report(time.perf_counter())


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """Return a function that creates a sweep in its own folder, from cells, their results, and options."""
    number = 0

    def make(cells: list[Cell], content: dict[str, Any], *sets: str) -> Sweep:
        nonlocal number
        folder = tmp_path / f"sweep-{number}"
        folder.mkdir()
        number += 1
        base = resolve_recipe([*read_recipe_layers("quickstart"), *map(parse_assignment, sets)])
        observer, engine = RecordingObserver(), Engine(folder)
        states = [CellState(cell.key[:8], cell.arm.id(), cell.seed, CellStatus.WAITING) for cell in cells]
        scheduler = SweepScheduler(cells, states, base.sweep, observer)
        prompts = {"prompts": [f"Question {row}?" for row in range(ROWS)]}

        def load(*_arguments: Any) -> dict[str, Any]:
            finished = [key for key, state in scheduler.states.items() if state.status == CellStatus.FINISHED]
            return {key: content[key] | prompts for key in finished if key in content}

        monkeypatch.setattr(module, "load_evaluations", load)
        reporter = SweepReporter(folder, base, cells, scheduler, observer, "the same again")
        return Sweep(scheduler, reporter, engine, observer)

    return make


@pytest.mark.parametrize(("seeds", "alphas", "is_reported"), [(1, "[5]", True), (2, "[5]", False), (1, "[0]", False)])
def test_one_seed_is_reported_before_the_sweep(seeds: int, alphas: str, is_reported: bool) -> None:
    sets = (f"sweep.seeds={seeds}", f"sweep.alphas={alphas}")
    base = resolve_recipe([*read_recipe_layers("quickstart"), *map(parse_assignment, sets)])
    observer = RecordingObserver()
    report_options(base, observer, no_futility=False)
    assert (Notice(ONE_SEED) in observer.events) == is_reported


def test_scheduler_stops_early_and_reports_why(planted: Callable[..., Sweep]) -> None:
    """Alpha 10 is dropped at the first look; then alpha 5, which is tied, stops for futility with the baseline."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = planted_results(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    sweep = planted(cells, content, *SIX, "sweep.delta=0.02")
    sweep.run()
    report = sweep.report()
    sweep.reporter.require_complete()
    expected = decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=6)
    assert sweep.scheduler.decision == expected
    assert [(dropped.arm.alpha, dropped.seeds) for dropped in expected.dropped] == [(10.0, 3)]
    assert [(stopped.reason, stopped.seeds) for stopped in expected.stopped] == [("futility", 4)]
    assert sweep.engine.rounds == [{0, 1, 2}, {3}]
    assert sweep.observer.messages() == [
        each.sentence(HELD_OUT_LOSS) for each in (*expected.dropped, *expected.stopped)
    ]
    assert expected.stopped[0].sentence(HELD_OUT_LOSS) in report.conclusion
    assert [arm.seeds for arm in report.arms] == [4, 4, 3]
    assert [arm.dropped for arm in report.arms] == [False, False, True]
    assert (report.saved, report.unfinished) == (7, 0)
    assert "early stopping saved 7 cells" in report.remarks()


def test_scheduler_decides_the_same_when_all_cells_are_finished(planted: Callable[..., Sweep]) -> None:
    """A resumed sweep decides the same; without early stopping there are no decisions."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = planted_results(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    never = planted(cells, content, *SIX, "sweep.early_stopping=never")
    never.run()
    assert len(never.engine.done) == len(cells)
    assert never.scheduler.decision == Decision()
    resumed = planted(cells, content, *SIX, "sweep.delta=0.02")
    resumed.scheduler.states = dict(never.scheduler.states)
    resumed.run()
    assert resumed.scheduler.decision == decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=6)


def test_scheduler_fills_the_workers_and_decides_the_same(planted: Callable[..., Sweep]) -> None:
    """With five workers two arms get two seeds per round; the look after the fourth seed doesn't use the fifth."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = planted_results(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    sweep = planted(cells, content, *SIX, "sweep.delta=0.02")
    sweep.engine.workers = 5
    sweep.run()
    assert sweep.engine.rounds == [{0, 1, 2}, {3, 4}]
    assert sweep.scheduler.decision == decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=6)


def test_scheduler_runs_all_seeds_at_once_without_early_stopping(planted: Callable[..., Sweep]) -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=5")
    sweep = planted(cells, planted_results(cells, {0: 0, 5: -1.0}), "sweep.seeds=5")
    sweep.run()
    assert sweep.engine.rounds == [{0, 1, 2, 3, 4}]


def test_reporter_delta_is_a_share_of_the_gain_over_the_base_model(planted: Callable[..., Sweep]) -> None:
    """The engine's runs start at 2.5 nats; the gain is that of the mean of alpha 0 over the first three seeds."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=4")
    content = planted_results(cells, {0: 0, 5: 0.5})
    sweep = planted(cells, content, "sweep.delta=10%")
    sweep.finish(cells)
    results = SweepResults(cells, content)
    losses = results.per_seed(HELD_OUT_LOSS, Arm(0.0))
    assert sweep.reporter.delta(results, HELD_OUT_LOSS) == pytest.approx(0.1 * (2.5 - sum(losses[:3]) / 3))  # type: ignore[arg-type]


def test_scheduler_continues_without_results(planted: Callable[..., Sweep]) -> None:
    """All cells of the first seeds failed, so no evaluation has the name of the tasks' metric."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6")
    sweep = planted(cells, {}, "sweep.metrics=[tasks]", "evaluation.tasks=[arc_easy]", *SIX)
    sweep.run()
    assert len(sweep.engine.done) == len(cells)


def test_reporter_recommends_by_the_seeds_that_all_arms_have(planted: Callable[..., Sweep], tmp_path: Path) -> None:
    """One seed of three is harder, and alpha 10 lacks it; `best` is the run of alpha 5."""
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.15, 10: -0.05})
    for cell in cells:
        shift(content, cell, 1.0 if cell.seed == 2 else 0.0)
    sweep = planted(cells, content)
    sweep.finish([cell for cell in cells if (cell.arm.alpha, cell.seed) != (10, 2)])
    assert sweep.report().recommended == "neftune.alpha=5"
    best = (tmp_path / "sweep-0" / "best").resolve()
    assert best.name == next(cell.key for cell in cells if cell.arm == Arm(5.0))
    with pytest.raises(Preempted) as caught:
        sweep.reporter.require_complete()
    [problem] = caught.value.problems
    assert problem.message == "stopped; 1 of 9 cells is left"
    assert problem.hint == "the same again    resumes it and skips finished cells"
    assert {state.status for state in sweep.scheduler.states.values()} == {"finished", "waiting"}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, []),
        ({"engine": "ray"}, ["--engine", "ray"]),
        (
            {"engine": "ray", "ray_address": "ray://a:1"},
            ["--engine", "ray", "--ray-address", "ray://a:1"],
        ),
    ],
)
def test_resume_command_runs_cells_the_same_way(settings: dict[str, Any], options: list[str]) -> None:
    folder = Path("my runs/it's a sweep")
    for trusts in (False, True):
        base = replace(Recipe(), model=replace(Recipe().model, trust_remote_code=trusts))
        command = format_resume_command(folder, SweepRequest((), **settings), base)
        trust = ["--trust-remote-code"] if trusts else []
        assert shlex.split(command) == ["neft", "sweep-alpha", str(folder), *options, *trust]


def test_scheduler_turns_events_into_states(planted: Callable[..., Sweep]) -> None:
    """Progress of an evaluation counts only after training; each notice of an engine is passed on once."""
    [cell, *_] = cells = plan("sweep.alphas=[5]")
    sweep = planted(cells, {})
    rows = PhaseProgress(PhaseId.GENERATING_BASE_SAMPLES, 1, 2, 1.0, 1.0, "rows", 1.0, "rows")
    seen = []
    for event in (
        CellStarted(),
        rows,
        TrainingProgress(1, 4, 1.0, 3.0),
        rows,
        CellEvaluationStarted(),
        PhaseProgress(PhaseId.COMPUTING_LOSSES, 3, 12, 1.0, 3.0, "rows", 3.0, "rows"),
    ):
        sweep.scheduler.handle_event(cell, event)
        state = sweep.scheduler.states[cell.key]
        seen.append((state.status, state.step, state.evaluated, state.to_evaluate, state.remaining))
    assert seen == [
        ("starting", 0, 0, 0, None),
        ("starting", 0, 0, 0, None),
        ("training", 1, 0, 0, 3.0),
        ("training", 1, 0, 0, 3.0),
        ("evaluating", 1, 0, 0, None),
        ("evaluating", 1, 3, 12, 3.0),
    ]
    for _ in range(2):
        sweep.scheduler.handle_event(cell, Notice("no room"))
    assert sweep.observer.messages() == ["no room"]


def test_reporter_asks_no_judge_once_a_stop_is_requested(
    planted: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is called when the signal arrives, and not again afterwards."""
    calls: list[str] = []

    def judge(*_arguments: Any) -> None:
        calls.append("asked")
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append("and still is")

    monkeypatch.setattr(module, "add_win_rates", judge)
    cells = plan("sweep.alphas=[5]", "sweep.seeds=3")
    sweep = planted(cells, planted_results(cells, {0: 0, 5: 0}))
    scheduler = sweep.scheduler
    with scheduler.stop.handle_signals(first=scheduler.handle_first_signal):
        sweep.reporter.add_win_rates({})
        assert scheduler.stop.is_requested()
        sweep.reporter.add_win_rates({})
        sweep.run()
    assert calls == ["asked"]
    assert sweep.engine.stopped
    assert sweep.observer.messages() == ["the sweep is stopping: no more requests to the judge"] * 2


def test_reporter_returns_a_report_that_can_not_be_written(
    planted: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan("sweep.alphas=[5]")
    sweep = planted(cells, planted_results(cells, {0: 0, 5: -0.1}))
    sweep.finish(cells)

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_outputs", full)
    assert sweep.report().recommended == "neftune.alpha=5"
    with pytest.raises(OSError, match="No space left"):
        sweep.reporter.require_complete()


def test_reporter_tasks_without_values_of_single_documents(planted: Callable[..., Sweep]) -> None:
    """Alone they are an error with a hint; if there is another metric, it decides."""
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    tasks = "evaluation.tasks=[wikitext]"
    sweep = planted(cells, content, "sweep.metrics=[tasks]", tasks)
    sweep.finish(cells)
    with pytest.raises(
        NeftError, match=r"(?s)none of these tasks has a value for each document.*wikitext.*--metric held_out_loss"
    ):
        sweep.report()
    sweep = planted(cells, content, "sweep.metrics=[tasks, held_out_loss]", tasks)
    sweep.finish(cells)
    assert sweep.report().metrics == (HELD_OUT_LOSS,)
