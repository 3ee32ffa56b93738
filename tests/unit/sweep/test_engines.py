"""What engines do around their work: devices, signals while a worker starts, and how they take what a cluster returns.

Oracles: the variable that CUDA reads, what the kernel says of a process's signals, and an error in the place of a file
system's.
"""

from __future__ import annotations

import errno
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError, NeftError, Problem
from neftcli.events import Event, Notice
from neftcli.recipe.loading import to_yaml
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.engines import ray_engine
from neftcli.sweep.engines.local_engine import LocalEngine, devices
from neftcli.sweep.engines.ray_engine import RayEngine
from neftcli.sweep.engines.ray_task import Returned
from neftcli.sweep.engines.worker import SIGNALS
from neftcli.sweep.folder import explained
from neftcli.sweep.plan import Cell
from tests.checkpoint import FACTS, write_trainer_state
from tests.conftest import new_run
from tests.unit.sweep.test_verdict import plan


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
def test_devices_are_those_that_were_given(
    visible: str | None, count: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker sets the variable to its entry, so an entry has to mean there what it meant here."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert devices() == expected


def signals_of(process: int) -> dict[str, int]:
    """The signals that a process's main thread blocks and ignores, as sets of bits, by the kernel's names."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        name: int(value, 16)
        for name, _, value in (line.partition(":") for line in lines)
        if name.startswith("Sig") and "/" not in value
    }


def test_no_signal_finds_a_worker_that_does_not_ignore_it_yet(tmp_path: Path) -> None:
    """At every look from its first moment on; in the end it ignores them, and this process is as it was."""
    wanted = sum(1 << (number - 1) for number in SIGNALS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    local, deadline = LocalEngine([None], 0, tmp_path / "workers.log"), time.monotonic() + 60
    worker = local._started(None)
    local._workers.append(worker)
    try:
        assert worker.process.pid is not None
        while (found := signals_of(worker.process.pid))["SigIgn"] & wanted != wanted:
            assert found["SigBlk"] & wanted | found["SigIgn"] & wanted == wanted
            assert time.monotonic() < deadline
        while signals_of(worker.process.pid)["SigBlk"] & wanted:
            assert time.monotonic() < deadline
    finally:
        local.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


class RayError(Exception):
    """Of Ray's errors the base."""


class GetTimeoutError(RayError):
    """A result did not come in time."""


def engine(folder: Path, returned: Returned | Exception, retries: int = 1) -> RayEngine:
    """An engine that is joined to no cluster, to whose task the answer is `returned`."""

    def get(_ref: object, timeout: float) -> Returned:
        assert timeout
        if isinstance(returned, Exception):
            raise returned
        return returned

    made = RayEngine.__new__(RayEngine)
    errors = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError, RayTaskError=RayError)
    state: dict[str, Any] = {"_ray": SimpleNamespace(get=get, exceptions=errors), "_retries": retries}
    made.__dict__.update(state | {"_folder": folder, "_stopping": False, "_begun": set(), "_waiting": {}})
    return made


def ended(made: RayEngine, cell: Cell) -> tuple[list[str], int]:
    """How the cell ended, and how often it was tried."""
    queue, states, tried = ray_engine.deque([cell]), list[str](), 0
    tries = ray_engine.Counter[str]()
    while queue:
        made._waiting = {"ref": queue.popleft()}
        made._end("ref", queue, tries, lambda _cell, outcome: states.append(outcome.status))
        tried += 1
    return states, tried


def test_a_fault_is_tried_again_and_what_is_wrong_is_not(tmp_path: Path) -> None:
    """As often as the local engine does it."""
    [cell, *_] = plan("sweep.alphas=[5]")
    problem = (Problem("x"),)
    assert ended(engine(tmp_path, Returned("failed", problem, again=True), retries=2), cell) == (
        ["waiting", "waiting", "failed"],
        3,
    )
    assert ended(engine(tmp_path, Returned("failed", problem), retries=2), cell) == (["failed"], 1)
    stopping = engine(tmp_path, Returned("failed", problem, again=True))
    stopping.stop()
    assert ended(stopping, cell) == (["preempted"], 1)


def let_no_run_arrive(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each that comes ends in `error`."""

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(ray_engine, "arrived", fail)


@pytest.mark.parametrize("error", [InputError(Problem("can't be written")), OSError(errno.EIO, "Input/output error")])
def test_a_run_that_can_not_arrive_is_a_failed_cell(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")
    let_no_run_arrive(error, monkeypatch)
    outcome, again = engine(tmp_path, Returned("finished", name="x", content=b"tar"))._outcome("ref", cell)
    assert (outcome.status, again) == ("failed", False)
    assert "the run can't be written here" in outcome.problems[0].message


def test_a_result_that_is_lost_with_its_node_is_waited_for(tmp_path: Path) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")
    made = engine(tmp_path, GetTimeoutError())
    made._waiting = {"ref": cell}
    made._end("ref", ray_engine.deque(), ray_engine.Counter(), lambda *_: pytest.fail("it has not ended"))
    assert made._waiting == {"ref": cell}


def refused_for_want_of_room() -> InputError:
    """What `RunDirectory.create` says of a full disk."""
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError:
            raise InputError(Problem("output_dir: cells can't be written")) from None
    except InputError as error:
        return error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), refused_for_want_of_room()])
def test_a_full_disk_ends_the_sweep_and_not_cell_by_cell(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run can arrive any more, so nothing further is trained for nothing."""
    [cell, *_] = plan("sweep.alphas=[5]")
    let_no_run_arrive(error, monkeypatch)
    full = engine(tmp_path, Returned("finished", name="x", content=b"tar"))
    kept = "the disk is full; what is done is kept"
    with pytest.raises(NeftError, match=kept) as caught, explained(tmp_path, "neft again"):
        ended(full, cell)
    assert not isinstance(caught.value, InputError), "something was started"
    [problem] = caught.value.problems
    assert str(tmp_path) in problem.got
    assert problem.hint == "make room, then the same command again"


# What goes along with a cell


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Cell, RunDirectory]:
    """A cell, and its run with checkpoints behind two updates."""
    [planned, *_] = plan("sweep.alphas=[5]")
    cell = replace(planned, recipe=replace(planned.recipe, output_dir=str(tmp_path / "cells")))
    run = new_run(tmp_path / "cells", cell.recipe.run_name())
    run.write_text("recipe.yaml", to_yaml(cell.recipe))
    run.write_json("run.json", {"status": "preempted", "recipe_sha256": cell.key})
    checkpoints = Checkpoints(run.checkpoints, 5)
    for step in (1, 2):
        checkpoints.place(step).mkdir(parents=True)
        (checkpoints.place(step) / "weights.bin").write_bytes(b"weights")
        write_trainer_state(checkpoints.place(step), step)
        checkpoints.publish(step, FACTS)
    return cell, run


def given(made: RayEngine, cell: Cell) -> tuple[list[Event], list[tuple[str, str]], list[str]]:
    """What is said of a cell, how it ends and which run goes along when it is given to the cluster."""
    said: list[Event] = []
    ends: list[tuple[str, str]] = []
    runs: list[str] = []
    task = SimpleNamespace(remote=lambda errand, *_: runs.append(errand.run))
    made.__dict__.update({"_task": task, "_mailbox": None, "_sent": {}})
    made._ray.put = lambda content: content
    made._submit(
        cell,
        lambda _cell, event: said.append(event),
        lambda _cell, outcome: ends.append((outcome.status, outcome.problems[0].message)),
    )
    return said, ends, runs


def test_a_run_that_another_process_trains_does_not_go_along(
    tmp_path: Path, stopped: tuple[Cell, RunDirectory]
) -> None:
    cell, run = stopped
    with run.lock():
        said, ends, runs = given(engine(tmp_path, Returned("finished")), cell)
    assert (said, runs) == ([], [])
    assert ends == [("failed", f"{run.path}: another process is training this run")]
    assert (run.path / "run.json").is_file()
    assert given(engine(tmp_path, Returned("finished")), cell) == ([], [], [run.path.name])


def test_damaged_checkpoints_are_told_of_where_they_are(tmp_path: Path, stopped: tuple[Cell, RunDirectory]) -> None:
    """Of the newest alone, the one before it goes along; of all, the cell begins again and nothing is taken away."""
    cell, run = stopped
    checkpoints = Checkpoints(run.checkpoints, 5)
    for step, goes_along, last in ((2, run.path.name, "passed over"), (1, "", "stays as it is")):
        (checkpoints.place(step) / "weights.bin").write_bytes(b"other")
        said, ends, runs = given(engine(tmp_path, Returned("finished")), cell)
        messages = [event.message for event in said if isinstance(event, Notice)]
        assert (ends, runs, len(messages)) == ([], [goes_along], len(said))
        assert any(f"{checkpoints.place(step)}: weights.bin has 5 bytes, not 7" in message for message in messages)
        assert last in messages[-1]
    assert checkpoints.place(2).is_dir()
