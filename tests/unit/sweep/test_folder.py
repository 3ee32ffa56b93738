"""A sweep's folder: what stays of it, what it is of, and whose code runs.

Oracles: the files that were there before, and planted records of runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from neftcli.data.prepare import data_fingerprint as of_rows
from neftcli.errors import InputError, Interrupted, NeftError, Problem, RecipeError
from neftcli.events import Notice
from neftcli.models.loading import model_fingerprint
from neftcli.recipe.loading import assignment, file_layers, resolve, to_yaml
from neftcli.recipe.schema import Recipe
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.cell_states import tell_of_others
from neftcli.sweep.folder import explained, held, layers_of, require_alike, require_same_inputs, sweep_of
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.training.inputs import read_inputs
from neftcli.training.resume import find_resume_state
from tests.conftest import Result, new_run

REFUSED = InputError(Problem("refused"))
TRUSTING = replace(Recipe(), model=replace(Recipe().model, trust_remote_code=True))


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the lock."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_a_folder_that_was_there_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "judge" / "verdicts.jsonl").write_text("{}\n")
    before = files(tmp_path)
    with pytest.raises(InputError), held(tmp_path):
        raise REFUSED
    assert files(tmp_path) == before


def refused(folder: Path, made: Path) -> None:
    """A sweep that is refused when it has made something."""
    with held(folder):
        made.mkdir(parents=True)
        raise REFUSED


def test_what_was_made_for_nothing_goes_and_what_was_begun_stays(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep" / "x-sweep"
    with pytest.raises(InputError):
        refused(folder, folder / "cells")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError):
        refused(folder, folder.parent / "other")
    assert [place.name for place in (tmp_path / "runs" / "deep").iterdir()] == ["other"]
    for error in (NeftError("failed"), KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)), held(folder):
            raise error
        assert folder.is_dir()
    begun = tmp_path / "begun"
    with pytest.raises(InputError):
        refused(begun, begun / "cells" / "one")
    assert (begun / "cells" / "one").is_dir()


def test_a_folder_in_use_is_refused_and_left(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another sweep is at work"), held(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_refused_sweep_leaves_the_recipe_of_the_one_that_is_there(
    neft: Callable[..., Result], tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "x-sweep"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("data: {max_rows: 20}\n")
    (folder / "cells" / "one").mkdir(parents=True)
    (folder / "cells" / "one" / "run.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    before = files(folder)
    named = ["--name", "x", "--output-dir", tmp_path / "runs", "--model", tiny_folder("llama"), "--dataset", rows_file]
    result = neft("sweep-alpha", *named)
    assert result.code == 2
    assert "this folder holds a sweep whose cells are trained otherwise" in result.err
    assert files(folder) == before


def test_a_damaged_record_of_a_cell_is_reported(cells: list[Cell], tmp_path: Path) -> None:
    begun(cells[0])
    damaged = begun(cells[1])
    damaged.write_text("run.json", "{}")
    told: list[object] = []
    observer = Silent()
    observer.notify = told.append  # type: ignore[method-assign]
    tell_of_others(tmp_path, cells, observer)
    name = damaged.path.name
    assert told == [Notice(f"left out, since run.json is damaged: {name}; their cells are trained again")]


def test_a_stop_and_a_full_disk_are_told_with_the_command_that_goes_on(tmp_path: Path) -> None:
    """By the sweep's folder once that is a sweep's; before, as while Ray is joined, only what was typed begins it."""
    with pytest.raises(Interrupted, match="the same command again"), explained(tmp_path, "neft again"):
        raise KeyboardInterrupt
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(Interrupted, match="neft again"), explained(tmp_path, "neft again"):
        raise KeyboardInterrupt
    full = r"(?s)the disk is full; what is done is kept.*make room, then neft again"
    with pytest.raises(NeftError, match=full), explained(tmp_path, "neft again"):
        raise OSError(28, "No space left on device", "sweep.json")
    for name in (None, "recipe.yaml"):  # a fault of neft
        with pytest.raises(FileNotFoundError), explained(tmp_path, "neft again"):
            raise FileNotFoundError(2, "No such file", name)


# The same rows and the same model


@pytest.fixture
def cells(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[Cell]:
    sets = {"model.name": tiny_folder("llama"), "data.source": rows_file, "sweep.alphas": "[5]", "sweep.seeds": 2}
    layers = [*file_layers("quickstart"), *(assignment(f"{key}={value}") for key, value in sets.items())]
    output = {"output_dir": str(tmp_path / "cells")}
    return [replace(cell, recipe=replace(cell.recipe, **output)) for cell in plan_cells(resolve(layers), layers)]


def begun(cell: Cell, **facts: Any) -> RunDirectory:
    """A run of the cell, with a record."""
    run = new_run(Path(cell.recipe.output_dir), cell.recipe.run_name())
    run.write_json("run.json", {"status": "finished", "recipe_sha256": cell.key, **facts})
    return run


class Silent:
    """Watches without a word."""

    def notify(self, event: object) -> None:
        """Does nothing."""


def test_cells_of_other_rows_or_another_model_are_named_before_anything_is_trained(cells: list[Cell]) -> None:
    reference, examples = read_inputs(cells[0].recipe, Silent())
    rows = of_rows(examples.train, examples.held_out)
    now = {"data_sha256": rows, "model_fingerprint": model_fingerprint(reference, None)}
    require_same_inputs(cells, reference, examples)
    begun(cells[0], **now)
    begun(cells[1])  # an interrupted one, whose record does not say yet
    begun(replace(cells[2], key="of another sweep"), data_sha256="other")
    require_same_inputs(cells, reference, examples)
    begun(cells[3], **now | {"data_sha256": "other"})
    with pytest.raises(InputError, match=r"(?s)^the rows changed since cells were trained.*quickstart-a5-s1\n"):
        require_same_inputs(cells, reference, examples)
    turned = replace(examples, held_out=examples.held_out[::-1])
    with pytest.raises(InputError, match="quickstart-a0-s0"):
        require_same_inputs(cells[:1], reference, turned)
    begun(cells[2], **now | {"model_fingerprint": "other"})
    with pytest.raises(InputError, match=r"(?s)the model's files changed.*quickstart-a0-s1-2"):
        require_same_inputs(cells, reference, examples)


@pytest.mark.parametrize("other", ["data_sha256", "model_fingerprint", "prompts", "references"])
def test_cells_that_are_not_alike_are_not_compared(other: str, cells: list[Cell]) -> None:
    facts = {"data_sha256": "rows", "model_fingerprint": "model"}
    content = {"prompts": ["a", "b"], "references": ["c", "d"]}
    measured: dict[str, Any] = {}
    for cell in cells:
        odd = cell is cells[2]
        spoilt = {other: "other"} if odd and other in facts else {}
        measured[cell.key] = begun(cell, **facts | spoilt), content | ({other: ["b", "a"]} if odd else {})
        if other in facts:
            measured[cell.key] = measured[cell.key][0], content
    with pytest.raises(NeftError, match="changed between cells") as caught:
        require_alike(measured, "neft again")
    assert not isinstance(caught.value, InputError)
    assert caught.value.problems[0].got == (
        "quickstart-a0-s0, quickstart-a5-s0, quickstart-a5-s1; others: quickstart-a0-s1"
    )
    require_alike({key: found for key, found in measured.items() if key != cells[2].key}, "neft again")


# Names that are none, and code that comes with a model


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\0b"])
def test_a_name_of_no_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^there is no such sweep"):
        sweep_of(name)
    with pytest.raises(InputError, match=r"^--pilot: there is no such sweep(.|\n)*try +--pilot runs/NAME-sweep"):
        sweep_of(name, "--pilot")


def test_sweep_of_names_the_option_that_a_folder_was_typed_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^there is no sweep in this folder"):
        sweep_of(str(tmp_path))
    with pytest.raises(InputError, match=r"^--pilot: there is no sweep in this folder"):
        sweep_of(str(tmp_path), "--pilot")


def test_explained_names_the_file_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "verdict.md").mkdir()
    with pytest.raises(NeftError) as caught, explained(tmp_path, "neft sweep-alpha x"):
        (tmp_path / "verdict.md").read_text()
    [problem] = caught.value.problems
    assert problem.message == "a file can't be read or written; what is done is kept"
    assert str(tmp_path / "verdict.md") in problem.got
    assert problem.hint == "mend its rights, then the same command again"


def test_a_folder_and_a_recipe_can_not_stand_together(neft: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    result = neft("sweep-alpha", tmp_path, "--recipe", "quickstart")
    assert result.code == 2
    assert "a sweep's folder and --recipe can't stand together" in result.err


def test_a_folders_recipe_does_not_run_a_models_code_unless_that_is_typed(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text(to_yaml(TRUSTING))
    with pytest.raises(RecipeError, match=r"(?s)does not run because a folder's recipe says so.*--trust-remote-code"):
        layers_of(tmp_path, [assignment("sweep.seeds=5")])
    for typed in (True, False):
        layers = layers_of(tmp_path, [assignment(f"model.trust_remote_code={str(typed).lower()}")])
        assert resolve(layers).model.trust_remote_code is typed


def test_nor_does_that_of_a_run_that_is_gone_on_with(tmp_path: Path, neft: Callable[..., Result]) -> None:
    run = new_run(tmp_path, "run")
    (run.path / "recipe.yaml").write_text(to_yaml(TRUSTING))
    (run.path / "run.json").write_text(json.dumps({"status": "preempted", "recipe_sha256": "x"}))
    result = neft("train", "--resume", run.path)
    assert result.code == 2
    assert "does not run because a folder's recipe says so" in result.err
    assert f"neft train --resume {run.path} --trust-remote-code" in result.err.replace("\n", "")
    recipe, _ = find_resume_state(str(run.path), [assignment("model.trust_remote_code=true")], accept_changes=False)
    assert recipe.model.trust_remote_code
