"""The run that a run is compared with, before and after it is trained.

Oracle: the folders that `RunDirectory.assign_name` makes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.schema import Neftune, Recipe, Training
from neftcli.runs.baseline import find_paired_run
from neftcli.runs.directory import RunDirectory
from tests.conftest import new_run


def finish(recipe: Recipe, status: str = "finished") -> RunDirectory:
    """Makes a run that says that it is done."""
    run = new_run(Path(recipe.output_dir), recipe.run_name())
    run.write_json("run.json", {"status": status, "recipe_sha256": recipe_fingerprint(recipe)})
    return run


@pytest.fixture
def noisy(tmp_path: Path) -> Recipe:
    return Recipe(name="r", output_dir=str(tmp_path))


@pytest.fixture
def plain(noisy: Recipe) -> Recipe:
    return replace(noisy, neftune=Neftune(alpha=0.0))


def test_find_paired_run_before_it_is_trained(noisy: Recipe, plain: Recipe) -> None:
    found = find_paired_run(noisy, Path(noisy.output_dir))
    assert (found.alpha, found.exists) == (0.0, False)
    assert found.run == str(finish(plain).path)


def test_find_paired_run_finished(noisy: Recipe, plain: Recipe) -> None:
    """The run is found although others of its name have another recipe, were stopped, or are damaged."""
    finish(replace(plain, training=Training(seed=0, learning_rate=1.0)))
    finish(plain, "preempted")
    finish(plain).write_text("run.json", "[")
    run = finish(plain)
    assert run.path.name == "r-a0-s0-4"
    found = find_paired_run(noisy, Path(noisy.output_dir))
    assert (found.run, found.exists) == (str(run.path), True)


def test_find_paired_run_of_a_baseline(noisy: Recipe, plain: Recipe) -> None:
    run = finish(noisy)
    found = find_paired_run(plain, Path(plain.output_dir))
    assert (found.run, found.alpha, found.exists) == (str(run.path), 5.0, True)
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"
