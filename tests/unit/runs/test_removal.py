"""Removal of runs and sweeps.

Oracle: the names and files that are left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError, NeftError
from neftcli.events import RunsRemoved, RunSummary
from neftcli.runs.directory import RunDirectory
from neftcli.runs.removal import plan_removal, remove_runs
from neftcli.system.files import count_bytes
from neftcli.system.locks import hold_lock
from tests.conftest import keep_nfs_files
from tests.written_runs import recipe_of, write_run, write_sweep

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names() -> list[str]:
    return sorted(item.name for item in RUNS.iterdir())


def removed(planned: Sequence[RunSummary]) -> list[RunsRemoved]:
    """Remove runs, and return the events."""
    seen: list[Any] = []
    observer: Any = SimpleNamespace(notify=seen.append)
    remove_runs(planned, observer)
    return seen


def rejected(*typed: str) -> list[str]:
    """Messages of a removal that is rejected, which leaves every file."""
    before = sorted(RUNS.rglob("*"))
    with pytest.raises(InputError) as raised:
        plan_removal(typed, RUNS)
    assert sorted(RUNS.rglob("*")) == before
    return [problem.message for problem in raised.value.problems]


def test_remove_runs_and_sweep_with_their_bytes() -> None:
    write_run(RUNS, recipe_of())
    write_run(RUNS, recipe_of(0.0))
    sweep = write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    (sweep / "best").symlink_to("cells/mine-a0-s0")
    before = count_bytes(RUNS)
    planned = plan_removal(["mine-a5-s0", "runs/mine-sweep/", "./runs/mine-a5-s0"], RUNS)
    [event] = removed(planned)
    assert event.runs == ("runs/mine-a5-s0", "runs/mine-sweep")
    assert names() == ["mine-a0-s0"]
    assert event.freed_bytes == before - count_bytes(RUNS)


def test_remove_runs_of_a_damaged_run() -> None:
    run = write_run(RUNS, recipe_of())
    (run / "run.json").write_text("{")
    removed(plan_removal([str(run)], RUNS))
    assert names() == []


def test_remove_runs_does_not_follow_links(tmp_path: Path) -> None:
    """A link in a run is removed, and its target stays."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("mine")
    run = write_run(RUNS, recipe_of())
    (run / "link").symlink_to(precious)
    shutil.rmtree(run / "model")
    (run / "model").symlink_to(precious)
    (run / ".lock").symlink_to(precious / "data.txt")
    removed(plan_removal([str(run)], RUNS))
    assert names() == []
    assert (precious / "data.txt").read_text() == "mine"


def test_plan_removal_rejects_links_to_runs() -> None:
    elsewhere = write_run(Path("elsewhere"), recipe_of())
    RUNS.mkdir()
    (RUNS / "link").symlink_to(elsewhere.absolute())
    assert rejected("link", "runs/link/") == ["this is a link, and neft follows none"] * 2
    assert elsewhere.is_dir()


def test_plan_removal_accepts_a_linked_parent(tmp_path: Path) -> None:
    """`runs` itself is often a link to a larger disk."""
    (tmp_path / "disk").mkdir()
    RUNS.symlink_to(tmp_path / "disk")
    write_run(RUNS, recipe_of())
    removed(plan_removal(["mine-a5-s0"], RUNS))
    assert names() == []


def test_plan_removal_rejects_what_is_not_a_run_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(RUNS, recipe_of())
    sweep = write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    (sweep / "best").symlink_to("cells/mine-a0-s0")
    (RUNS / "notes").mkdir()
    (RUNS / "notes" / "a.txt").touch()
    (RUNS / "other").mkdir()
    (RUNS / "other" / "run.json").write_text('{"tool": "another"}')
    assert rejected("notes", "other", "mine-a5-s0", "missing", "runs/mine-a5-s0/model", str(sweep / "cells"), ".") == [
        "this is neither a run nor a sweep, so neft does not remove it",
        "this is neither a run nor a sweep, so neft does not remove it",
        "no such run or sweep",
        "this is neither a run nor a sweep, so neft does not remove it",
        "this is neither a run nor a sweep, so neft does not remove it",
        "this folder is neither a run nor a sweep",
    ]
    assert rejected(str(sweep / "cells" / "mine-a0-s0"), str(sweep / "best")) == [
        "this run is a cell of a sweep, which would train it again",
        "this is a link, and neft follows none",
    ]
    monkeypatch.chdir(run / "model")
    with pytest.raises(InputError, match="the current folder is in this run"):
        plan_removal([str(Path.cwd().parent)], RUNS)


@pytest.mark.parametrize("lock", ["mine-a5-s0/.lock", "mine-a5-s0/evaluation/.lock", "mine-sweep/.lock"])
def test_plan_removal_rejects_what_is_in_use(lock: str) -> None:
    run = write_run(RUNS, recipe_of())
    (run / "evaluation").mkdir()
    write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    with hold_lock(RUNS / lock):
        [message] = rejected("mine-a5-s0", "mine-sweep")
    assert message.startswith(f"runs/{lock.partition('/')[0]}: another process ")


def test_remove_runs_rejects_a_run_that_was_locked_after_the_question() -> None:
    sweep = write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    planned = plan_removal(["mine-sweep"], RUNS)
    with hold_lock(sweep / "cells" / "mine-a0-s0" / ".lock"), pytest.raises(InputError, match="another process"):
        removed(planned)
    assert (sweep / "sweep.json").is_file()


def test_remove_runs_reports_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS if a process has a file open. The run's name is free at once, and the next removal tries again."""
    run = write_run(RUNS, recipe_of())
    (run / ".nfs01").write_bytes(b"open")
    with monkeypatch.context() as patched:
        keep_nfs_files(patched)
        with pytest.raises(NeftError, match="some of its files can't be deleted") as raised:
            removed(plan_removal([str(run)], RUNS))
    [hidden] = names()
    assert hidden in raised.value.problems[0].hint
    assert os.listdir(RUNS / hidden) == [".nfs01"]
    other = write_run(RUNS, recipe_of(0.0))
    removed(plan_removal([str(other)], RUNS))
    assert names() == []


def test_run_directory_create_finishes_a_removal_that_was_killed() -> None:
    write_run(RUNS, recipe_of(), ".mine-a5-s0.removed.neft-01234567")
    write_run(RUNS, recipe_of(), ".mine-a5-s0.neft-01234567")
    (RUNS / ".link.removed.neft-01234567").symlink_to(RUNS.absolute())
    RunDirectory.create(RUNS, "next").remove()
    assert names() == [".link.removed.neft-01234567", ".mine-a5-s0.neft-01234567"]


def test_remove_runs_removes_the_others_of_one_in_use() -> None:
    for alpha in (0.0, 5.0):
        write_run(RUNS, recipe_of(alpha))
    planned = plan_removal(["mine-a0-s0", "mine-a5-s0"], RUNS)
    with hold_lock(RUNS / "mine-a0-s0" / ".lock"), pytest.raises(NeftError, match="another process trains") as raised:
        removed(planned)
    assert raised.value.exit_code == 1
    assert names() == ["mine-a0-s0"]


def test_remove_runs_writes_no_lock_through_a_link(tmp_path: Path) -> None:
    elsewhere = write_run(tmp_path / "elsewhere", recipe_of(1.0))
    before = sorted(elsewhere.rglob("*"))
    sweep = write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    (sweep / "cells" / "linked").symlink_to(elsewhere)
    (sweep / "cells" / "mine-a0-s0" / "evaluation").symlink_to(elsewhere / "model")
    removed(plan_removal(["mine-sweep"], RUNS))
    assert names() == []
    assert sorted(elsewhere.rglob("*")) == before


def test_plan_removal_resolves_parents_as_the_system_does(tmp_path: Path) -> None:
    """`link/../x` is next to the target of the link."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/deep")
    write_run(tmp_path / "disk", recipe_of(), "x")
    write_run(tmp_path, recipe_of(), "x")
    removed(plan_removal(["link/../x"], RUNS.absolute()))
    assert not (tmp_path / "disk" / "x").exists()
    assert (tmp_path / "x").exists()
    with pytest.raises(InputError, match=r"neither a run nor a sweep|no such run"):
        plan_removal(["x/model/.."], RUNS)
