"""What the trainer is given. Oracle: TRL's packing of all rows at once."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from datasets import Dataset
from trl import pack_dataset

from neftcli.data import dataset
from neftcli.data.dataset import TokenDataset
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.recipe.loading import assignment, resolve
from neftcli.training import trainer


@pytest.mark.parametrize("most_in_memory", [dataset.MAX_BYTES_IN_MEMORY, 0])
@pytest.mark.parametrize("number", [1, 1000, 2500])
def test_rows_packed_piece_by_piece_are_those_packed_at_once(
    number: int, most_in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same tokens, labels and documents in the same order, and as many updates; in memory and in a file."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", most_in_memory)
    monkeypatch.setattr(trainer, "PIECE", 1000)
    monkeypatch.setattr(dataset, "BATCH_ROWS", 300)
    random = Random(0)  # noqa: S311 - no secret
    rows = []
    for place in range(number):
        ids = random.choices(range(50_000), k=random.randint(2, 40))
        rows.append(TokenRow(ids, [IGNORE_INDEX, *ids[1:]], False, True, str(place)))
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    whole = pack_dataset(Dataset.from_dict(columns), 64, "bfd")
    kept = TokenDataset.from_rows(rows)
    assert list(trainer._packed(kept, 64)) == list(whole)
    sets = {"data.max_length": 64, "training.batching": "packed", "training.gradient_accumulation_steps": 1}
    sets |= {"training.per_device_train_batch_size": 1, "training.num_train_epochs": 1}
    recipe = resolve([assignment(f"{key}={value}") for key, value in sets.items()])
    assert trainer.num_training_steps(recipe, kept.lengths()) == len(whole)
