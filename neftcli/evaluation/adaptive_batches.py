"""Batches whose size is halved on OOM, so that an evaluation continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from neftcli.events import Notice, Observer
from neftcli.system.device import is_out_of_memory
from neftcli.wording import count_noun

Item = TypeVar("Item")
Result = TypeVar("Result")


def iter_batches(
    items: Sequence[Item],
    size: int,
    compute: Callable[[Sequence[Item]], Sequence[Result]],
    observer: Observer | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """Yield the items with their results, batch by batch, in order.

    If a batch runs out of memory, it is computed again in halves, and later batches have the smaller size.

    Args:
        items: The items.
        size: Items per batch, if memory allows.
        compute: Computes the results of a batch, in its order.
        observer: Receives a notice when the size is halved.

    Raises:
        Exception: Any exception of `compute`; out of memory only for a single item.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        results = _compute_or_none(compute, batch)
        if results is None:
            size = len(batch) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if observer is not None:
                observer.notify(oom_notice(len(batch), size))
            continue
        yield list(zip(batch, results, strict=True))
        start += len(batch)


def oom_notice(size: int, smaller: int) -> Notice:
    """Return the notice of a halved batch size."""
    return Notice(f"out of memory with {count_noun(size, 'row')} per batch; batch size halved to {smaller}")


def _compute_or_none(
    compute: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]
) -> Sequence[Result] | None:
    """Compute a batch; None if memory ran out. The frames that hold tensors are gone when this returns."""
    try:
        return compute(batch)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return None
