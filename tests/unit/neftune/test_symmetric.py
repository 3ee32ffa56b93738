"""Batches that contain every row twice.

Oracle: the same collator with the list of examples twice, and each row of the doubled batch.
"""

import copy
import pickle

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from neftcli.neftune import paired

EXAMPLES = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]


def test_paired_repeats_all_rows_after_all_rows() -> None:
    batch = paired(DataCollatorForLanguageModeling(pad_token_id=0))(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]] * 2
    assert batch["labels"].tolist() == [[-100, 6, 7, 8], [9, 4, -100, -100]] * 2


def test_paired_padding_free() -> None:
    batch = paired(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4] * 2]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1] * 2]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 6, 10, 12]


def test_paired_packed_rows() -> None:
    packed = [{**EXAMPLES[0], "seq_lengths": [3, 1]}, {**EXAMPLES[1], "seq_lengths": [2]}]
    batch = paired(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))(packed)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1] * 2]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 4, 6, 9, 10, 12]


@pytest.mark.parametrize("count", [1, 2])
def test_paired_halves_are_equal_and_examples_unchanged(count: int) -> None:
    examples = copy.deepcopy(EXAMPLES[:count])
    batch = paired(DataCollatorForLanguageModeling(pad_token_id=0))(examples)
    for values in batch.values():
        first, second = values.chunk(2)
        assert len(first) == count
        assert torch.equal(first, second)
    assert examples == EXAMPLES[:count]


def test_paired_can_be_pickled() -> None:
    collator = pickle.loads(pickle.dumps(paired(DataCollatorForLanguageModeling(pad_token_id=0))))  # noqa: S301 - ours
    assert collator(EXAMPLES)["input_ids"].shape == (4, 4)
