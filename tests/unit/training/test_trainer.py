"""Rows as the trainer gets them. Oracles: TRL's packing of all rows at once, counting, and the same order twice."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from datasets import Dataset
from trl import pack_dataset

from neftcli.data import dataset
from neftcli.data.dataset import TokenDataset
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.recipe.loading import parse_assignment, resolve_recipe
from neftcli.training import trainer
from neftcli.training.trainer import LengthBuckets

ROWS = 8
DRAW = Random(1)  # noqa: S311
LENGTHS = [DRAW.randint(5, 500) for _ in range(640)]


@pytest.mark.parametrize("most_in_memory", [dataset.MAX_BYTES_IN_MEMORY, 0])
@pytest.mark.parametrize("number", [1, 1000, 2500])
def test_packed_rows_some_at_a_time(
    number: int, most_in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same tokens, labels and documents in the same order, and as many steps; in memory and in a file."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", most_in_memory)
    monkeypatch.setattr(trainer, "PACKED_AT_ONCE", 1000)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 300)
    random = Random(0)  # noqa: S311 - no secret
    rows = []
    for place in range(number):
        ids = random.choices(range(50_000), k=random.randint(2, 40))
        rows.append(TokenRow(ids, [IGNORE_INDEX, *ids[1:]], False, True, str(place)))
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    whole = pack_dataset(Dataset.from_dict(columns), 64, "bfd")
    kept = TokenDataset.from_rows(rows)
    assert list(trainer.pack_rows(kept, 64)) == list(whole)
    sets = {"data.max_length": 64, "training.batching": "packed", "training.gradient_accumulation_steps": 1}
    sets |= {"training.per_device_train_batch_size": 1, "training.num_train_epochs": 1}
    recipe = resolve_recipe([parse_assignment(f"{key}={value}") for key, value in sets.items()])
    assert trainer.num_training_steps(recipe, kept.lengths()) == len(whole)


def order(seed: int, epoch: int) -> list[int]:
    """The rows' numbers in the order of an epoch, from a new sampler."""
    sampler = LengthBuckets(LENGTHS, ROWS, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padded(rows: list[int]) -> int:
    """Tokens computed, pads included."""
    batches = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


def test_length_buckets_rows_and_pads() -> None:
    assert sorted(order(0, 0)) == list(range(len(LENGTHS)))
    assert padded(order(0, 0)) < 1.1 * sum(LENGTHS) < padded(list(range(len(LENGTHS))))


def test_length_buckets_order_by_seed_and_epoch() -> None:
    sampler = LengthBuckets(LENGTHS, ROWS, seed=3)
    torch.rand(7)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert (first, second) == (order(3, 0), order(3, 1))
    assert first != second != order(4, 1)
