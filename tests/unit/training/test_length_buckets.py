"""Rows of like length beside each other. Oracle: counting, and the same order asked for twice."""

from __future__ import annotations

import random

import torch
from neftcli.training.length_buckets import LengthBuckets

ROWS = 8
DRAW = random.Random(1)  # noqa: S311
LENGTHS = [DRAW.randint(5, 500) for _ in range(640)]


def order(seed: int, epoch: int) -> list[int]:
    """The rows' numbers in the order of an epoch, of a sampler that did nothing before."""
    sampler = LengthBuckets(LENGTHS, ROWS, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padded(rows: list[int]) -> int:
    """Tokens computed, pads included."""
    batches = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


def test_every_row_comes_once_an_epoch_and_few_pads_with_it() -> None:
    assert sorted(order(0, 0)) == list(range(len(LENGTHS)))
    assert padded(order(0, 0)) < 1.1 * sum(LENGTHS) < padded(list(range(len(LENGTHS))))


def test_the_order_is_that_of_the_seed_and_the_epoch_whatever_was_drawn_before() -> None:
    sampler = LengthBuckets(LENGTHS, ROWS, seed=3)
    torch.rand(7)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert (first, second) == (order(3, 0), order(3, 1))
    assert first != second != order(4, 1)
