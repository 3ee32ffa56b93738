"""Folder of a sweep: its files after a rejection, its relative paths, and trust in its recipe.

Oracles: the files before, and a run of the same recipe from its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from neftcli.errors import InputError, Interrupted, NeftError, Problem, RecipeError
from neftcli.recipe.loading import load_recipe, parse_assignment, resolve_recipe, to_yaml
from neftcli.recipe.schema import Recipe
from neftcli.sweep.folder import explain_interruption, load_layers, lock_sweep, resolve_sweep, write_recipe
from neftcli.training.resume import find_resume_state
from tests.conftest import Result, new_run

REJECTED = InputError(Problem("rejected"))
TRUSTING = replace(Recipe(), model=replace(Recipe().model, trust_remote_code=True))


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without the lock."""
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_lock_sweep_rejected_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "judge" / "verdicts.jsonl").write_text("{}\n")
    before = files(tmp_path)
    with pytest.raises(InputError), lock_sweep(tmp_path):
        raise REJECTED
    assert files(tmp_path) == before


def start_rejected_sweep(folder: Path, created: Path) -> None:
    """Start a sweep that is rejected after it has created something."""
    with lock_sweep(folder):
        created.mkdir(parents=True)
        raise REJECTED


def test_lock_sweep_removes_only_what_it_created(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep" / "x-sweep"
    with pytest.raises(InputError):
        start_rejected_sweep(folder, folder / "cells")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError):
        start_rejected_sweep(folder, folder.parent / "other")
    assert [place.name for place in (tmp_path / "runs" / "deep").iterdir()] == ["other"]
    for error in (NeftError("failed"), KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)), lock_sweep(folder):
            raise error
        assert folder.is_dir()
    started = tmp_path / "begun"
    with pytest.raises(InputError):
        start_rejected_sweep(started, started / "cells" / "one")
    assert (started / "cells" / "one").is_dir()


def test_lock_sweep_rejects_a_folder_in_use(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(InputError, match="another sweep is running"),
        lock_sweep(tmp_path),
    ):
        pass
    assert tmp_path.is_dir()


def test_sweep_alpha_rejected_leaves_the_other_sweep_s_recipe(
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
    assert "the cells of the sweep in this folder were trained differently" in result.err
    assert files(folder) == before


def test_explain_interruption_names_the_command_that_resumes(tmp_path: Path) -> None:
    """The hint names the folder once it is a sweep; before, for example while connecting to Ray, the same command."""
    with pytest.raises(Interrupted, match="run the same command again"), explain_interruption(tmp_path, "neft again"):
        raise KeyboardInterrupt
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(Interrupted, match="neft again"), explain_interruption(tmp_path, "neft again"):
        raise KeyboardInterrupt
    full = r"(?s)the disk is full; finished cells are kept.*free some space, then neft again"
    with pytest.raises(NeftError, match=full), explain_interruption(tmp_path, "neft again"):
        raise OSError(28, "No space left on device", "sweep.json")
    for name in (None, "recipe.yaml"):  # a bug in neft
        with pytest.raises(FileNotFoundError), explain_interruption(tmp_path, "neft again"):
            raise FileNotFoundError(2, "No such file", name)


# Names of missing sweeps, and remote code


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\0b"])
def test_resolve_sweep_rejects_names_of_no_folder(name: str) -> None:
    with pytest.raises(InputError, match=r"^there is no such sweep"):
        resolve_sweep(name)
    with pytest.raises(InputError, match=r"^--pilot: there is no such sweep(.|\n)*hint +--pilot runs/NAME-sweep"):
        resolve_sweep(name, "--pilot")


def test_resolve_sweep_lists_the_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine-sweep" / "cells").mkdir(parents=True)
    (tmp_path / "runs" / "mine-sweep" / "recipe.yaml").touch()
    with pytest.raises(InputError, match=r"hint +neft sweep-alpha SWEEP    in runs/: mine-sweep$"):
        resolve_sweep("none")
    with pytest.raises(InputError, match=r"hint +--pilot SWEEP    in runs/: mine-sweep$"):
        resolve_sweep("none", "--pilot")


def test_resolve_sweep_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^there is no sweep in this folder"):
        resolve_sweep(str(tmp_path))
    with pytest.raises(InputError, match=r"^--pilot: there is no sweep in this folder"):
        resolve_sweep(str(tmp_path), "--pilot")


def test_explain_interruption_names_the_file_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "verdict.md").mkdir()
    with pytest.raises(NeftError) as caught, explain_interruption(tmp_path, "neft sweep-alpha x"):
        (tmp_path / "verdict.md").read_text()
    [problem] = caught.value.problems
    assert problem.message == "a file can't be read or written; finished cells are kept"
    assert str(tmp_path / "verdict.md") in problem.got
    assert problem.hint == "fix its permissions, then run the same command again"


def test_sweep_alpha_rejects_a_folder_with_a_recipe(neft: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    result = neft("sweep-alpha", tmp_path, "--recipe", "quickstart")
    assert result.code == 2
    assert "a sweep's folder and --recipe can't be combined" in result.err


def test_load_layers_does_not_trust_a_folder_s_recipe(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "recipe.yaml").write_text(to_yaml(TRUSTING))
    with pytest.raises(
        RecipeError,
        match=r"(?s)because a folder's recipe allows it.*--trust-remote-code",
    ):
        load_layers(tmp_path, [parse_assignment("sweep.seeds=5")], resume=True)
    for value in (True, False):
        layers, _ = load_layers(
            tmp_path, [parse_assignment(f"model.trust_remote_code={str(value).lower()}")], resume=True
        )
        assert resolve_recipe(layers).model.trust_remote_code is value


def test_train_resume_does_not_trust_a_run_s_recipe(tmp_path: Path, neft: Callable[..., Result]) -> None:
    run = new_run(tmp_path, "run")
    (run.path / "recipe.yaml").write_text(to_yaml(TRUSTING))
    (run.path / "run.json").write_text(json.dumps({"status": "preempted", "recipe_sha256": "x"}))
    result = neft("train", "--resume", run.path)
    assert result.code == 2
    assert "does not run a model's Python code only because a folder's recipe allows it" in result.err
    assert f"neft train --resume {run.path} --trust-remote-code" in result.err.replace("\n", "")
    recipe, _ = find_resume_state(
        str(run.path), [parse_assignment("model.trust_remote_code=true")], accept_changes=False
    )
    assert recipe.model.trust_remote_code


# Relative paths


def test_load_layers_from_a_different_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's paths stay, and paths of arguments become relative to its folder, even after a move."""
    project, other = tmp_path / "project", tmp_path / "other"
    sweep = project / "runs" / "x-sweep"
    for folder in (sweep, other):
        folder.mkdir(parents=True)
    for name in ("rows.jsonl", "template.jinja"):
        (project / name).write_text("x")
    (other / "held_out.jsonl").write_text("x")
    base = load_recipe(
        "quickstart",
        [parse_assignment("data.source=rows.jsonl"), parse_assignment("model.chat_template=template.jinja")],
    )
    monkeypatch.chdir(project)
    write_recipe(Path("runs/x-sweep"), base)
    layers, folder = load_layers(Path("runs/x-sweep"), [], resume=True)
    assert (resolve_recipe(layers), folder) == (base, None)
    monkeypatch.chdir(other)
    layer = [parse_assignment("data.held_out_source=held_out.jsonl")]
    layers, folder = load_layers(sweep, layer, resume=True)
    assert folder == project
    recipe = resolve_recipe(layers)
    assert (recipe.data.source, recipe.model.chat_template) == ("rows.jsonl", "template.jinja")
    assert recipe.data.held_out_source == "../other/held_out.jsonl"
    layers, folder = load_layers(sweep, layer, resume=False)  # a new sweep from its recipe
    assert folder is None
    recipe = resolve_recipe(layers)
    assert (recipe.data.source, recipe.data.held_out_source) == ("../project/rows.jsonl", "held_out.jsonl")
    project.rename(tmp_path / "moved")
    assert load_layers(tmp_path / "moved" / "runs" / "x-sweep", [], resume=True)[1] == tmp_path / "moved"
