"""Runs on their way to a node and back.

Oracles: the files of the run that was sent, and manifests that verify.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from neftcli.recipe.loading import assignment, fingerprint, load_recipe, to_yaml
from neftcli.recipe.schema import Recipe
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.cell import MEASURED, measured, settings_key
from neftcli.sweep.engines.transfer import (
    ARRIVING,
    WORKPLACE,
    arrived,
    begun_run,
    for_a_node,
    name_the_recipe,
    packed,
    unpacked,
    workplace,
)
from tests.checkpoint import FACTS, write_trainer_state
from tests.conftest import new_run


@pytest.fixture
def recipe(rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that names rows, a model and a task by paths that lead nowhere on a node."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "letters.yaml").write_text("task: letters\n")
    sets = {"data.source": rows_file, "model.name": "model", "evaluation.tasks": "[letters.yaml, arc_easy]"}
    return load_recipe("quickstart", [assignment(f"{key}={value}") for key, value in sets.items()])


def begun(cells: Path, recipe: Recipe, status: str) -> RunDirectory:
    """A run of the recipe with all in it that names a recipe."""
    run = new_run(cells, recipe.run_name())
    run.write_text("recipe.yaml", to_yaml(recipe))
    run.write_json("run.json", {"status": status, "recipe_sha256": fingerprint(recipe)})
    run.model.mkdir()
    save_file({"weight": torch.arange(3)}, run.model / "model.safetensors")
    (run.model / "README.md").write_text(f"{fingerprint(recipe)}, of {recipe.data.source}\n")
    (run.path / "evaluation").mkdir()
    empty: dict[str, object] = {"prompts": [], "references": [], "answers": [], "metrics": {}}
    run.write_json(MEASURED, {"settings": settings_key(recipe), **empty})
    for step in (2, 4):
        checkpoints = Checkpoints(run.checkpoints, 5)
        checkpoints.place(step).mkdir(parents=True)
        (checkpoints.place(step) / "recipe.yaml").write_text(to_yaml(recipe))
        (checkpoints.place(step) / "weights.bin").write_bytes(b"weights")
        write_trainer_state(checkpoints.place(step), step)
        checkpoints.publish(step, {**FACTS, "recipe_sha256": fingerprint(recipe), "processes": 1})
    return run


def content(run: RunDirectory) -> dict[str, bytes]:
    return {str(file.relative_to(run.path)): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def test_a_node_finds_files_by_their_content_and_task_files_by_their_whole_path(
    recipe: Recipe, rows_file: Path, tmp_path: Path
) -> None:
    there, files = for_a_node(recipe)
    assert there.evaluation.tasks == (str(tmp_path / "letters.yaml"), "arc_easy")
    assert there.model.name == str(tmp_path / "model")
    assert files == {there.data.source: rows_file}
    assert not Path(there.data.source).is_absolute()


@pytest.mark.parametrize("status", ["finished", "preempted"])
def test_a_run_that_goes_and_comes_back_is_the_same(status: str, recipe: Recipe, tmp_path: Path) -> None:
    """But for older checkpoints; on the node it is one of the node's recipe, by the node's settings."""
    there, _ = for_a_node(recipe)
    run = begun(tmp_path / "cells", recipe, status)
    before = content(run)
    unpacked(packed(run.path), tmp_path / "node" / "cells" / run.path.name)
    sent = begun_run(tmp_path / "node" / "cells", recipe)
    assert sent is not None
    name_the_recipe(sent, there, recipe)
    assert content(run) == before
    again = begun_run(tmp_path / "node" / "cells", there)
    assert again is not None
    assert again.path == sent.path
    assert measured(sent, there) is not None
    newest, passed_over = Checkpoints(sent.checkpoints, 5).newest()
    assert newest is not None
    assert (newest.step, newest.manifest["recipe_sha256"], passed_over) == (4, fingerprint(there), [])
    assert recipe.data.source not in b"".join(content(sent).values()).decode()
    name_the_recipe(sent, recipe, there)
    place = arrived(packed(sent.path), sent.path.name, tmp_path, recipe)
    assert place == run.path
    older = [name for name in before if "checkpoint-2" in name]
    assert older
    assert content(run) == {name: held for name, held in before.items() if name not in older}
    assert [one.name for one in (tmp_path / "cells").iterdir()] == [run.path.name]
    assert not list(tmp_path.glob(f"{ARRIVING}*"))


def test_a_run_that_arrives_takes_no_others_place(recipe: Recipe, tmp_path: Path) -> None:
    """Neither that of one whose checkpoints are damaged, nor that of one that another process trains."""
    damaged = begun(tmp_path / "cells", recipe, "preempted")
    tar = packed(damaged.path)
    for manifest in damaged.checkpoints.glob("*/manifest.json"):
        manifest.write_text(manifest.read_text() + "x")
    kept = content(damaged)
    first = RunDirectory(arrived(tar, damaged.path.name, tmp_path, recipe))
    assert first.path.name == f"{damaged.path.name}-2"
    with first.lock():
        second = arrived(tar, damaged.path.name, tmp_path, recipe)
        assert (first.path / "run.json").is_file()
    assert second.name == f"{damaged.path.name}-3"
    assert content(damaged) == kept
    third = arrived(tar, damaged.path.name, tmp_path, recipe)  # nobody holds the others now
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {damaged.path.name, third.name}
    assert content(damaged) == kept


def test_what_is_not_there_yet_and_what_was_measured_otherwise_is_left(recipe: Recipe, tmp_path: Path) -> None:
    there, _ = for_a_node(recipe)
    other = replace(recipe, sweep=replace(recipe.sweep, answers=False))
    run = begun(tmp_path / "cells", recipe, "finished")
    name_the_recipe(run, there, other)
    assert json.loads((run.path / MEASURED).read_text())["settings"] == settings_key(recipe)
    bare = new_run(tmp_path / "cells", "bare")
    bare.write_json("run.json", {"status": "running", "recipe_sha256": fingerprint(recipe)})
    name_the_recipe(bare, there, recipe)
    assert sorted(content(bare)) == ["recipe.yaml", "run.json"]


def test_a_run_that_can_not_be_put_in_place_costs_none_that_is_there(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every rename, by an error in its place: the old run or the new one is whole among the cells."""
    run = begun(tmp_path / "cells", recipe, "finished")
    before, tar = content(run), packed(run.path)

    rename = Path.rename
    for last in (1, 2):
        calls = count(1)

        def fail(path: Path, target: Path, *, calls: Iterator[int] = calls, last: int = last) -> Path:
            if next(calls) == last:
                raise OSError(5, "Input/output error")
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(OSError, match="Input/output"):
                arrived(tar, run.path.name, tmp_path, recipe)
        found = begun_run(tmp_path / "cells", recipe)
        assert found is not None
        assert content(found) == before


def test_what_a_killed_task_left_goes_and_what_another_holds_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, held, young = (tmp_path / f"{WORKPLACE}{name}" for name in ("left", "held", "young"))
    for folder in (left, held, young):
        folder.mkdir()
        (folder / ".lock").touch()
    for folder in (left, held):
        os.utime(folder, (time.time() - 3600,) * 2)
    with FileLock(held / ".lock"), workplace() as folder:
        os.utime(held, (time.time() - 3600,) * 2)
        assert {place.name for place in tmp_path.iterdir()} == {held.name, young.name, folder.name}
    assert {place.name for place in tmp_path.iterdir()} == {held.name, young.name}
