"""Work in batches that halve where memory is short, so that an evaluation does not die of its batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from neftcli.events import Notice, Observer
from neftcli.system.device import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def iter_batches(
    items: Sequence[Item],
    size: int,
    compute: Callable[[Sequence[Item]], Sequence[Result]],
    observer: Observer | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """The items with their results, batch by batch, in the order given.

    A batch that memory does not hold is computed again in halves; the smaller size stays for the rest.

    Args:
        items: What is computed.
        size: How many at once, if memory allows.
        compute: The results of a batch, in its order.
        observer: Is told of each halving.

    Raises:
        Exception: What `compute` raises; out of memory only for one item alone.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        results = _computed(compute, batch)
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
    """What is said where a batch is halved."""
    return Notice(f"not enough memory for {size} rows at once; going on with {smaller}")


def _computed(compute: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> Sequence[Result] | None:
    """The results, or None where memory ran out; the frames that hold tensors are gone when this returns."""
    try:
        return compute(batch)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return None
