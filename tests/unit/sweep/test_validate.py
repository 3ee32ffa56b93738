"""Checks of a sweep before a worker starts, and of its results before they are compared.

Oracles: planted records of runs, and inputs with one change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neftcli.data.prepare import PreparedData
from neftcli.errors import InputError, NeftError
from neftcli.models.loading import model_fingerprint
from neftcli.models.registry import ModelReference
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.recipe.schema import Recipe
from neftcli.runs.directory import RunDirectory
from neftcli.sweep import validate
from neftcli.sweep.cell_runs import CellRuns
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.sweep.validate import (
    check_inputs,
    require_comparable,
    require_noise,
    require_unchanged_inputs,
    require_whole_sweep,
)
from neftcli.training.assets import hash_tokens
from neftcli.training.inputs import read_inputs, tokenize_inputs
from tests.conftest import Result, new_run


class Silent:
    """Observer that ignores all events."""

    def notify(self, event: object) -> None:
        """Do nothing."""


@pytest.fixture
def cells(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[Cell]:
    sets = {"model.name": tiny_folder("llama"), "data.source": rows_file, "sweep.alphas": "[5]", "sweep.seeds": 2}
    layers = [*read_recipe_layers("quickstart"), *(parse_assignment(f"{key}={value}") for key, value in sets.items())]
    output = {"output_dir": str(tmp_path / "cells")}
    return [replace(cell, recipe=replace(cell.recipe, **output)) for cell in plan_cells(resolve_recipe(layers), layers)]


def started_run(cell: Cell, **facts: Any) -> RunDirectory:
    """Create a run of the cell with a record."""
    run = new_run(Path(cell.recipe.output_dir), cell.recipe.run_name())
    run.write_json("run.json", {"status": "finished", "recipe_sha256": cell.key, **facts})
    return run


def inputs_of(recipe: Recipe) -> tuple[ModelReference, PreparedData]:
    """Return the model and the tokenised rows."""
    reference, examples = read_inputs(recipe, Silent())
    return reference, tokenize_inputs(recipe, reference, examples, Silent())[0]


def runs_of(cell: Cell) -> CellRuns:
    return CellRuns(Path(cell.recipe.output_dir))


def hashes(reference: ModelReference, prepared: PreparedData) -> dict[str, Any]:
    """Return the fields of a run's record about its inputs."""
    return {
        "data_sha256": prepared.counts.fingerprint,
        "tokens_sha256": hash_tokens(prepared.train),
        "model_fingerprint": model_fingerprint(reference, None),
    }


def test_require_unchanged_inputs_names_changed_cells(cells: list[Cell], rows_file: Path) -> None:
    reference, prepared = inputs_of(cells[0].recipe)
    current = hashes(reference, prepared)
    require_unchanged_inputs(runs_of(cells[0]), cells, reference, prepared)
    started_run(cells[0], **current)
    started_run(cells[1])  # interrupted before its record has them
    started_run(replace(cells[2], key="of another sweep"), data_sha256="other")
    require_unchanged_inputs(runs_of(cells[0]), cells, reference, prepared)
    started_run(cells[3], **current | {"data_sha256": "other"})
    with pytest.raises(InputError, match=r"(?s)^the rows changed since cells were trained.*quickstart-a5-s1\n"):
        require_unchanged_inputs(runs_of(cells[0]), cells, reference, prepared)
    rows_file.write_text("".join(reversed(rows_file.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError, match="quickstart-a0-s0"):
        require_unchanged_inputs(runs_of(cells[0]), cells[:1], *inputs_of(cells[0].recipe))
    started_run(cells[2], **current | {"model_fingerprint": "other"})
    with pytest.raises(InputError, match=r"(?s)the model's files changed.*quickstart-a0-s1-2"):
        require_unchanged_inputs(runs_of(cells[0]), cells, reference, prepared)


def test_require_unchanged_inputs_notices_an_edited_chat_template(cells: list[Cell], tmp_path: Path) -> None:
    """The rows and the model's files are the same."""
    template = tmp_path / "template.jinja"
    text = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}"
    template.write_text(text + "{% if add_generation_prompt %}<assistant>{% endif %}")
    cell = cells[0]
    recipe = replace(cell.recipe, model=replace(cell.recipe.model, chat_template=str(template)))
    reference, prepared = inputs_of(recipe)
    started_run(cell, **hashes(reference, prepared))
    require_unchanged_inputs(runs_of(cell), cells, reference, prepared)
    template.write_text(template.read_text().replace("<", "["))
    with pytest.raises(InputError) as caught:
        require_unchanged_inputs(runs_of(cell), cells, *inputs_of(recipe))
    [problem] = caught.value.problems
    assert problem.message.startswith("the tokens of the rows (chat template or tokenizer) changed since cells")
    assert problem.got == "quickstart-a0-s0"


@pytest.mark.parametrize("changed", ["data_sha256", "tokens_sha256", "model_fingerprint", "prompts", "references"])
def test_require_comparable_rejects_cells_with_different_inputs(changed: str, cells: list[Cell]) -> None:
    facts = {"data_sha256": "rows", "tokens_sha256": "tokens", "model_fingerprint": "model"}
    evaluation = {"prompts": ["a", "b"], "references": ["c", "d"]}
    evaluations: dict[str, Any] = {}
    for cell in cells:
        own_facts, own_evaluation = dict(facts), dict(evaluation)
        if cell is cells[2] and changed in facts:
            own_facts[changed] = "other"
        elif cell is cells[2]:
            own_evaluation[changed] = ["b", "a"]
        evaluations[cell.key] = started_run(cell, **own_facts), own_evaluation
    with pytest.raises(NeftError, match="changed between cells") as caught:
        require_comparable(evaluations, "neft again")
    assert not isinstance(caught.value, InputError)
    assert caught.value.problems[0].got == (
        "quickstart-a0-s0, quickstart-a5-s0, quickstart-a5-s1; others: quickstart-a0-s1"
    )
    del evaluations[cells[2].key]
    require_comparable(evaluations, "neft again")


@pytest.mark.parametrize("axis", ["model.name=a,b", "model.revision=a,b", "model.chat_template=alpaca,chatml"])
def test_check_options_rejects_a_grid_of_models(neft: Callable[..., Result], tmp_path: Path, axis: str) -> None:
    result = neft("sweep-alpha", "--recipe", "quickstart", "--output-dir", tmp_path / "runs", "--grid", axis)
    assert result.code == 2
    assert "losses over different tokens" in result.err
    assert axis in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["--set", "training.processes=2"], ["--grid", "training.processes=1,2"]])
def test_check_options_rejects_several_processes(
    neft: Callable[..., Result], tmp_path: Path, arguments: list[str]
) -> None:
    result = neft("sweep-alpha", "--recipe", "quickstart", "--output-dir", tmp_path / "runs", *arguments)
    assert result.code == 2
    assert "training.processes: a sweep trains each cell in one process" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("questions", "enough"),
    [([0] * 10 + [1, 2], False), ([0] * 200, False), (list(range(5)), False), (list(range(6)), True)],
)
def test_check_inputs_counts_distinct_prompts(
    tmp_path: Path,
    rows_file: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    questions: list[int],
    enough: bool,
) -> None:
    """Rows with the same prompt are one unit of the tests, so prompts count and not rows."""
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": f"Which is {number}?", "completion": f"{place}"} for place, number in enumerate(questions)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"data.source": rows_file, "data.held_out_source": held_out, "data.held_out_rows": 200}
    sets["model.name"] = tiny_folder("llama")
    layers = [*read_recipe_layers("quickstart"), *(parse_assignment(f"{key}={value}") for key, value in sets.items())]
    if enough:
        check_inputs(resolve_recipe(layers), tmp_path, Silent())
    else:
        with pytest.raises(InputError, match="a sweep needs at least 6 held-out rows with different prompts"):
            check_inputs(resolve_recipe(layers), tmp_path, Silent())


def test_check_inputs_prepares_the_libraries_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their settings have no effect once the libraries are imported; one of them keeps code of the hub out."""

    def prepare() -> None:
        raise InterruptedError

    monkeypatch.setattr(validate, "prepare_libraries", prepare)
    monkeypatch.setattr("neftcli.training.inputs.read_inputs", pytest.fail)
    with pytest.raises(InterruptedError):
        check_inputs(Recipe(), tmp_path, Silent())


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
    layers = [*read_recipe_layers("quickstart"), *map(parse_assignment, sets)]
    base = resolve_recipe(layers)
    cells = plan_cells(base, layers)
    if not rejected:
        require_noise(base, cells)
        return
    with pytest.raises(InputError, match="to compare with alpha 0, the baseline"):
        require_noise(base, cells)


def write_sweep(folder: Path, cells: list[Cell], **facts: Any) -> None:
    """Write the part of a finished sweep's report that the next command reads, and the folders of its runs."""
    reported = []
    for cell in cells:
        run = folder / "cells" / cell.recipe.run_name()
        run.mkdir(parents=True, exist_ok=True)
        reported.append({"key": cell.short_key(), "status": "finished", "run": str(run)})
    content = {"cells": reported, "failed": [], "unfinished": 0, **facts}
    (folder / "sweep.json").write_text(json.dumps(content))


def test_require_whole_sweep_rejects_fewer_seeds_and_alphas(cells: list[Cell], tmp_path: Path) -> None:
    require_whole_sweep(tmp_path, cells[:2])  # there is no sweep yet
    write_sweep(tmp_path, cells)
    require_whole_sweep(tmp_path, cells)
    with pytest.raises(InputError, match="would lose 2 of its 4 cells") as raised:
        require_whole_sweep(tmp_path, [cell for cell in cells if cell.seed == 0])
    assert raised.value.problems[0].got == "without quickstart-a0-s1, quickstart-a5-s1"
    with pytest.raises(InputError, match="would lose 2 of its 4 cells"):
        require_whole_sweep(tmp_path, [cell for cell in cells if cell.arm.alpha == 0])


@pytest.mark.parametrize("facts", [{"unfinished": 1}, {"failed": [{"key": "x"}]}, {"unfinished": "damaged"}])
def test_require_whole_sweep_allows_parts_of_unfinished_sweeps(
    cells: list[Cell], tmp_path: Path, facts: dict[str, Any]
) -> None:
    """An arm that failed may be left out, and a sweep that was stopped may end with fewer seeds."""
    write_sweep(tmp_path, cells, **facts)
    require_whole_sweep(tmp_path, cells[:2])


def test_require_whole_sweep_ignores_removed_cells(cells: list[Cell], tmp_path: Path) -> None:
    write_sweep(tmp_path, cells)
    for cell in cells[2:]:
        (tmp_path / "cells" / cell.recipe.run_name()).rmdir()
    require_whole_sweep(tmp_path, cells[:2])
