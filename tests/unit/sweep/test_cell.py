"""Cells in this process: failures, stops and damaged files.

Oracles: the files of the same cell without failures, and a trainer that must not be called.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError, NeftError, Preempted, Problem, RunLockedError
from neftcli.evaluation.measurement import ModelEvaluator
from neftcli.events import (
    CellEvaluationStarted,
    DataReady,
    Event,
    Notice,
    Phase,
    PhaseId,
    PhaseProgress,
    TrainingProgress,
)
from neftcli.recipe.loading import load_recipe, parse_assignment, recipe_fingerprint
from neftcli.recipe.schema import Recipe
from neftcli.runs.directory import RunDirectory, remove_incomplete_runs
from neftcli.sweep.cell import run_cell
from neftcli.sweep.cell_runs import CELL_METRICS, CellRuns, evaluation_key, read_evaluation
from neftcli.sweep.engines.worker import failed_outcome
from neftcli.training.assets import AssetCache
from neftcli.training.signals import StopSignal
from neftcli.training.train import train


class RecordingObserver:
    """Observer that stores all events, and requests a stop at the first event of a kind."""

    def __init__(self, stops_at: type[object] | None = None) -> None:
        self.events: list[Event] = []
        self._stops_at = stops_at

    def notify(self, event: Event) -> None:
        """Store an event."""
        self.events.append(event)

    def is_stop_requested(self) -> bool:
        """Return whether an event of the kind was received."""
        return self._stops_at is not None and any(isinstance(event, self._stops_at) for event in self.events)


@pytest.fixture
def recipe(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> Recipe:
    sets = {
        "model.name": tiny_folder("llama"),
        "data.source": rows_file,
        "output_dir": tmp_path / "cells",
        "training.max_steps": 2,
        "training.precision": "float32",
        "evaluation.samples": 0,
        "evaluation.probe_rows": 0,
        "evaluation.generation.max_new_tokens": 3,
    }
    return load_recipe("quickstart", [parse_assignment(f"{key}={value}") for key, value in sets.items()])


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any training from now on fail."""

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("neftcli.training.train.train", fail)


def read_values(run: RunDirectory) -> dict[str, Any]:
    """Return the evaluation of a cell without its duration."""
    content: dict[str, Any] = json.loads((run.path / CELL_METRICS).read_text())
    content.pop("seconds")
    return content


@pytest.mark.slow
@pytest.mark.parametrize("error", [InputError(Problem("no such task")), NeftError("x"), ValueError("a fault")])
def test_train_on_finish_failure_leaves_a_finished_run(error: Exception, recipe: Recipe) -> None:
    def on_finish(*_found: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        train(recipe, RecordingObserver(), on_finish=on_finish)
    run = CellRuns(Path(recipe.output_dir)).finished(recipe_fingerprint(recipe))
    assert run is not None
    assert not run.checkpoints.exists()


@pytest.mark.slow
def test_run_cell_reuses_the_last_losses(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the record; the next test compares them with those of the saved run."""
    monkeypatch.setattr("neftcli.evaluation.measurement.iter_losses", lambda *_arguments: 1 / 0)
    run = RunDirectory(Path(run_cell(recipe, AssetCache(), RecordingObserver(), StopSignal())))
    losses = read_values(run)["metrics"]["held_out_loss"]
    record = json.loads((run.path / "run.json").read_text())
    mean = sum(losses["values"]) / sum(losses["weights"])  # nats of each row, and its tokens with loss
    assert mean == pytest.approx(record["results"]["held_out_loss"], rel=1e-12)


@pytest.mark.slow
def test_run_cell_only_evaluates_a_finished_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """After damaged files, a failure and a stop the cell is evaluated with the same values, without training."""
    folder = run_cell(recipe, AssetCache(), RecordingObserver(), StopSignal())
    run, asset_cache = RunDirectory(Path(folder)), AssetCache()
    expected = read_values(run)
    forbid_training(monkeypatch)
    for damaged in ("", "{", "[]", json.dumps({"settings": evaluation_key(recipe)})):
        (run.path / CELL_METRICS).write_text(damaged)
        assert read_evaluation(run, recipe) is None
    for store in (run.path / "evaluation").glob("*.jsonl"):
        store.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ModelEvaluator, "run", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_cell(recipe, asset_cache, RecordingObserver(), StopSignal())
    observer = RecordingObserver(stops_at=PhaseProgress)
    with pytest.raises(Preempted):
        run_cell(recipe, asset_cache, observer, StopSignal(observer.is_stop_requested))
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"
    observer = RecordingObserver()
    assert run_cell(recipe, asset_cache, observer, StopSignal()) == folder
    assert read_values(run) == expected
    assert observer.events.count(CellEvaluationStarted()) == 1
    assert Phase(PhaseId.LOADING_MODEL) not in observer.events, "the base model is not loaded"


@pytest.mark.slow
def test_run_cell_does_not_trust_the_runs_recipe(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved recipe of a finished, unevaluated cell trusts remote code; that doesn't count."""
    run = RunDirectory(Path(run_cell(recipe, AssetCache(), RecordingObserver(), StopSignal())))
    (run.path / CELL_METRICS).unlink()
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    trusted: list[bool] = []
    load = ModelEvaluator.__init__

    def init(self: ModelEvaluator, subject: Any, *arguments: Any, **named: Any) -> None:
        trusted.append(subject.recipe.model.trust_remote_code)
        load(self, subject, *arguments, **named)

    monkeypatch.setattr(ModelEvaluator, "__init__", init)
    run_cell(recipe, AssetCache(), RecordingObserver(), StopSignal())
    assert trusted == [False]


@pytest.mark.parametrize("place", ["settings", "prompts", "references", "answers", "metrics"])
def test_read_evaluation_damaged_file(place: str, recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "evaluation").mkdir()
    whole: dict[str, Any] = {
        "settings": evaluation_key(recipe),
        "prompts": ["a"],
        "references": ["b"],
        "answers": ["c"],
        "metrics": {"loss": {"direction": "lower", "values": [1.0], "weights": None}},
    }
    run.write_json(CELL_METRICS, whole)
    assert read_evaluation(run, recipe) == whole
    run.write_json(CELL_METRICS, {key: value for key, value in whole.items() if key != place})
    assert read_evaluation(run, recipe) is None
    run.write_json(CELL_METRICS, whole | {place: 5})
    assert read_evaluation(run, recipe) is None
    run.write_json(CELL_METRICS, whole | {"metrics": {"loss": [1.0]}})
    assert read_evaluation(run, recipe) is None


def test_find_resume_state_removes_links_not_their_targets(tmp_path: Path) -> None:
    cells, outside = tmp_path / "cells", tmp_path / "outside"
    cells.mkdir()
    for name, record in (("unborn", None), ("unfinished", {"recipe_sha256": "k", "status": "running"})):
        (outside / name).mkdir(parents=True)
        if record:
            (outside / name / "run.json").write_text(json.dumps(record))
        (cells / name).symlink_to(outside / name)
    remove_incomplete_runs(cells)
    assert sorted(link.name for link in cells.iterdir()) == ["unborn", "unfinished"]
    assert CellRuns(cells).find_resume_state("k", Recipe()) is None
    assert [link.name for link in cells.iterdir()] == ["unborn"]
    assert (outside / "unborn").is_dir()
    assert (outside / "unfinished" / "run.json").is_file()


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), False),
        (NeftError("said"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (ValueError("a fault"), True),
    ],
)
def test_describe_error_retry(error: Exception, again: bool) -> None:
    outcome = failed_outcome(error)
    assert (outcome.status, outcome.may_retry) == ("failed", again)
    assert outcome.problems


def stopped_cell(recipe: Recipe) -> RunDirectory:
    """Return a run of the cell's recipe that was preempted after its first step."""
    saving = replace(recipe, checkpoints=replace(recipe.checkpoints, save_steps=1))
    with pytest.raises(Preempted):
        run_cell(saving, AssetCache(), RecordingObserver(), StopInTraining())
    [run] = [RunDirectory(path.parent) for path in Path(recipe.output_dir).glob("*/run.json")]
    assert list(run.checkpoints.glob("*/manifest.json"))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("stops_at", "statuses"), [(None, []), (Phase, []), (DataReady, ["preempted"])])
def test_run_cell_stop_before_training_leaves_nothing(
    stops_at: type[object] | None, statuses: list[str], recipe: Recipe
) -> None:
    """A stop is requested before the cell starts, while rows are read, and while the model is loaded."""
    observer, cells = RecordingObserver(stops_at), Path(recipe.output_dir)
    with pytest.raises(Preempted):
        run_cell(recipe, AssetCache(), observer, StopSignal(observer.is_stop_requested if stops_at else lambda: True))
    assert not [event for event in observer.events if isinstance(event, TrainingProgress)]
    assert [json.loads(file.read_text())["status"] for file in cells.glob("*/run.json")] == statuses
    assert CellRuns(cells).find_resume_state(recipe_fingerprint(recipe), recipe) is None
    assert not list(cells.glob("*"))


class StopInTraining(StopSignal):
    """Requests a stop as soon as training has begun."""

    def is_requested(self) -> bool:
        """Return whether training has begun."""
        return self.in_training


@pytest.mark.slow
def test_find_resume_state_run_of_another_process(recipe: Recipe) -> None:
    run = stopped_cell(recipe)
    for checkpoint in run.checkpoints.iterdir():  # nothing to resume from: the run would be removed
        shutil.rmtree(checkpoint)
    script = (
        "import sys, pathlib; from neftcli.runs.directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunLockedError, match="another process is training this run"):
            CellRuns(run.path.parent).find_resume_state(recipe_fingerprint(recipe), recipe)
        for path in run.path.iterdir():
            if path.name not in (".lock", "recipe.yaml"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        remove_incomplete_runs(run.path.parent)
        assert other.stdin is not None
        other.stdin.close()
    assert run.path.is_dir()
    remove_incomplete_runs(run.path.parent)
    assert not run.path.exists()


@pytest.mark.slow
def test_run_cell_keeps_a_run_with_damaged_checkpoints(recipe: Recipe) -> None:
    run, observer = stopped_cell(recipe), RecordingObserver()
    for manifest in run.checkpoints.glob("*/manifest.json"):
        manifest.write_text(manifest.read_text() + "x")
    again = run_cell(recipe, AssetCache(), observer, StopSignal())
    assert again == f"{run.path}-2"
    assert list(run.checkpoints.glob("*/manifest.json"))
    messages = " ".join(event.message for event in observer.events if isinstance(event, Notice))
    assert "none of its checkpoints is valid" in messages
    assert f"{run.path} is kept, and the cell starts again in a new folder" in messages
    found = CellRuns(run.path.parent).finished(recipe_fingerprint(recipe))
    assert found is not None
    assert str(found.path) == again


@pytest.mark.slow
def test_run_cell_does_not_resume_with_different_probe_rows(recipe: Recipe) -> None:
    run, observer = stopped_cell(recipe), RecordingObserver()
    other = replace(recipe, evaluation=replace(recipe.evaluation, probe_rows=3))
    assert recipe_fingerprint(other) == recipe_fingerprint(recipe)
    assert run_cell(other, AssetCache(), observer, StopSignal()) == f"{run.path}-2"
    messages = [event.message for event in observer.events if isinstance(event, Notice)]
    assert any("started with a different evaluation.probe_rows" in message for message in messages)
