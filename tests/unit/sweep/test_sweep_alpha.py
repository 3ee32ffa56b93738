"""The sweep around its cells: what it refuses, how it stops early, and how it says to go on.

Oracles: `shlex` for the command, `decide` on all cells, and planted numbers; no cell is trained.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError, NeftError, Preempted
from neftcli.evaluation.metrics import HELD_OUT_LOSS
from neftcli.events import (
    CellEvaluationStarted,
    CellStarted,
    CellState,
    CellStatus,
    Event,
    Notice,
    PhaseId,
    PhaseProgress,
    TrainingProgress,
)
from neftcli.recipe.loading import assignment, file_layers, resolve
from neftcli.recipe.schema import Recipe
from neftcli.sweep.early_stopping import Decision, decide
from neftcli.sweep.engines.local_engine import Outcome
from neftcli.sweep.plan import Arm, Cell, plan_cells
from neftcli.sweep.results import SweepResults
from neftcli.sweep.scheduler import SweepRun
from neftcli.sweep.sweep_alpha import Request, _again
from neftcli.sweep.validate import check, require_noise
from tests.conftest import Result
from tests.unit.sweep.test_verdict import ROWS, measured, plan, shifted

SIX = ("sweep.seeds=6",)


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        """Keeps one."""
        self.events.append(event)


class Engine:
    """Says at once that cells are done, each with a run whose curve falls from 2.5 to 2."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder, self.workers = folder, workers
        self.done, self.stopped, self.rounds = set[str](), False, list[set[int]]()

    def run(self, cells: Sequence[Cell], _told: Any, ended: Callable[[Cell, Outcome], None]) -> None:
        """Does the cells."""
        self.rounds.append({cell.seed for cell in cells})
        for cell in cells:
            run = self.folder / "runs" / cell.key
            run.mkdir(parents=True)
            lines = [
                {"event": "training.evaluated", "step": step, "held_out_loss": 2.5 - 0.5 * step} for step in (0, 1)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.done.add(cell.key)
            ended(cell, Outcome(CellStatus.FINISHED, str(run)))

    def stop(self) -> None:
        """Nothing is at work."""
        self.stopped = True

    def close(self) -> None:
        """There are no workers."""


def sweep_of(
    folder: Path, cells: list[Cell], content: dict[str, Any], *sets: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[SweepRun, Engine, Told]:
    """A sweep whose cells are done at once and have the numbers given."""
    told, engine = Told(), Engine(folder)
    base = resolve([*file_layers("quickstart"), *map(assignment, sets)])
    run = SweepRun(folder, base, cells, told, "the same again")
    prompts = {"prompts": [f"Question {number}?" for number in range(ROWS)]}
    monkeypatch.setattr(run, "_engine", lambda request: engine)
    monkeypatch.setattr(
        run, "_measured", lambda: {key: content[key] | prompts for key in engine.done if key in content}
    )
    return run, engine, told


def test_train_stops_early_and_reports_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alpha 10 is dropped at the first look; then alpha 5, tied, is given up, and the baseline is not trained on."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = measured(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    run, engine, told = sweep_of(tmp_path, cells, content, *SIX, "sweep.delta=0.02", monkeypatch=monkeypatch)
    run.train(Request(()))
    report = run.report(0.0)
    run.end()
    expected = decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=6)
    assert run.decision == expected
    assert [(one.arm.alpha, one.seeds) for one in expected.dropped] == [(10.0, 3)]
    assert [(one.reason, one.seeds) for one in expected.stopped] == [("futility", 4)]
    assert engine.rounds == [{0, 1, 2}, {3}]
    assert [event.message for event in told.events if isinstance(event, Notice)] == [
        one.sentence(HELD_OUT_LOSS) for one in (*expected.dropped, *expected.stopped)
    ]
    assert expected.stopped[0].sentence(HELD_OUT_LOSS) in report.conclusion
    assert [arm.seeds for arm in report.arms] == [4, 4, 3]
    assert [arm.dropped for arm in report.arms] == [False, False, True]
    assert (report.saved, report.unfinished) == (7, 0)
    assert "early stopping saved 7 cells" in report.remarks()
    # Resumed with everything done, or without early stopping: the same decisions, or none.
    (tmp_path / "again").mkdir()
    never = (*SIX, "sweep.early_stopping=never")
    again, engine, told = sweep_of(tmp_path / "again", cells, content, *never, monkeypatch=monkeypatch)
    again.train(Request(()))
    assert len(engine.done) == len(cells)
    assert again.decision == Decision()
    resumed, _, _ = sweep_of(tmp_path / "again", cells, content, *SIX, "sweep.delta=0.02", monkeypatch=monkeypatch)
    monkeypatch.setattr(resumed, "_measured", again._measured)
    resumed.states = dict(again.states)
    resumed.train(Request(()))
    assert resumed.decision == expected


def test_train_fills_the_workers_and_decides_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With five workers two arms get two seeds a round; the look after the fourth seed uses no fifth one."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = measured(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    run, engine, _ = sweep_of(tmp_path, cells, content, *SIX, "sweep.delta=0.02", monkeypatch=monkeypatch)
    engine.workers = 5
    run.train(Request(()))
    assert engine.rounds == [{0, 1, 2}, {3, 4}]
    assert run.decision == decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=6)


def test_train_all_seeds_at_once_without_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=5")
    content = measured(cells, {0: 0, 5: -1.0})
    run, engine, _ = sweep_of(tmp_path, cells, content, "sweep.seeds=5", monkeypatch=monkeypatch)
    run.train(Request(()))
    assert engine.rounds == [{0, 1, 2, 3, 4}]


def test_delta_is_a_share_of_the_gain_over_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's runs begin at 2.5 nats; the gain is by the mean of alpha 0 over the first three seeds."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=4")
    content = measured(cells, {0: 0, 5: 0.5})
    run, engine, _ = sweep_of(tmp_path, cells, content, "sweep.delta=10%", monkeypatch=monkeypatch)
    engine.run(cells, None, run._ended)
    results, _ = run._results()
    losses = results.per_seed(HELD_OUT_LOSS, Arm(0.0))
    assert run._delta(results, HELD_OUT_LOSS) == pytest.approx(0.1 * (2.5 - sum(losses[:3]) / 3))  # type: ignore[arg-type]


def test_train_without_anything_measured_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells of the first seeds failed, with a metric whose name is not known before one is measured."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6")
    sets = ("sweep.metrics=[tasks]", "evaluation.tasks=[arc_easy]", *SIX)
    run, engine, _ = sweep_of(tmp_path, cells, {}, *sets, monkeypatch=monkeypatch)
    run.train(Request(()))
    assert len(engine.done) == len(cells)


def test_a_stopped_sweep_recommends_by_the_seeds_that_all_arms_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed of three is harder, and alpha 10 lacks it; `best` is not its run."""
    cells = plan("sweep.alphas=[5, 10]")
    content = measured(cells, {0: 0, 5: -0.15, 10: -0.05})
    for cell in cells:
        shifted(content, cell, 1.0 if cell.seed == 2 else 0.0)
    run, engine, _ = sweep_of(tmp_path, cells, content, monkeypatch=monkeypatch)
    engine.run([cell for cell in cells if (cell.arm.alpha, cell.seed) != (10, 2)], None, run._ended)
    report = run.report(0.0)
    assert report.recommended == "alpha 5"
    assert (tmp_path / "best").resolve().name == next(cell.key for cell in cells if cell.arm == Arm(5.0))
    with pytest.raises(Preempted) as caught:
        run.end()
    assert caught.value.problems[0].hint == "the same again    goes on: what is done is skipped"
    assert {state.status for state in run.states.values()} == {"finished", "waiting"}
    assert all(isinstance(state, CellState) for state in run.states.values())


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
def test_the_command_that_goes_on_does_it_in_the_same_way(settings: dict[str, Any], options: list[str]) -> None:
    folder = Path("my runs/it's a sweep")
    for trusts in (False, True):
        base = replace(Recipe(), model=replace(Recipe().model, trust_remote_code=trusts))
        command = _again(folder, Request((), **settings), base)
        trust = ["--trust-remote-code"] if trusts else []
        assert shlex.split(command) == ["neft", "sweep-alpha", str(folder), *options, *trust]


def test_what_a_cell_tells_becomes_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to samples before training are no measuring; what an engine says goes on to whoever watches."""
    [cell, *_] = cells = plan("sweep.alphas=[5]")
    run, _, told = sweep_of(tmp_path, cells, {}, monkeypatch=monkeypatch)
    seen = []
    for event in (
        CellStarted(),
        PhaseProgress(PhaseId.GENERATING_BASE_SAMPLES, 1, 2, 1.0, 1.0, 1.0, "rows"),
        TrainingProgress(1, 4, 1.0, 3.0),
        PhaseProgress(PhaseId.GENERATING_SAMPLES, 1, 2, 1.0, 1.0, 1.0, "rows"),
        CellEvaluationStarted(),
        PhaseProgress(PhaseId.COMPUTING_LOSSES, 3, 12, 1.0, 3.0, 3.0, "rows", "x"),
    ):
        run._told(cell, event)
        state = run.states[cell.key]
        seen.append((state.status, state.step, state.evaluated, state.to_evaluate, state.remaining))
    assert seen == [
        ("starting", 0, 0, 0, None),
        ("starting", 0, 0, 0, None),
        ("training", 1, 0, 0, 3.0),
        ("training", 1, 0, 0, 3.0),
        ("evaluating", 1, 0, 0, None),
        ("evaluating", 1, 3, 12, 3.0),
    ]
    run._told(cell, Notice("no room"))
    assert told.events[-1] == Notice("no room")


def test_a_sweep_that_is_to_stop_asks_no_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes once before the judge is asked, and once while it is."""
    asked: list[str] = []

    def judge(*_arguments: Any) -> None:
        asked.append("asked")
        os.kill(os.getpid(), signal.SIGTERM)
        asked.append("and still is")

    monkeypatch.setattr("neftcli.sweep.judged_cells.add_win_rates", judge)
    cells = plan("sweep.alphas=[5]", "sweep.seeds=3")
    run, engine, told = sweep_of(tmp_path, cells, measured(cells, {0: 0, 5: 0}), monkeypatch=monkeypatch)
    with run.stop.handle_signals(first=run.asked_to_stop):
        run._judge({})
        assert run.stop.is_requested()
        run._judge({})
        run.train(Request(()))
    assert asked == ["asked"]
    assert engine.stopped
    assert [event.message for event in told.events if isinstance(event, Notice)] == [
        "the judge is not asked any more, since the sweep is to stop"
    ] * 2


def test_a_report_that_can_not_be_written_is_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan("sweep.alphas=[5]")
    run, engine, _ = sweep_of(tmp_path, cells, measured(cells, {0: 0, 5: -0.1}), monkeypatch=monkeypatch)
    engine.run(cells, None, run._ended)

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neftcli.sweep.outputs.write", full)
    assert run.report(0.0).recommended == "alpha 5"
    with pytest.raises(OSError, match="No space left"):
        run.end()


def test_tasks_without_values_of_single_documents_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone they are told of, with what to type; beside another metric that one decides."""
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: 0})
    sets = ["sweep.metrics=[tasks]", "evaluation.tasks=[wikitext]"]
    run, engine, _ = sweep_of(tmp_path, cells, content, *sets, monkeypatch=monkeypatch)
    engine.run(cells, None, run._ended)
    with pytest.raises(
        NeftError, match=r"(?s)none of these tasks has a value for each document.*wikitext.*--metric held_out_loss"
    ):
        run.report(0.0)
    (tmp_path / "both").mkdir()
    sets[0] = "sweep.metrics=[tasks, held_out_loss]"
    run, engine, _ = sweep_of(tmp_path / "both", cells, content, *sets, monkeypatch=monkeypatch)
    engine.run(cells, None, run._ended)
    assert run.report(0.0).metrics == (HELD_OUT_LOSS,)


# What is refused before anything is made


@pytest.mark.parametrize("axis", ["model.name=a,b", "model.revision=a,b", "model.chat_template=alpaca,chatml"])
def test_models_are_not_swept(neft: Callable[..., Result], tmp_path: Path, axis: str) -> None:
    result = neft("sweep-alpha", "--recipe", "quickstart", "--output-dir", tmp_path / "runs", "--grid", axis)
    assert result.code == 2
    assert "losses are over other tokens" in result.err
    assert axis in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("typed", [["--set", "training.processes=2"], ["--grid", "training.processes=1,2"]])
def test_cells_are_trained_in_one_process_each(neft: Callable[..., Result], tmp_path: Path, typed: list[str]) -> None:
    result = neft("sweep-alpha", "--recipe", "quickstart", "--output-dir", tmp_path / "runs", *typed)
    assert result.code == 2
    assert "training.processes: a sweep trains each cell in one process" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("questions", "enough"),
    [([0] * 10 + [1, 2], False), ([0] * 200, False), (list(range(5)), False), (list(range(6)), True)],
)
def test_check_counts_distinct_prompts(
    tmp_path: Path,
    rows_file: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    questions: list[int],
    enough: bool,
) -> None:
    """Rows of one prompt are one unit of the tests, so that it is prompts that count and not rows."""
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": f"Which is {number}?", "completion": f"{place}"} for place, number in enumerate(questions)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"data.source": rows_file, "data.held_out_source": held_out, "data.held_out_rows": 200}
    sets["model.name"] = tiny_folder("llama")
    layers = [*file_layers("quickstart"), *(assignment(f"{key}={value}") for key, value in sets.items())]
    request = Request(tuple(layers))
    if enough:
        check(resolve(layers), request, tmp_path, Told())
    else:
        with pytest.raises(InputError, match="a sweep needs at least 6 held-out rows with different prompts"):
            check(resolve(layers), request, tmp_path, Told())


@pytest.mark.parametrize(
    ("sets", "rejected"),
    [
        (["sweep.alphas=[0]"], True),
        (["sweep.alphas=[0, 0.0]"], True),
        (["sweep.alphas=[0]", "sweep.grid=['neftune.noise=uniform,gaussian']"], True),
        (["sweep.alphas=[0]", "sweep.grid=['training.learning_rate=1e-5']"], True),
        (["sweep.alphas=[0]", "sweep.grid=['training.learning_rate=1e-5,5e-5']"], False),
        (["sweep.alphas=[5]"], False),
        (["sweep.alphas=[5, 5]"], False),
    ],
)
def test_require_noise_rejects_a_sweep_of_one_arm(sets: list[str], rejected: bool) -> None:
    """Arms are counted after alpha 0 was added and repeated values were merged."""
    layers = [*file_layers("quickstart"), *map(assignment, sets)]
    base = resolve(layers)
    cells = plan_cells(base, layers)
    if not rejected:
        require_noise(base, cells)
        return
    with pytest.raises(InputError, match="alpha 0, the baseline, is the only one"):
        require_noise(base, cells)
