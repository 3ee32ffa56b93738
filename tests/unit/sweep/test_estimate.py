"""Estimated time of a sweep.

Oracles: finished cells whose seconds are planted, sums by hand, and a timed forward pass of a tiny model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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
from neftcli.recipe.loading import load_recipe, parse_assignment, resolve_recipe
from neftcli.recipe.schema import Evaluation, Generation, Recipe, Sweep
from neftcli.recipe.yaml_file import Setting
from neftcli.sweep import estimate as module
from neftcli.sweep.cell_runs import CellRuns, evaluation_key
from neftcli.sweep.estimate import ModelTimer, StepTimes, estimate_sweep, timing_key
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.training.inputs import read_inputs, tokenize_inputs
from neftcli.training.trainer import num_training_steps

TIMES = StepTimes(loading=10.0, step=2.0, row=0.5, token=0.25, steps=20, held_out=20, probe_rows=4)


class Lengths:
    """Rows of which only the lengths are known."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row."""
        return self._lengths

    def __len__(self) -> int:
        return len(self._lengths)


class Prepared:
    """Tokenised rows of given lengths."""

    def __init__(self, train: list[int], held_out: list[int]) -> None:
        self.train, self.held_out = Lengths(train), Lengths(held_out)


class Recorder:
    """Observer that stores the phases."""

    def __init__(self, phases: list[str]) -> None:
        self._phases = phases

    def notify(self, event: events.Event) -> None:
        """Store the id of a phase."""
        assert isinstance(event, events.Phase)
        self._phases.append(event.phase)


class Silent:
    """Observer that ignores all events."""

    def notify(self, event: events.Event) -> None:
        """Do nothing."""


def recipe_of(*, answers: bool = True) -> Recipe:
    generation = Generation(batch_size=8, max_new_tokens=16)
    return Recipe(evaluation=Evaluation(every=0.5, samples=3, generation=generation), sweep=Sweep(answers=answers))


# A cell


def test_step_times_parts() -> None:
    """By hand: 20 answers are three batches of 8, and 3 samples one; two evaluations, then one of held-out rows."""
    batch = 16 * 0.25
    assert TIMES.parts(recipe_of()) == {"training": 40, "losses": (2 * 24 + 20) * 0.5, "answers": 4 * batch}
    assert TIMES.parts(recipe_of(), is_trained=True) == {"training": 0, "losses": 10, "answers": 3 * batch}
    assert TIMES.parts(recipe_of(answers=False)) == TIMES.parts(recipe_of()) | {"answers": batch}
    during = replace(recipe_of(), evaluation=replace(recipe_of().evaluation, during=("rouge_l",), during_rows=9))
    assert TIMES.parts(during) == TIMES.parts(recipe_of()) | {"answers": (4 + 2 * 2) * batch}
    assert TIMES.parts(during, is_trained=True) == TIMES.parts(recipe_of(), is_trained=True)


def test_timing_key_ignores_options_that_take_no_time() -> None:
    recipe = recipe_of()
    training = recipe.training
    for same in (
        replace(recipe, name="other", output_dir="elsewhere"),
        replace(recipe, neftune=replace(recipe.neftune, alpha=0.0)),
        replace(recipe, training=replace(training, seed=5, learning_rate=1e-3, weight_decay=0.1)),
    ):
        assert timing_key(same) == timing_key(recipe)
    symmetric = replace(recipe, neftune=replace(recipe.neftune, noise="symmetric"))
    for other in (
        symmetric,
        recipe_of(answers=False),
        replace(recipe, training=replace(training, per_device_train_batch_size=2)),
        replace(recipe, training=replace(training, max_steps=2)),
        replace(recipe, adapter=replace(recipe.adapter, type="lora")),
    ):
        assert timing_key(other) != timing_key(recipe)
    assert timing_key(replace(symmetric, neftune=replace(symmetric.neftune, alpha=0.0))) == timing_key(recipe)


def test_model_timer_of_a_tiny_model(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    """The timer writes nothing to the sweep's folder and keeps the model for the next kind of cell."""
    sets = {
        "model.name": tiny_folder("llama"),
        "data.source": rows_file,
        "output_dir": tmp_path / "cells",
        "training.max_steps": 7,
        "evaluation.generation.max_new_tokens": 8,
    }
    recipe = load_recipe("quickstart", [parse_assignment(f"{key}={value}") for key, value in sets.items()])
    reference, examples = read_inputs(recipe, Silent())
    prepared, _, _ = tokenize_inputs(recipe, reference, examples, Silent())
    phases: list[str] = []
    timer = ModelTimer(reference, prepared, Recorder(phases))
    times = timer.time_cell(recipe)
    assert times.steps == 7
    assert times.held_out == len(prepared.held_out)
    assert min(times.loading, times.step, times.row, times.token) > 0
    assert math.isfinite(sum(times.parts(recipe).values()))
    assert not (tmp_path / "cells").exists()
    whole = replace(recipe, training=replace(recipe.training, max_steps=0, per_device_train_batch_size=2))
    again = timer.time_cell(whole)
    assert again.steps == num_training_steps(whole, prepared.train.lengths())
    assert 0 < again.step < 60
    assert phases == ["loading_libraries", "loading_model", "timing_model", "timing_model"]


def test_model_timer_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 2, 4, 6 and 8 tokens, a second for each token of a forward pass, three passes in a step."""
    timer = ModelTimer(None, Prepared([2, 4, 6, 8], [3, 5]), Silent())  # type: ignore[arg-type]
    monkeypatch.setattr(ModelTimer, "load", lambda *_arguments: None)
    monkeypatch.setattr(ModelTimer, "time_forward", lambda _timer, rows, length: float(rows * length))

    def step(recipe: Recipe, **training: Any) -> float:
        return timer.time_cell(replace(recipe, training=replace(recipe.training, **training))).step

    recipe, two = recipe_of(), {"per_device_train_batch_size": 2}
    assert timer.time_cell(recipe).row == 4
    assert step(recipe, **two) == 3 * 20 / 2
    assert step(recipe, **two, gradient_accumulation_steps=2) == 3 * 20
    assert step(recipe, **two, batching="padded") == 3 * (8 + 16) / 2
    assert step(recipe, **two, gradient_checkpointing=True) == 4 * 20 / 2
    assert step(replace(recipe, adapter=replace(recipe.adapter, type="lora")), **two) == 2 * 20 / 2
    assert step(replace(recipe, neftune=replace(recipe.neftune, noise="symmetric")), **two) == 6 * 20 / 2


# A sweep


def planned(folder: Path, **options: Any) -> list[Cell]:
    layer = {f"sweep.{key}": Setting(value, key, str(value)) for key, value in options.items()}
    cells = plan_cells(resolve_recipe([layer]), [layer])
    return [replace(cell, recipe=replace(cell.recipe, output_dir=str(folder))) for cell in cells]


def evaluation_of(cell: Cell) -> dict[str, object]:
    """Return an evaluation of a cell without values."""
    return {"settings": evaluation_key(cell.recipe), "prompts": [], "references": [], "answers": [], "metrics": {}}


def finish(cell: Cell, training: float, evaluation: float | None) -> None:
    """Write the files of a trained cell, and of its evaluation if its seconds are given."""
    run = Path(cell.recipe.output_dir) / cell.recipe.run_name()
    for folder in (run / "model", run / "evaluation"):
        folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, run / "model" / "model.safetensors")
    record = {"status": "finished", "recipe_sha256": cell.key, "results": {"seconds": training}}
    (run / "run.json").write_text(json.dumps(record))
    if evaluation is not None:
        content = evaluation_of(cell) | {"seconds": evaluation}
        (run / "evaluation" / "cell.json").write_text(json.dumps(content))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Return the recipes that are timed; each takes `TIMES`."""
    recipes: list[Recipe] = []

    def time_cell(_timer: ModelTimer, recipe: Recipe) -> StepTimes:
        recipes.append(recipe)
        return TIMES

    monkeypatch.setattr(ModelTimer, "time_cell", time_cell)
    monkeypatch.setattr(module, "list_devices", lambda: [None])
    return recipes


def estimate(cells: list[Cell], engine: str = "local", *, early_stopping: bool = False) -> events.SweepEstimate:
    runs = CellRuns(Path(cells[0].recipe.output_dir))
    timer = ModelTimer(None, None, Silent())  # type: ignore[arg-type]
    return estimate_sweep(cells, runs, engine, timer, early_stopping=early_stopping)


def test_estimate_sweep_uses_the_mean_of_finished_cells(tmp_path: Path, timed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=3)
    finish(cells[0], 100.0, 20.0)
    finish(cells[1], 140.0, 40.0)
    finish(cells[2], 130.0, None)
    found = estimate(cells)
    assert timed == []
    assert [cell.seconds for cell in found.cells] == [30, 150, 150, 150]  # the first of them is trained
    assert (found.seconds, found.finished_cells, found.timed_passes, found.parts) == (480, 2, 0, {})
    assert format.estimate_lines(found)[-1] == "estimated from the mean of 2 finished cells"
    for cell in cells[3:]:
        finish(cell, 1.0, 1.0)
    (tmp_path / cells[2].recipe.run_name() / "evaluation" / "cell.json").write_text(json.dumps(evaluation_of(cells[2])))
    found = estimate(cells)
    assert (found.seconds, found.cells, found.finished_cells) == (0, (), 0)
    assert format.estimate_lines(found) == ["all cells are finished"]


def test_estimate_sweep_times_the_model_without_finished_cells(tmp_path: Path, timed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=2)
    found = estimate(cells)
    parts = TIMES.parts(cells[0].recipe)
    each = sum(parts.values())
    assert len(timed) == 1
    assert [cell.seconds for cell in found.cells] == [each] * 4
    assert found.seconds == TIMES.loading + 4 * each
    assert found.parts == parts
    last = format.estimate_lines(found)[-1]
    assert last == "estimated from a timed forward pass on this machine; a finished cell gives a better estimate"


def test_estimate_sweep_other_kinds_of_cells_count_only_for_themselves(tmp_path: Path, timed: list[Recipe]) -> None:
    cells = planned(tmp_path, alphas=(0.0,), seeds=2, grid=("training.per_device_train_batch_size=4,8",))
    finish(cells[0], 1000.0, 0.0)  # with a batch size of 4
    found = estimate(cells)
    each = sum(TIMES.parts(cells[0].recipe).values())
    assert [recipe.training.per_device_train_batch_size for recipe in timed] == [8]
    assert [cell.seconds for cell in found.cells] == [each, 1000, each]
    last = format.estimate_lines(found)[-1]
    assert last == (
        "estimated from the mean of 1 finished cell and a timed forward pass on this machine; "
        "a finished cell gives a better estimate"
    )


def test_estimate_sweep_workers(tmp_path: Path, timed: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share the cells; a cluster counts as one worker."""
    cells = planned(tmp_path, alphas=(0.0, 5.0), seeds=2)
    each = sum(TIMES.parts(cells[0].recipe).values())
    for devices, workers, rounds in ((2, 2, 2), (4, 4, 1), (9, 4, 1)):
        monkeypatch.setattr(module, "list_devices", lambda number=devices: [None] * number)
        found = estimate(cells)
        assert (found.workers, found.seconds) == (workers, TIMES.loading + rounds * each)
    assert estimate(cells, "ray").workers == 1


def test_estimate_remarks(tmp_path: Path, timed: list[Recipe]) -> None:
    """Assumptions of an estimate are remarks; a pilot that was trained differently is a warning."""
    cells = planned(tmp_path, alphas=(0.0,), seeds=2, metrics=("win_rate_length_controlled",))
    estimated = estimate(cells, "ray", early_stopping=True)
    remarks = [
        "estimated for one worker on this machine; the cluster may differ",
        "every answer is assumed to have the maximum length, 256 tokens",
        "early stopping may save cells; the estimate is for all",
        "not included: the judge, the verdict and its plots",
    ]
    lines = [format.Line("note", remark, "dim") for remark in remarks]
    assert format.estimate_remarks(estimated) == lines
    power = events.PowerAnalysis("held_out_loss", 2, 60, "runs/pilot", differs=("training.seed",))
    assert format.estimate_remarks(replace(estimated, power=power)) == [
        *lines,
        format.Line("note", "the pilot was trained differently: training.seed", "notice"),
    ]


# Texts


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
def test_rough_duration(seconds: float, words: str) -> None:
    assert format.rough_duration(seconds) == words


@given(st.floats(0.5, 1e7))
def test_rough_duration_moves_no_estimate_by_more_than_a_twentieth(seconds: float) -> None:
    units = {"h": 3600, "min": 60, "s": 1}
    parts = format.rough_duration(seconds).split()
    rounded = sum(int(number) * units[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))
    assert abs(rounded - seconds) <= max(0.5, 0.06 * seconds)
