"""Engines: devices, signals while a worker starts, results of tasks, and nodes without the folder.

Oracles: the variable that CUDA reads, the kernel's signal masks of a process, and planted results and errors of Ray.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError, Problem
from neftcli.events import CellStatus
from neftcli.sweep.engines import local_engine
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.sweep.engines.local_engine import LocalEngine, Worker, list_devices
from neftcli.sweep.engines.ray_engine import RayEngine
from neftcli.sweep.engines.ray_task import check_folder
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


class FakeRay:
    """A cluster of one node, and perhaps a second one, whose tasks have planted results.

    Args:
        results: Result or error of each call of a cell's task, in order.
        nodes: Ids of the nodes; the first one is this machine.
        check: Result or error of the check of the second node.
    """

    def __init__(self, results: Sequence[Any] = (), nodes: Sequence[str] = ("a" * 56,), check: Any = "") -> None:
        self.results, self.check, self.submitted = list(results), check, 0
        self.exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError, RayTaskError=TaskError)
        self.is_connected, self.retries_of_ray = False, 0
        resources = {"CPU": 1}
        self._nodes = [
            {"NodeID": node, "NodeManagerAddress": f"10.0.0.{number}", "Alive": True, "Resources": resources}
            for number, node in enumerate(nodes, 1)
        ]

    def init(self, *_: Any, **__: Any) -> None:
        """Connect."""
        self.is_connected = True

    def shutdown(self) -> None:
        """Disconnect."""
        self.is_connected = False

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as Ray describes them."""
        return self._nodes

    def get_runtime_context(self) -> Any:
        """Return an object that knows the own node's id."""
        return SimpleNamespace(get_node_id=lambda: self._nodes[0]["NodeID"])

    def available_resources(self) -> dict[str, int]:
        """Return the free resources."""
        return {"CPU": 1}

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        """Return a decorator for the mailbox, the check of a folder, and the task of a cell."""

        def decorate(target: Any) -> Any:
            if isinstance(target, type):  # the mailbox, which stays empty
                methods = {name: SimpleNamespace(remote=lambda name=name: name) for name in ("take", "request_stop")}
                return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: SimpleNamespace(**methods)))
            if target is check_folder:
                return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _probe, _inputs: "check"))
            self.retries_of_ray = options["max_retries"]
            return SimpleNamespace(remote=self._submit)

        return decorate

    def _submit(self, *_: Any) -> str:
        self.submitted += 1
        return f"task {self.submitted}"

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        """Return all references: each has ended."""
        return references, []

    def cancel(self, _reference: Any, *, force: bool) -> None:
        """Nothing is canceled."""
        assert not force

    def get(self, reference: str, timeout: float = 0.0) -> Any:
        """Return the planted result, or raise the planted error."""
        if reference == "take":
            return []
        result = self.check if reference == "check" else self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


class RayError(Exception):
    """Base class of Ray's errors."""


class TaskError(RayError):
    """A task raised an exception."""


class GetTimeoutError(RayError):
    """A result did not arrive in time."""


@pytest.fixture
def ray_engine_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., RayEngine]]:
    """Builds an engine on a fake cluster."""
    engines = []

    def build(cluster: FakeRay, retries: int = 1, folder: Path = tmp_path) -> RayEngine:
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
        worker = SimpleNamespace(print_worker_logs=None)
        monkeypatch.setitem(sys.modules, "ray", cluster)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "ray._private", SimpleNamespace(worker=worker))  # type: ignore[arg-type]
        engines.append(RayEngine(None, retries, folder))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def statuses(engine: RayEngine, cell: Cell) -> list[str]:
    """Return the statuses that the engine reports of a cell, in order."""
    outcomes: list[str] = []
    engine.run([cell], lambda *_: None, lambda _cell, outcome: outcomes.append(outcome.status))
    return outcomes


UNEXPECTED = CellOutcome(CellStatus.FAILED, problems=(Problem("x"),), may_retry=True)
EXPECTED = CellOutcome(CellStatus.FAILED, problems=(Problem("x"),))


@pytest.mark.parametrize(
    ("results", "reported"),
    [
        ([UNEXPECTED, UNEXPECTED, UNEXPECTED], ["waiting", "waiting", "failed"]),
        ([EXPECTED], ["failed"]),
        ([UNEXPECTED, CellOutcome(CellStatus.FINISHED)], ["waiting", "finished"]),
        ([GetTimeoutError(), CellOutcome(CellStatus.FINISHED)], ["finished"]),  # it arrived late
        ([RayError("lost")] * 3, ["waiting", "waiting", "failed"]),
        ([RayError("lost"), UNEXPECTED, RayError("lost")], ["waiting", "waiting", "failed"]),
        ([RayError("lost"), CellOutcome(CellStatus.FINISHED)], ["waiting", "finished"]),
        ([TaskError("a frame\nImportError: neftcli")], ["failed"]),
    ],
)
def test_ray_engine_retries_unexpected_errors_only(
    results: list[Any], reported: list[str], ray_engine_with: Callable[..., RayEngine]
) -> None:
    """A cell is retried as often as by the local engine, and Ray itself retries nothing."""
    [cell, *_] = plan("sweep.alphas=[5]")
    cluster = FakeRay(results)
    assert statuses(ray_engine_with(cluster, retries=2), cell) == reported
    assert cluster.results == []
    assert cluster.submitted == len(reported)
    assert cluster.retries_of_ray == 0


def test_ray_engine_names_the_tries_of_a_lost_cell(ray_engine_with: Callable[..., RayEngine]) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")
    outcomes: list[CellOutcome] = []
    engine = ray_engine_with(FakeRay([RayError("the node died")] * 2), retries=1)
    engine.run([cell], lambda *_: None, lambda _cell, outcome: outcomes.append(outcome))
    problems = [outcome.problems[0] for outcome in outcomes]
    assert [problem.message for problem in problems] == [
        "its worker or node was lost",
        "its worker or node was lost 2 times",
    ]
    assert {problem.got for problem in problems} == {"the node died"}


def test_ray_engine_disconnects_if_it_cannot_start(ray_engine_with: Callable[..., RayEngine], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cluster = FakeRay()
    with pytest.raises(OSError, match="Not a directory"):
        ray_engine_with(cluster, folder=tmp_path / "file" / "sweep")
    assert not cluster.is_connected


def test_local_engine_replaces_a_worker_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has lost its connection and does not end is killed."""
    monkeypatch.setattr(local_engine, "EXIT_TIMEOUT", 0.1)
    engine = LocalEngine([None], 1, tmp_path / "workers.log")
    context = multiprocessing.get_context("fork")
    workers: list[Worker] = []

    def start_worker(device: str | None) -> Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=finish_cell if workers else hang, args=(ours, theirs))
        process.start()
        theirs.close()
        workers.append(Worker(process, ours, device))
        return workers[-1]

    monkeypatch.setattr(engine, "start_worker", start_worker)
    [cell, *_] = plan("sweep.alphas=[5]")
    outcomes: list[CellOutcome] = []
    started = time.monotonic()
    engine.run([cell], lambda *_: None, lambda _, outcome: outcomes.append(outcome))
    engine.close()
    assert time.monotonic() - started < 30
    assert outcomes[-1].status == "finished"
    assert [worker.process.exitcode for worker in workers] == [-signal.SIGKILL] * 2


def hang(*connections: Any) -> None:
    """Close the connections, and don't end."""
    for connection in connections:
        connection.close()
    time.sleep(60)


def finish_cell(ours: Any, theirs: Any) -> None:
    """Report a cell as finished, and wait for the next one."""
    ours.close()
    theirs.recv()
    theirs.send(CellOutcome(CellStatus.FINISHED))
    theirs.recv()


def test_ray_engine_stops_without_a_retry(ray_engine_with: Callable[..., RayEngine]) -> None:
    """After a stop, a cell that fails unexpectedly is preempted, and so is a cell that waits."""
    [cell, *_] = plan("sweep.alphas=[5]")
    cluster = FakeRay([UNEXPECTED])
    engine = ray_engine_with(cluster)
    cluster.wait = lambda references, timeout: engine.stop() or (references, [])  # type: ignore[method-assign, func-returns-value]
    assert statuses(engine, cell) == ["preempted"]
    assert cluster.submitted == 1
    assert statuses(engine, cell) == ["preempted"]
    assert cluster.submitted == 1


@pytest.mark.parametrize(
    ("result", "message", "got"),
    [
        ("", None, None),
        (
            "it does not see /mine",
            "--engine ray: node 10.0.0.2 can't use the sweep's folder or its inputs",
            "it does not see /mine",
        ),
        (RayError("ModuleNotFoundError: neftcli"), "node 10.0.0.2 can't run neft", "ModuleNotFoundError: neftcli"),
    ],
)
def test_ray_engine_checks_nodes(
    result: Any, message: str | None, got: str | None, ray_engine_with: Callable[..., RayEngine]
) -> None:
    """Other nodes are checked before any cell is submitted."""
    cluster = FakeRay(nodes=("a" * 56, "b" * 56), check=result)
    if message is None:
        ray_engine_with(cluster)
        return
    with pytest.raises(InputError) as caught:
        ray_engine_with(cluster)
    [problem] = caught.value.problems
    assert message in problem.message
    assert problem.got == got
    assert problem.hint.startswith(("--output-dir FOLDER on a file system that all nodes share", "install neft"))
