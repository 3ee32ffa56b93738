"""Runs that are resumed, evaluated and repeated from a folder other than the one in which they were started.

Oracles: the run by the same command from the first folder, by the hash of its weights and of its recipe; and the run's
recipe.yaml, which names its files as before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input import Neft
from tests.conftest import quick_arguments


@pytest.fixture
def project(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a folder with a model, rows and an empty folder, in which `neft` runs."""
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    shutil.copytree(tiny_folder("llama"), here / "tiny")
    shutil.copy(rows_file, here / "rows.jsonl")
    monkeypatch.chdir(here)
    return here


def typed(*more: str) -> list[str]:
    return [*quick_arguments(Path("tiny"), Path("rows.jsonl"), Path("runs")), *more]


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


def begun(neft: Neft, project: Path) -> Path:
    """Return a run that was started and not finished: it starts again where it is resumed."""
    run = project / "runs" / "tiny-a5-s0"
    assert neft(*typed()).code == 0
    shutil.rmtree(run / "model")
    content = record(run)
    content |= {"status": "preempted", "finished": None}
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def test_resume_from_another_folder(neft: Neft, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(neft, project)
    before = record(run)
    recipe = (run / "recipe.yaml").read_bytes()
    (project / "sub" / "rows.jsonl").write_text("another file of the same name\n", encoding="utf-8")
    monkeypatch.chdir(project / "sub")
    done = neft("train", "--resume", "../runs/tiny-a5-s0", "--model", "../sub/../tiny", "--quiet")
    assert done.code == 0, done.err
    after = record(run)
    same = ("weights_sha256", "recipe_sha256", "data_sha256", "paths")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (run / "recipe.yaml").read_bytes() == recipe
    assert not after["resumed"][0]["changes"]


@pytest.mark.slow
def test_resume_after_the_project_moved(neft: Neft, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = record(begun(neft, project))["weights_sha256"]
    there = project.with_name("there")
    project.rename(there)
    monkeypatch.chdir(there.parent)
    assert neft("train", "--resume", "there/runs/tiny-a5-s0", "--quiet").code == 0
    assert record(there / "runs" / "tiny-a5-s0")["weights_sha256"] == weights
    assert record(there / "runs" / "tiny-a5-s0")["paths"]["folder"] == str(there.resolve())


def test_resume_without_its_rows_says_where_they_were_looked_for(
    neft: Neft, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(neft, project)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    (project / "rows.jsonl").unlink()
    monkeypatch.chdir(project / "sub")
    refused = neft("train", "--resume", "../runs/tiny-a5-s0")
    assert refused.code == 2
    assert f"rows.jsonl, searched for in {project} and {project / 'sub'}" in " ".join(refused.err.split())
    assert "--dataset PATH" in refused.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_eval_and_recipe_from_another_folder(neft: Neft, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert neft(*typed()).code == 0
    assert neft(*typed("--alpha", "0")).code == 0
    run = project / "runs" / "tiny-a5-s0"
    monkeypatch.chdir(project / "sub")
    evaluated = neft("eval", "../runs/tiny-a5-s0", "--max-rows", "2")
    assert evaluated.code == 0, evaluated.err
    assert "../runs/tiny-a0-s0" in evaluated.out  # the paired run is found next to the run
    assert neft("train", "--recipe", "../runs/tiny-a5-s0/recipe.yaml", "--quiet").code == 0
    assert record(project / "sub" / "runs" / "tiny-a5-s0")["weights_sha256"] == record(run)["weights_sha256"]
    (project / "rows.jsonl").rename(project / "away.jsonl")
    refused = neft("eval", "../runs/tiny-a5-s0", "--no-base", "--no-answers", "--set", "evaluation.probe_rows=1")
    assert refused.code == 2
    refused = neft("eval", "../runs/tiny-a5-s0", "--max-rows", "3")
    assert refused.code == 2
    assert f"rows.jsonl, searched for in {project} and {project / 'sub'}" in " ".join(refused.err.split())
