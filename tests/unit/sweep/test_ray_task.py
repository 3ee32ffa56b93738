"""A sweep's task in a process that Ray started.

Oracle: the umask of the process. The mailbox is a real one, called without Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import Problem, RunLockedError
from neftcli.recipe.schema import Recipe
from neftcli.sweep.engines import ray_task as module
from neftcli.sweep.engines.ray_task import CellTask, Mailbox, check_folder, run_task

pytest.importorskip("ray")


@dataclass
class Method:
    """A method with the interface of an actor's."""

    method: Callable[..., Any]

    def remote(self, *arguments: Any) -> Method:
        """Call it."""
        self.result = self.method(*arguments)
        return self

    def future(self) -> Future[Any]:
        """Return a future that has the result of the last call."""
        found: Future[Any] = Future()
        found.set_result(self.result)
        return found


class Actor:
    """A mailbox with the interface of an actor."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.put, self.is_stop_requested = Method(self.mailbox.put), Method(self.mailbox.is_stop_requested)


def task_in(folder: Path) -> CellTask:
    """Return a task whose probe file is in `folder`; it may be missing."""
    return CellTask(Recipe(), "key", folder / ".ray-probe", folder)


def test_run_task_restricts_the_umask(tmp_path: Path) -> None:
    """Ray starts its processes, so they don't have the command's umask."""
    actor = Actor()
    actor.mailbox.request_stop()
    before = os.umask(0)
    try:
        assert run_task(task_in(tmp_path), actor).status == "preempted"
        restricted = os.umask(0)
    finally:
        os.umask(before)
    assert restricted == 0o002


def test_run_task_on_a_node_without_the_folder_creates_nothing(tmp_path: Path) -> None:
    """Such a node may join the cluster after the sweep has checked all nodes."""
    result = run_task(task_in(tmp_path / "elsewhere"), Actor())
    assert (result.status, result.may_retry) == ("failed", False)
    assert result.problems[0].got == f"it does not see {tmp_path / 'elsewhere'}"
    assert list(tmp_path.iterdir()) == []


def test_check_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe"
    assert check_folder(probe) == f"it does not see {tmp_path}"
    probe.touch()
    assert check_folder(probe) == ""
    assert check_folder(probe, [tmp_path, probe]) == ""
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model"
    assert check_folder(probe, [rows, tmp_path, model]) == f"it does not see {rows}, {model}"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert check_folder(probe) == f"it can't write to {tmp_path}"


@pytest.mark.parametrize("exists", [True, False])
def test_run_task_works_in_the_folder_that_relative_paths_start_from(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported from that folder; a node without it works in the sweep's folder."""
    project, sweep, before = tmp_path / "project", tmp_path / "sweep", Path.cwd()
    sweep.mkdir()
    (sweep / ".ray-probe").touch()
    if exists:
        project.mkdir()
    seen: list[Path] = []

    def run_cell(*_arguments: Any) -> str:
        seen.append(Path.cwd())
        assert "" not in sys.path
        return "run"

    monkeypatch.setattr("neftcli.sweep.engines.ray_task.run_cell", run_cell)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    result = run_task(CellTask(Recipe(), "key", sweep / ".ray-probe", project), Actor())
    assert (result.status, result.run) == ("finished", "run")
    assert seen == [project if exists else sweep]
    assert Path.cwd() == before


@pytest.mark.parametrize("ends", ["unlocked", "stopped", "still locked"])
def test_run_task_waits_for_a_locked_run(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may restart a cell while its former worker still trains it."""
    (tmp_path / ".ray-probe").touch()
    actor = Actor()
    attempts: list[float] = []
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if ends == "stopped":
            actor.mailbox.request_stop()

    def run_cell(*_arguments: Any) -> str:
        attempts.append(now)
        if ends != "unlocked" or len(attempts) < 3:
            raise RunLockedError(Problem("locked"))
        return "run"

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module, "run_cell", run_cell)
    result = run_task(task_in(tmp_path), actor)
    status = {"unlocked": "finished", "stopped": "preempted", "still locked": "failed"}
    assert result.status == status[ends]
    last = 1 + round(module.LOCK_TIMEOUT / module.LOCK_POLL_INTERVAL)
    assert len(attempts) == {"unlocked": 3, "stopped": 3, "still locked": last}[ends]
    assert [problem.message for problem in result.problems] == ["locked"] * (ends == "still locked")
