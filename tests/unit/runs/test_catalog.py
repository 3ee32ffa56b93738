"""The catalog of runs and sweeps.

Oracle: the values with which the folders were written.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from neftcli.errors import InputError
from neftcli.events import Method, RunStatus
from neftcli.recipe.schema import Sweep
from neftcli.runs.catalog import read_catalog, resolve_run, stored_verdicts, summarize
from neftcli.system.locks import hold_lock
from tests.written_runs import recipe_of, write_metrics, write_run, write_sweep, write_verdict


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_summarize_finished_run(tmp_path: Path) -> None:
    run = write_run(Path("runs"), recipe_of(5.0, seed=3))
    write_verdict(run, "mine-a0-s3", "higher")
    summary = summarize(run)
    assert (summary.path, summary.name(), summary.kind) == ("runs/mine-a5-s3", "mine-a5-s3", "run")
    assert (summary.status, summary.changed) == (RunStatus.FINISHED, "2026-01-02T03:04:05+00:00")
    assert (summary.model, summary.method) == ("opt-125m", Method("lora", 8))
    assert (summary.alphas, summary.seeds, summary.steps) == ((5.0,), (3,), 4)
    assert (summary.base_held_out_loss, summary.held_out_loss) == (2.5, 2.0)
    assert summary.verdict is not None
    assert (summary.verdict.baseline, summary.verdict.verdict) == ("mine-a0-s3", "higher")
    files = [file for file in run.rglob("*") if file.is_file()]
    assert summary.size_bytes == sum(file.stat().st_size for file in files)


def test_summarize_older_record_reads_the_recipe() -> None:
    run = write_run(Path("runs"), recipe_of(), model=None, method=None)
    assert (summarize(run).model, summarize(run).method) == ("opt-125m", Method("lora", 8))
    (run / "recipe.yaml").write_text("model: {name: [}", encoding="utf-8")
    assert summarize(run).status is RunStatus.FINISHED
    assert "recipe.yaml" in summarize(run).problem


def test_summarize_unfinished_run_has_the_losses_so_far() -> None:
    run = write_run(Path("runs"), recipe_of(), status="preempted", results=None, finished=None)
    write_metrics(run, [(0, 2.5), (2, 2.25)])
    summary = summarize(run)
    assert (summary.base_held_out_loss, summary.held_out_loss, summary.steps) == (2.5, 2.25, 2)
    write_metrics(run, [(0, 2.5)])
    assert (summarize(run).base_held_out_loss, summarize(run).held_out_loss) == (2.5, None)
    (run / "metrics.jsonl").unlink()
    assert (summarize(run).base_held_out_loss, summarize(run).steps) == (None, None)


def test_summarize_running_needs_the_lock() -> None:
    """A run that was killed with SIGKILL is recorded as running."""
    run = write_run(Path("runs"), recipe_of(), status="running", results=None, finished=None)
    assert summarize(run).status is RunStatus.KILLED
    with hold_lock(run / ".lock"):
        assert summarize(run).status is RunStatus.RUNNING
    assert summarize(run).status is RunStatus.KILLED


def test_summarize_last_step_without_an_incomplete_line() -> None:
    run = write_run(Path("runs"), recipe_of())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "training.step", "step": 7}\n{"event": "training.st')
    assert summarize(run).steps == 7


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"status": "happy"}', b"\xff\xfe", b"[" * 100_000])
def test_summarize_damaged_record(content: bytes) -> None:
    run = write_run(Path("runs"), recipe_of())
    (run / "run.json").write_bytes(content)
    summary = summarize(run)
    assert (summary.kind, summary.status) == ("run", RunStatus.DAMAGED)
    assert summary.problem.startswith("run.json: ")
    (run / "recipe.yaml").unlink()  # now nothing shows that it is neft's
    assert (summarize(run).kind, summarize(run).status) == ("other", RunStatus.OTHER)


def test_summarize_other_folders() -> None:
    for name, file in (("empty", ""), ("other", "x.txt"), ("opt-125m", "evaluation"), ("judge", "verdicts.jsonl")):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        if file:
            (folder / file).touch()
    problems = {run.name(): run.problem for run in read_catalog(Path("runs")).runs}
    assert problems == {
        "empty": "empty",
        "other": "run.json is missing",
        "opt-125m": "evaluations of a model that is not a run",
        "judge": "replies of a judge",
    }


@pytest.mark.parametrize("finished", ["never", "9999-12-31T23:59:59-2359", "0001-01-01T00:00:00+2359", ""])
def test_summarize_time_outside_the_calendar(finished: str) -> None:
    run = write_run(Path("runs"), recipe_of(), finished=finished)
    assert summarize(run).changed.startswith("20")
    assert len(read_catalog(Path("runs")).runs) == 1


def test_read_catalog_loop_of_links() -> None:
    write_run(Path("runs"), recipe_of())
    Path("runs/loop").symlink_to("loop")
    assert len(read_catalog(Path("runs")).runs) == 1
    for name in ("loop", "missing"):
        with pytest.raises(InputError, match="no such run or sweep"):
            resolve_run(name, Path("runs"))


def test_summarize_pipe_in_place_of_a_record_does_not_wait() -> None:
    folder = Path("runs/pipe")
    folder.mkdir(parents=True)
    os.mkfifo(folder / "run.json")
    assert summarize(folder).status is RunStatus.OTHER


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({}, RunStatus.FINISHED),
        ({"unfinished": 1}, RunStatus.UNFINISHED),
        ({"failed": [{}], "unfinished": 1}, RunStatus.FAILED),
        ({"cells": "none"}, RunStatus.DAMAGED),
        (None, RunStatus.UNFINISHED),
    ],
)
def test_summarize_sweep(report: dict[str, object] | None, status: RunStatus) -> None:
    recipe = recipe_of(sweep=Sweep(alphas=(5.0, 10.0), seeds=2))
    if report is not None:
        report = {"recommended": "neftune.alpha=5", "conclusion": ["Alpha 5 is better."], **report}
    sweep = write_sweep(Path("runs"), recipe, [recipe_of(0.0), recipe_of(5.0)], report)
    summary = summarize(sweep)
    assert (summary.kind, summary.status, summary.steps) == ("sweep", status, 2)
    if status is not RunStatus.DAMAGED:
        assert (summary.alphas, summary.seeds) == ((0.0, 5.0, 10.0), (0, 1))
        assert summary.recommended == ("neftune.alpha=5" if report else "")
        assert summary.conclusion == (("Alpha 5 is better.",) if report else ())
        with hold_lock(sweep / ".lock"):
            assert summarize(sweep).status is RunStatus.RUNNING


def test_stored_verdicts_newest_first_and_only_with_a_baseline() -> None:
    run = write_run(Path("runs"), recipe_of())
    for index, (baseline, verdict) in enumerate((("old", "lower"), ("new", "not_significant"))):
        file = write_verdict(run, baseline, verdict, folder=baseline)
        os.utime(file, (index, index))
    base_only = run / "evaluation" / "base" / "report.json"
    base_only.parent.mkdir()
    base_only.write_text(json.dumps({"models": [{"role": "run", "name": "x"}], "comparisons": []}))
    damaged = run / "evaluation" / "damaged" / "report.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    assert [verdict.baseline for verdict in stored_verdicts(run)] == ["new", "old"]


def test_read_catalog_newest_first_without_hidden_folders() -> None:
    for day, name in ((1, "first"), (3, "third"), (2, "second")):
        write_run(Path("runs"), recipe_of(), name, finished=f"2026-01-0{day}T00:00:00+0000")
    write_run(Path("runs"), recipe_of(), ".hidden.neft-01234567")
    (Path("runs") / "notes.txt").touch()
    assert [run.name() for run in read_catalog(Path("runs")).runs] == ["third", "second", "first"]


def test_read_catalog_without_runs() -> None:
    assert read_catalog(Path("runs")).runs == ()
    with pytest.raises(InputError, match="there is no such folder"):
        read_catalog(Path("elsewhere"))
    Path("file").touch()
    with pytest.raises(InputError, match="this is a file"):
        read_catalog(Path("file"))


def test_read_catalog_writes_nothing() -> None:
    run = write_run(Path("runs"), recipe_of(), status="running")
    (run / ".lock").touch()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    time.sleep(0.01)
    read_catalog(Path("runs"))
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_resolve_run_suggests_the_nearest_name() -> None:
    write_run(Path("runs"), recipe_of())
    assert resolve_run("mine-a5-s0", Path("runs")) == Path("runs/mine-a5-s0")
    for name in ("mine-a5-s1", "", "x\0", "x" * 5000, "runs"):
        with pytest.raises(InputError, match=r"run or sweep|neither a run nor a sweep") as raised:
            resolve_run(name, Path("runs"))
    with pytest.raises(InputError) as raised:
        resolve_run("mine-a5-s1", Path("runs"))
    assert raised.value.problems[0].did_you_mean == "mine-a5-s0"
