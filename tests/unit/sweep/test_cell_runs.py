"""Runs in a sweep's folder.

Oracles: planted records, and the number of times that each is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neftcli.events import Notice
from neftcli.recipe.schema import Recipe
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.cell_runs import CellRuns, evaluation_key, name_some, report_left_out
from neftcli.sweep.plan import Cell
from tests.conftest import new_run
from tests.unit.sweep.planted import plan


def planted_runs(folder: Path, *sets: str) -> list[Cell]:
    """Return the cells of a sweep, each with a finished run without a model."""
    cells = plan(*sets)
    for cell in cells:
        run = new_run(folder, cell.recipe.run_name())
        run.write_json("run.json", {"status": "finished", "recipe_sha256": cell.key})
    return cells


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of times that each record is read."""
    counts = Counter[str]()
    record = RunDirectory.record

    def counted(run: RunDirectory) -> object:
        counts[run.path.name] += 1
        return record(run)

    monkeypatch.setattr(RunDirectory, "record", counted)
    return counts


def test_cell_runs_reads_each_record_once(tmp_path: Path, reads: Counter[str]) -> None:
    cells = planted_runs(tmp_path, "sweep.alphas=[5, 10, 15]", "sweep.seeds=4")
    runs = CellRuns(tmp_path)
    assert [runs.state(cell).status for cell in cells] == ["waiting"] * len(cells)
    assert [runs.finished(cell.key) for cell in cells] == [None] * len(cells)
    assert runs.finished_others([]) == sorted(cell.recipe.run_name() for cell in cells)
    assert reads == Counter({cell.recipe.run_name(): 1 for cell in cells})


def test_report_left_out(tmp_path: Path) -> None:
    cells = planted_runs(tmp_path, "sweep.alphas=[5]", "sweep.seeds=2")
    (tmp_path / cells[1].recipe.run_name() / "run.json").write_text("{}")
    events: list[object] = []

    class Observer:
        def notify(self, event: object) -> None:
            events.append(event)

    report_left_out(CellRuns(tmp_path), cells[:3], Observer())
    last, damaged = cells[3].recipe.run_name(), cells[1].recipe.run_name()
    assert events == [
        Notice(f"left out, not part of this sweep: {last}, finished earlier"),
        Notice(f"left out, run.json is damaged: {damaged}; their cells are trained again"),
    ]


def test_name_some() -> None:
    assert name_some(["a", "b"]) == "a, b"
    assert name_some(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_evaluation_key_covers_the_content_of_task_files(tmp_path: Path) -> None:
    """A cell whose task file, or a file that it includes, was edited is evaluated again."""
    file = tmp_path / "letters.yaml"

    def key() -> str:
        evaluation = replace(Recipe().evaluation, tasks=("arc_easy", str(file)))
        return evaluation_key(replace(Recipe(), evaluation=evaluation))

    missing = key()
    file.write_text("task: letters")
    first = key()
    assert first == key() != missing
    file.write_text("task: other")
    assert key() not in (first, missing)
    file.write_text("task: letters\ninclude: common\n")
    without_include = key()
    (tmp_path / "common").write_text("output_type: multiple_choice\n")
    with_include = key()
    (tmp_path / "common").write_text("output_type: generate_until\n")
    assert len({without_include, with_include, key()}) == 3


def test_find_resume_state_reads_the_record_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a former worker finishes before this process has the lock is neither removed nor trained again."""
    cells = planted_runs(tmp_path, "sweep.alphas=[5]")
    cell = cells[0]
    run = RunDirectory(tmp_path / cell.recipe.run_name())
    run.model.mkdir()
    save_file({"weight": torch.zeros(1)}, run.model / "model.safetensors")
    finished = run.record()
    run.write_json("run.json", {**finished, "status": "running"})
    runs = CellRuns(tmp_path)
    lock = RunDirectory.lock

    @contextmanager
    def lock_late(directory: RunDirectory) -> Iterator[None]:
        directory.write_json("run.json", finished)
        with lock(directory):
            yield

    monkeypatch.setattr(RunDirectory, "lock", lock_late)
    assert runs.finished(cell.key) is None
    assert runs.find_resume_state(cell.key, cell.recipe) is None
    found = runs.finished(cell.key)
    assert found is not None
    assert found.path == run.path
