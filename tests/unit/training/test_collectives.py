"""Agreement between processes; the others are replaced by the values that they would send.

Oracle: the same measured by one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.evaluation.loss import RowLoss
from neftcli.recipe.loading import parse_assignment, resolve_recipe
from neftcli.system import distributed
from neftcli.training.collectives import join_run, require_same_inputs, split_across_processes
from neftcli.training.signals import StopRequested, StopSignal


def measure(rows: Sequence[int]) -> list[RowLoss]:
    """Return losses from which each row can be recognised."""
    return [RowLoss(f"row {row}", row / 7, row, row // 2) for row in rows]


@pytest.fixture
def with_others(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes this process rank 0 of several; `others` returns the value of a rank."""

    def play(number: int, others: Callable[[int], Any]) -> None:
        monkeypatch.setenv("WORLD_SIZE", str(number))
        monkeypatch.setattr(distributed, "all_gather_object", lambda mine: [mine, *map(others, range(1, number))])

    return play


@pytest.mark.parametrize("rows", range(8))
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_split_across_processes_order(rows: int, number: int, with_others: Callable[..., None]) -> None:
    everything = list(range(rows))
    with_others(number, lambda rank: [astuple(loss) for loss in measure(everything[rank::number])])
    assert list(split_across_processes(everything, measure, RowLoss)) == measure(everything)


def test_split_across_processes_stop(with_others: Callable[..., None]) -> None:
    def stopped(rows: Sequence[int]) -> list[RowLoss]:
        raise StopRequested

    with_others(2, lambda _: [])
    with pytest.raises(StopRequested):
        split_across_processes([1, 2], stopped, RowLoss)
    with_others(2, lambda _: None)
    with pytest.raises(StopRequested):
        split_across_processes([1, 2], measure, RowLoss)


def test_require_same_inputs(with_others: Callable[..., None]) -> None:
    mine = {"data_sha256": "a" * 64, "model_fingerprint": "m"}
    with_others(2, lambda _: mine)
    require_same_inputs(mine)
    with_others(2, lambda _: {**mine, "data_sha256": "b" * 64})
    with pytest.raises(InputError, match="the processes see different data") as caught:
        require_same_inputs(mine)
    assert f"{'a' * 20}, {'b' * 20}" in str(caught.value)


def test_join_run_wrong_number_of_processes() -> None:
    with pytest.raises(InputError, match=r"the recipe expects 2 processes\n  got      1 running"):
        join_run(resolve_recipe([parse_assignment("training.processes=2")]), None, StopSignal())
