"""A cell in this process: what is kept of it when something goes wrong, and what is not believed.

Oracles: the files of the same cell that nothing disturbed, and a trainer that must not be called.
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
from neftcli.sweep.cell_runs import EVALUATION, CellRuns, evaluation_key, read_evaluation
from neftcli.sweep.engines.worker import failed_outcome
from neftcli.training.assets import AssetCache
from neftcli.training.signals import StopSignal
from neftcli.training.train import train


class Told:
    """Keeps what it is told, and asks for a stop at the first event of a kind."""

    def __init__(self, stops_at: type[object] | None = None) -> None:
        self.events: list[Event] = []
        self._stops_at = stops_at

    def notify(self, event: Event) -> None:
        """Keeps one."""
        self.events.append(event)

    def asked(self) -> bool:
        """Whether such an event came."""
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


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing may be trained."""

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("neftcli.training.train.train", fail)


def numbers(run: RunDirectory) -> dict[str, Any]:
    """What was measured, without how long that took."""
    content: dict[str, Any] = json.loads((run.path / EVALUATION).read_text())
    content.pop("seconds")
    return content


@pytest.mark.slow
@pytest.mark.parametrize("error", [InputError(Problem("no such task")), NeftError("x"), ValueError("a fault")])
def test_what_fails_behind_the_training_leaves_a_finished_run(error: Exception, recipe: Recipe) -> None:
    def on_finish(*_found: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        train(recipe, Told(), on_finish=on_finish)
    run = CellRuns(Path(recipe.output_dir)).finished(recipe_fingerprint(recipe))
    assert run is not None
    assert not run.checkpoints.exists()


@pytest.mark.slow
def test_the_losses_of_the_last_evaluation_are_not_computed_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they are the same numbers as those of the saved run, the next test shows."""
    monkeypatch.setattr("neftcli.evaluation.measurement.iter_losses", lambda *_arguments: 1 / 0)
    run = RunDirectory(Path(run_cell(recipe, AssetCache(), Told(), StopSignal())))
    losses = numbers(run)["metrics"]["held_out_loss"]
    record = json.loads((run.path / "run.json").read_text())
    mean = sum(losses["values"]) / sum(losses["weights"])  # nats of each row, and its tokens with loss
    assert mean == pytest.approx(record["results"]["held_out_loss"], rel=1e-12)


@pytest.mark.slow
def test_a_cell_whose_measuring_failed_is_only_measured_and_to_the_same_numbers(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it failed, once it was stopped behind its first losses, twice its file was spoilt; each is mended."""
    folder = run_cell(recipe, AssetCache(), Told(), StopSignal())
    run, asset_cache = RunDirectory(Path(folder)), AssetCache()
    undisturbed = numbers(run)
    untrained(monkeypatch)
    for spoilt in ("", "{", "[]", json.dumps({"settings": evaluation_key(recipe)})):
        (run.path / EVALUATION).write_text(spoilt)
        assert read_evaluation(run, recipe) is None
    for store in (run.path / "evaluation").glob("*.jsonl"):
        store.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ModelEvaluator, "run", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_cell(recipe, asset_cache, Told(), StopSignal())
    told = Told(stops_at=PhaseProgress)
    with pytest.raises(Preempted):
        run_cell(recipe, asset_cache, told, StopSignal(told.asked))
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"
    told = Told()
    assert run_cell(recipe, asset_cache, told, StopSignal()) == folder
    assert numbers(run) == undisturbed
    assert told.events.count(CellEvaluationStarted()) == 1
    assert Phase(PhaseId.LOADING_MODEL) not in told.events, "the base model is not loaded"


@pytest.mark.slow
def test_a_cells_own_recipe_does_not_say_whether_code_runs(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's finished cell, not measured, by a recipe that trusts."""
    run = RunDirectory(Path(run_cell(recipe, AssetCache(), Told(), StopSignal())))
    (run.path / EVALUATION).unlink()
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    trusted: list[bool] = []
    load = ModelEvaluator.__init__

    def watched(self: ModelEvaluator, subject: Any, *arguments: Any, **named: Any) -> None:
        trusted.append(subject.recipe.model.trust_remote_code)
        load(self, subject, *arguments, **named)

    monkeypatch.setattr(ModelEvaluator, "__init__", watched)
    run_cell(recipe, AssetCache(), Told(), StopSignal())
    assert trusted == [False]


@pytest.mark.parametrize("place", ["settings", "prompts", "references", "answers", "metrics"])
def test_a_damaged_file_of_numbers_counts_as_none(place: str, recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "evaluation").mkdir()
    whole: dict[str, Any] = {
        "settings": evaluation_key(recipe),
        "prompts": ["a"],
        "references": ["b"],
        "answers": ["c"],
        "metrics": {"loss": {"direction": "lower", "values": [1.0], "weights": None}},
    }
    run.write_json(EVALUATION, whole)
    assert read_evaluation(run, recipe) == whole
    run.write_json(EVALUATION, {key: value for key, value in whole.items() if key != place})
    assert read_evaluation(run, recipe) is None
    run.write_json(EVALUATION, whole | {place: 5})
    assert read_evaluation(run, recipe) is None
    run.write_json(EVALUATION, whole | {"metrics": {"loss": [1.0]}})
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
def test_only_a_fault_is_tried_again(error: Exception, again: bool) -> None:
    outcome = failed_outcome(error)
    assert (outcome.status, outcome.may_retry) == ("failed", again)
    assert outcome.problems


def stopped_cell(recipe: Recipe) -> RunDirectory:
    """A run of the cell's recipe that was stopped behind its first update."""
    saving = replace(recipe, checkpoints=replace(recipe.checkpoints, save_steps=1))
    with pytest.raises(Preempted):
        run_cell(saving, AssetCache(), Told(), AfterUpdate())
    [run] = [RunDirectory(path.parent) for path in Path(recipe.output_dir).glob("*/run.json")]
    assert list(run.checkpoints.glob("*/manifest.json"))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("stops_at", "statuses"), [(None, []), (Phase, []), (DataReady, ["preempted"])])
def test_a_cell_that_is_to_stop_does_no_update_and_leaves_nothing_to_go_on_with(
    stops_at: type[object] | None, statuses: list[str], recipe: Recipe
) -> None:
    """A worker is told so by no signal: before the cell is begun, while it reads, and while its model is loaded."""
    told, cells = Told(stops_at), Path(recipe.output_dir)
    with pytest.raises(Preempted):
        run_cell(recipe, AssetCache(), told, StopSignal(told.asked if stops_at else lambda: True))
    assert not [event for event in told.events if isinstance(event, TrainingProgress)]
    assert [json.loads(file.read_text())["status"] for file in cells.glob("*/run.json")] == statuses
    assert CellRuns(cells).find_resume_state(recipe_fingerprint(recipe), recipe) is None
    assert not list(cells.glob("*"))


class AfterUpdate(StopSignal):
    """Asks for a stop as soon as an update is being done."""

    def is_requested(self) -> bool:
        """Whether updates have begun."""
        return self.in_training


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_left_alone(recipe: Recipe) -> None:
    run = stopped_cell(recipe)
    for checkpoint in run.checkpoints.iterdir():  # nothing to go on from: it would be taken away
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
def test_a_run_with_damaged_checkpoints_stays_and_the_cell_begins_in_another_folder(recipe: Recipe) -> None:
    run, told = stopped_cell(recipe), Told()
    for manifest in run.checkpoints.glob("*/manifest.json"):
        manifest.write_text(manifest.read_text() + "x")
    again = run_cell(recipe, AssetCache(), told, StopSignal())
    assert again == f"{run.path}-2"
    assert list(run.checkpoints.glob("*/manifest.json"))
    said = " ".join(event.message for event in told.events if isinstance(event, Notice))
    assert "none of its checkpoints is valid" in said
    assert f"{run.path} is kept, and the cell starts again in a new folder" in said
    found = CellRuns(run.path.parent).finished(recipe_fingerprint(recipe))
    assert found is not None
    assert str(found.path) == again


@pytest.mark.slow
def test_a_run_that_was_begun_with_other_probe_rows_is_not_gone_on_with(recipe: Recipe) -> None:
    run, told = stopped_cell(recipe), Told()
    other = replace(recipe, evaluation=replace(recipe.evaluation, probe_rows=3))
    assert recipe_fingerprint(other) == recipe_fingerprint(recipe)
    assert run_cell(other, AssetCache(), told, StopSignal()) == f"{run.path}-2"
    messages = [event.message for event in told.events if isinstance(event, Notice)]
    assert any("started with a different evaluation.probe_rows" in message for message in messages)
