"""What engines do without a worker: which devices they take, and how they take what a cluster returns.

Oracles: the variable that CUDA reads, and an error in the place of a file system's.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.errors import InputError, Problem
from neftcli.sweep import cluster
from neftcli.sweep.cluster import RayEngine
from neftcli.sweep.local import devices
from neftcli.sweep.node import Returned
from neftcli.sweep.plan import Cell
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
    queue, states, tried = cluster.deque([cell]), list[str](), 0
    tries = cluster.Counter[str]()
    while queue:
        made._waiting = {"ref": queue.popleft()}
        made._end("ref", queue, tries, lambda _cell, outcome: states.append(outcome.state))
        tried += 1
    return states, tried


def test_a_fault_is_tried_again_and_what_is_wrong_is_not(tmp_path: Path) -> None:
    """As often as the local engine does it."""
    [cell, *_] = plan("sweep.alphas=[5]")
    problem = (Problem("x"),)
    assert ended(engine(tmp_path, Returned("failed", problem, again=True), retries=2), cell) == (["failed"], 3)
    assert ended(engine(tmp_path, Returned("failed", problem), retries=2), cell) == (["failed"], 1)
    stopping = engine(tmp_path, Returned("failed", problem, again=True))
    stopping.stop()
    assert ended(stopping, cell) == (["stopped"], 1)


@pytest.mark.parametrize("error", [InputError(Problem("can't be written")), OSError(28, "No space left")])
def test_a_run_that_can_not_arrive_is_a_failed_cell(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(cluster, "arrived", fail)
    outcome, again = engine(tmp_path, Returned("done", name="x", content=b"tar"))._outcome("ref", cell)
    assert (outcome.state, again) == ("failed", False)
    assert "the run can't be written here" in outcome.problems[0].violated


def test_a_result_that_is_lost_with_its_node_is_waited_for(tmp_path: Path) -> None:
    [cell, *_] = plan("sweep.alphas=[5]")
    made = engine(tmp_path, GetTimeoutError())
    made._waiting = {"ref": cell}
    made._end("ref", cluster.deque(), cluster.Counter(), lambda *_: pytest.fail("it has not ended"))
    assert made._waiting == {"ref": cell}
