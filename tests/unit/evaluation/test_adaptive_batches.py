"""Batches that are halved on OOM.

Oracle: the plain loop over the items, with room for a known number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neftcli.evaluation.adaptive_batches import iter_batches

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50), st.integers(1, 50), st.sampled_from(ERRORS))
def test_iter_batches_each_item_once_in_order(items: list[int], size: int, fits: int, error: Exception) -> None:
    notices: list[str] = []
    sizes: list[int] = []

    def square(batch: Sequence[int]) -> list[int]:
        if len(batch) > fits:
            raise error
        sizes.append(len(batch))
        return [item * item for item in batch]

    observer = SimpleNamespace(notify=lambda event: notices.append(event.message))
    done = [pair for batch in iter_batches(items, size, square, observer) for pair in batch]
    assert done == [(item, item * item) for item in items]
    assert all(count <= min(size, fits) for count in sizes)
    assert bool(notices) == (min(size, len(items)) > fits)


@pytest.mark.parametrize("error", ERRORS)
def test_iter_batches_one_item_too_large(error: Exception) -> None:
    def never(batch: Sequence[int]) -> list[int]:
        raise error

    with pytest.raises(type(error)):
        list(iter_batches([1, 2, 3], 2, never))


def test_iter_batches_passes_other_errors_on() -> None:
    calls: list[int] = []

    def broken(batch: Sequence[int]) -> list[int]:
        calls.append(len(batch))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(iter_batches([1, 2, 3], 2, broken))
    assert calls == [2]
