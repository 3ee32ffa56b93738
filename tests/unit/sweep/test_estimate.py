"""The arithmetic of how long a sweep will take.

Oracles: equalities that hold for any costs (twice the cells take twice as long but for one start), the trainer's own
callback for how often it evaluates, and cells on disk whose seconds are known.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from neftcli import events
from neftcli.cli.display import format
from neftcli.errors import NeftError
from neftcli.recipe.loading import resolve
from neftcli.recipe.schema import Evaluation, Generation, Recipe, Sweep
from neftcli.recipe.yaml_file import Setting
from neftcli.sweep import estimate as module
from neftcli.sweep import timing_probe as probing
from neftcli.sweep.cell import settings_key
from neftcli.sweep.cell_costs import BEGUN, Costs, evaluations
from neftcli.sweep.estimate import Job, estimate, spread, way
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.training.progress import EvaluationSchedule

seconds = st.integers(0, 10_000).map(float)
jobs = st.lists(st.builds(Job, seconds, st.just(7.0), st.just("same")), min_size=1, max_size=12)


class Silent:
    """Watches and says nothing."""

    def notify(self, event: events.Event) -> None:
        """Nothing."""


# The whole of it.


@given(jobs)
def test_twice_the_cells_take_twice_as_long_but_for_one_start(jobs: list[Job]) -> None:
    assert spread(jobs + jobs, 1) == 2 * spread(jobs, 1) - 7


@given(jobs, st.integers(1, 5))
def test_workers_share_and_none_waits_while_cells_are_left(jobs: list[Job], workers: int) -> None:
    """Between the bounds of any schedule that leaves no worker idle."""
    work, longest = sum(job.seconds for job in jobs), max(job.seconds for job in jobs)
    found = spread(jobs, workers)
    assert max(work / workers, longest) <= found <= 7 + work / workers + longest + 1e-6
    assert spread(jobs, 1) == 7 + work
    assert spread(jobs, len(jobs) + workers) == 7 + longest


@given(seconds, st.integers(1, 6), st.integers(1, 4))
def test_like_cells_are_divided_among_the_workers(each: float, rounds: int, workers: int) -> None:
    assert spread([Job(each, 7.0, "same")] * (rounds * workers), workers) == 7 + rounds * each


def test_what_the_grid_changes_is_loaded_again() -> None:
    one, other = Job(10.0, 3.0, "one"), Job(20.0, 5.0, "other")
    assert spread([one, one, other, other], 1) == 3 + 20 + 5 + 40
    assert spread([one, other, one, other], 1) == 2 * (3 + 10 + 5 + 20)
    assert spread([], 2) == 0


# A cell.


def recipe_of(**settings: Any) -> Recipe:
    return Recipe(
        evaluation=Evaluation(
            every=settings.get("every", 0.5), samples=3, generation=Generation(batch_size=settings.get("batch", 8))
        ),
        sweep=Sweep(answers=settings.get("answers", True)),
    )


COSTS = Costs(10.0, 4.0, 2.0, 0.5, {3: 6.0, 8: 16.0}, updates=20, held_out=20, probe_rows=4, timed={})


def test_a_cell_is_the_sum_of_its_parts() -> None:
    """By hand: 20 answers are two batches of 8 and one of 4, which lies on the line through the two sizes."""
    recipe = recipe_of()
    assert COSTS.worker(recipe) == 10 + 24 * 0.5 + 6
    losses = (2 * 24 + 20) * 0.5
    assert COSTS.cell(recipe) == {"updates": 4 + 40, "losses": losses, "sample answers": 6, "answers": 2 * 16 + 8}
    assert COSTS.measuring(recipe) == {"losses": 10, "answers": 40}
    assert COSTS.cell(recipe_of(answers=False)) == COSTS.cell(recipe) | {"answers": 0}
    assert replace(COSTS, batches={}).cell(recipe)["answers"] == 0
    assert replace(COSTS, batches={8: 16.0}).measuring(recipe)["answers"] == 3 * 16


@given(st.integers(1, 500), seconds, seconds)
def test_more_of_a_part_takes_as_much_longer(updates: int, update: float, row: float) -> None:
    recipe = recipe_of(every=1.0)
    costs = replace(COSTS, updates=updates, update=update, row=row)
    more = replace(costs, updates=updates + 5, held_out=costs.held_out + 8)
    assert more.cell(recipe)["updates"] == costs.cell(recipe)["updates"] + 5 * update
    assert more.cell(recipe)["losses"] == costs.cell(recipe)["losses"] + 2 * 8 * row
    assert more.cell(recipe)["answers"] == costs.cell(recipe)["answers"] + 16


@given(st.integers(1, 60), st.floats(0.01, 1))
def test_evaluations_as_many_as_in_training(updates: int, every: float) -> None:
    assert evaluations(updates, every) == EvaluationSchedule(updates, every).count_remaining(0, 0)


def test_what_costs_no_time_is_not_another_way_of_training() -> None:
    recipe = recipe_of()
    training = recipe.training
    for same in (
        replace(recipe, name="other", output_dir="elsewhere"),
        replace(recipe, neftune=replace(recipe.neftune, alpha=0.0)),
        replace(recipe, training=replace(training, seed=5, learning_rate=1e-3, weight_decay=0.1)),
    ):
        assert way(same) == way(recipe)
    symmetric = replace(recipe, neftune=replace(recipe.neftune, noise="symmetric"))
    for other in (
        symmetric,
        recipe_of(answers=False),
        replace(recipe, training=replace(training, per_device_train_batch_size=2)),
        replace(recipe, training=replace(training, max_steps=2)),
        replace(recipe, adapter=replace(recipe.adapter, type="lora")),
    ):
        assert way(other) != way(recipe)
    assert way(replace(symmetric, neftune=replace(symmetric.neftune, alpha=0.0))) == way(recipe)


# A sweep whose cells are done in part.


def planned(folder: Path, **options: Any) -> list[Cell]:
    layer = {f"sweep.{key}": Setting(value, key, str(value)) for key, value in options.items()}
    cells = plan_cells(resolve([layer]), [layer])
    return [replace(cell, recipe=replace(cell.recipe, output_dir=str(folder))) for cell in cells]


def measured_by(cell: Cell) -> dict[str, object]:
    """What was measured of a cell, without a number in it."""
    return {"settings": settings_key(cell.recipe), "prompts": [], "references": [], "answers": [], "metrics": {}}


def finish(cell: Cell, training: float, measuring: float | None) -> None:
    """Writes what a cell leaves that was trained; and measured, where it was."""
    run = Path(cell.recipe.output_dir) / cell.recipe.run_name()
    for folder in (run / "model", run / "evaluation"):
        folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, run / "model" / "model.safetensors")
    record = {"status": "finished", "recipe_sha256": cell.key, "results": {"seconds": training}}
    (run / "run.json").write_text(json.dumps(record))
    if measuring is not None:
        content = measured_by(cell) | {"seconds": measuring}
        (run / "evaluation" / "cell.json").write_text(json.dumps(content))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What was probed; nothing is, and `COSTS` is what is found."""
    recipes: list[Recipe] = []

    def probe(wanted: dict[str, Recipe], observer: object) -> tuple[dict[str, Costs], int]:
        recipes.extend(wanted.values())
        return dict.fromkeys(wanted, replace(COSTS, timed={"updates": 3, BEGUN: 8})), 1

    monkeypatch.setattr(module, "probed", probe)
    monkeypatch.setattr(module, "devices", lambda: [None])
    return recipes


def test_cells_are_estimated_by_those_that_are_done(tmp_path: Path, probed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=3)
    finish(cells[0], 100.0, 20.0)
    finish(cells[1], 140.0, 40.0)
    finish(cells[2], 130.0, None)
    found = estimate(cells, "local", False, Silent())
    assert probed == []
    assert [cell.seconds for cell in found.cells] == [30, 150, 150, 150]  # the first of them is trained
    assert (found.seconds, found.timed, found.parts) == (480, {"finished cells": 2}, {})
    for cell in cells[3:]:
        finish(cell, 1.0, 1.0)
    (tmp_path / cells[2].recipe.run_name() / "evaluation" / "cell.json").write_text(
        json.dumps(measured_by(cells[2]))  # of a sweep that did not note seconds
    )
    found = estimate(cells, "local", False, Silent())
    assert (found.seconds, found.cells, found.timed) == (0, (), {})
    assert format.estimate_lines(found) == ["all cells are finished"]


def test_without_done_cells_parts_are_probed_once_a_way_of_training(tmp_path: Path, probed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=2)
    found = estimate(cells, "local", False, Silent())
    each = sum(COSTS.cell(cells[0].recipe).values())
    assert len(probed) == 1
    assert [cell.seconds for cell in found.cells] == [each] * 4
    assert found.seconds == COSTS.worker(cells[0].recipe) + 4 * each
    assert found.parts == COSTS.cell(cells[0].recipe)
    more = estimate(planned(tmp_path, alphas=(0.0, 5.0), seeds=4), "local", False, Silent())
    assert more.seconds == 2 * found.seconds - COSTS.worker(cells[0].recipe)


def test_estimate_counts_and_states_the_start_up(tmp_path: Path, probed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=2)
    without = estimate(cells, "local", False, Silent())
    found = estimate(cells, "local", False, Silent(), own_start=12.0)
    assert found.seconds == without.seconds + 12
    assert (found.own_start, found.worker_start) == (12, COSTS.worker(cells[0].recipe))
    assert format.estimate_lines(found)[1] == (
        "of which start-up: 12 s of the command (as in this dry run), "
        f"{format.rough_duration(COSTS.worker(cells[0].recipe))} of a "
        "worker (libraries, model, tokenized rows, base losses)"
    )
    finish(cells[0], 100.0, 20.0)
    recorded = estimate(cells, "local", False, Silent(), own_start=12.0)
    assert (recorded.seconds, recorded.worker_start) == (12 + 3 * 120, None)
    assert format.estimate_lines(recorded)[1] == (
        "of which start-up: 12 s of the command (as in this dry run); finished cells include that of their workers"
    )
    for cell in cells[1:]:
        finish(cell, 1.0, 1.0)
    assert estimate(cells, "local", False, Silent(), own_start=12.0).seconds == 0


def test_another_way_of_training_counts_only_for_itself(tmp_path: Path, probed: list[Recipe]) -> None:
    axis = ("training.per_device_train_batch_size=4,8",)
    cells = planned(tmp_path, alphas=(0.0,), seeds=2, grid=axis)
    finish(cells[0], 1000.0, 0.0)  # of a batch of 4
    found = estimate(cells, "local", False, Silent())
    each = sum(COSTS.cell(cells[0].recipe).values())
    assert [recipe.training.per_device_train_batch_size for recipe in probed] == [8]
    assert [cell.seconds for cell in found.cells] == [each, 1000, each]
    assert found.timed == {"finished cells": 1, "updates": 3, "begun answers": 8}
    assert format.estimate_lines(found)[-1] == "measured on 1 finished cell, 3 updates, 8 begun answers"


def test_a_cluster_is_counted_as_one_worker_and_what_is_left_out_is_said(
    tmp_path: Path, probed: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = planned(tmp_path, alphas=(0.0,), seeds=2, metrics=("win_rate_length_controlled",))
    monkeypatch.setattr(module, "devices", lambda: ["0", "1"])
    found = estimate(cells, "ray", True, Silent())
    assert found.workers == 1
    assert format.estimate_notices(found) == [
        "timed on this machine, as if one worker ran all cells; those of the cluster may differ",
        "each answer counts with 256 tokens, the maximum",
        "early stopping may save cells; the estimate is for all",
        "not included: the judge, the verdict and its plots",
    ]


# Its words.


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (47.4, "47 s"),
        (89.6, "1 min 30 s"),
        (125, "2 min"),
        (204, "3 min 20 s"),
        (598, "10 min"),
        (739, "12 min"),
        (5399, "1 h 30 min"),
        (8640, "2 h 20 min"),
        (36_000, "10 h"),
        (100_000, "28 h"),
    ],
)
def test_seconds_are_rounded_as_a_person_would(seconds: float, words: str) -> None:
    assert format.rough_duration(seconds) == words


@given(st.floats(0.5, 1e7))
def test_rounding_moves_no_estimate_by_more_than_a_twentieth(seconds: float) -> None:
    units = {"h": 3600, "min": 60, "s": 1}
    parts = format.rough_duration(seconds).split()
    told = sum(int(number) * units[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))
    assert abs(told - seconds) <= max(0.5, 0.06 * seconds)


# Its process.


def test_a_probe_that_dies_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(probing, "probe", dies)
    with pytest.raises(NeftError, match="exit code 3"):
        probing.probed({"way": Recipe()}, Silent())
    assert list(tmp_path.iterdir()) == []


def dies(*_: object) -> None:
    """The process of a probe that ends at once."""
    raise SystemExit(3)
