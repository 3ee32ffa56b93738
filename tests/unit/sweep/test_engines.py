"""Engines: devices, signals while a worker starts, results of tasks, and nodes without the folder.

Oracles: the variable that CUDA reads, the kernel's signal masks of a process, and planted results and errors of Ray.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError, Problem
from neftcli.sweep.engines import ray_engine
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.sweep.engines.local_engine import LocalEngine, list_devices
from neftcli.sweep.engines.ray_engine import RayEngine
from neftcli.sweep.engines.worker import SIGNALS
from neftcli.sweep.plan import Cell
from tests.unit.sweep.planted import plan


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, [None]),
        (None, 1, [None]),
        (None, 3, ["0", "1", "2"]),
        ("", 0, [None]),
        ("3", 1, [None]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-a1, GPU-b2", 2, ["GPU-a1", "GPU-b2"]),
        ("1,0,-1,2", 2, ["1", "0"]),
    ],
)
def test_list_devices(
    visible: str | None, count: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker sets CUDA_VISIBLE_DEVICES to its entry, so an entry must mean the same device in both processes."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert list_devices() == expected


def signals_of(process: int) -> dict[str, int]:
    """Return the signals that a process's main thread blocks and ignores, as bit sets, by the kernel's names."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        name: int(value, 16)
        for name, _, value in (line.partition(":") for line in lines)
        if name.startswith("Sig") and "/" not in value
    }


def test_local_engine_worker_never_receives_signals(tmp_path: Path) -> None:
    """A worker blocks or ignores signals from its start; finally it ignores them, and this process is unchanged."""
    wanted = sum(1 << (number - 1) for number in SIGNALS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    local, deadline = LocalEngine([None], 0, tmp_path / "workers.log"), time.monotonic() + 60
    worker = local.start_worker(None)

    try:
        assert worker.process.pid is not None
        while (found := signals_of(worker.process.pid))["SigIgn"] & wanted != wanted:
            assert found["SigBlk"] & wanted | found["SigIgn"] & wanted == wanted
            assert time.monotonic() < deadline
        while signals_of(worker.process.pid)["SigBlk"] & wanted:
            assert time.monotonic() < deadline
    finally:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        local.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


class RayError(Exception):
    """Base class of Ray's errors."""


class GetTimeoutError(RayError):
    """A result did not arrive in time."""


def ray_engine_with(result: Any, folder: Path, retries: int = 1) -> RayEngine:
    """Return an engine without a cluster, whose tasks return `result`, or raise it."""

    def get(_reference: object, timeout: float) -> Any:
        assert timeout
        if isinstance(result, Exception):
            raise result
        return result

    engine = RayEngine.__new__(RayEngine)
    errors = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError, RayTaskError=RayError)
    state: dict[str, Any] = {"_ray": SimpleNamespace(get=get, exceptions=errors), "_retries": retries}
    engine.__dict__.update(state | {"_folder": folder, "_stopping": False, "_started": set(), "_tasks": {}})
    return engine


def statuses(engine: RayEngine, cell: Cell) -> tuple[list[str], int]:
    """Return the statuses of the tries of a cell, and their number."""
    queue, found, tries = ray_engine.deque([cell]), list[str](), 0
    counter = ray_engine.Counter[str]()
    while queue:
        engine._tasks = {"task": queue.popleft()}
        engine._end("task", queue, counter, lambda _cell, outcome: found.append(outcome.status))
        tries += 1
    return found, tries


def test_ray_engine_retries_unexpected_errors_only(tmp_path: Path) -> None:
    """A cell is retried as often as by the local engine."""
    [cell, *_] = plan("sweep.alphas=[5]")
    problems = (Problem("x"),)
    unexpected = CellOutcome("failed", problems=problems, may_retry=True)  # type: ignore[arg-type]
    expected = CellOutcome("failed", problems=problems)  # type: ignore[arg-type]
    assert statuses(ray_engine_with(unexpected, tmp_path, retries=2), cell) == (["waiting", "waiting", "failed"], 3)
    assert statuses(ray_engine_with(expected, tmp_path, retries=2), cell) == (["failed"], 1)
    stopping = ray_engine_with(unexpected, tmp_path)
    stopping.stop()
    assert statuses(stopping, cell) == (["preempted"], 1)


def test_ray_engine_waits_for_a_result_that_is_lost_with_its_node(tmp_path: Path) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")
    engine = ray_engine_with(GetTimeoutError(), tmp_path)
    engine._tasks = {"task": cell}
    engine._end("task", ray_engine.deque(), ray_engine.Counter(), lambda *_: pytest.fail("it has not ended"))
    assert engine._tasks == {"task": cell}


@pytest.mark.parametrize(
    ("result", "message", "got"),
    [
        ("", None, None),
        ("it does not see /mine", "--engine ray: node 10.0.0.2 can't use the sweep's folder", "it does not see /mine"),
        (RayError("ModuleNotFoundError: neftcli"), "node 10.0.0.2 can't run neft", "ModuleNotFoundError: neftcli"),
    ],
)
def test_ray_engine_check_nodes(result: Any, message: str | None, got: str | None, tmp_path: Path) -> None:
    """Nodes are checked before any cell is submitted."""
    engine = ray_engine_with(result, tmp_path)
    engine._probe = tmp_path / "probe"
    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _probe: "reference"))
    engine._ray.remote = lambda **_: lambda _function: remote
    nodes = [{"NodeManagerAddress": "10.0.0.2", "NodeID": "ab" * 28}]
    if message is None:
        engine._check_nodes(nodes)
        return
    with pytest.raises(InputError) as caught:
        engine._check_nodes(nodes)
    [problem] = caught.value.problems
    assert message in problem.message
    assert problem.got == got
    assert problem.hint.startswith(("--output-dir FOLDER on a file system that all nodes share", "install neft"))
