"""Rows of like length beside each other, in an order that depends on the seed and the epoch alone.

A padded batch computes as many pads as its longest row asks for; in batches of like rows there are few.
"""

from __future__ import annotations

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthBuckets(LengthGroupedSampler):
    """transformers' sampler: rows are shuffled, and sorted by length within 50 updates' worth (fewer of small sets).

    Its order comes from the global random state as it stands when an epoch begins, which a run that is gone on with
    in the middle of one can't know. Here each epoch has a seed of its own.

    Args:
        lengths: Tokens of each row.
        rows: Rows of an update.
        seed: The recipe's.
    """

    def __init__(self, lengths: list[int], rows: int, seed: int) -> None:
        super().__init__(rows, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """The order of this epoch; the data loader calls it before each."""
        self.generator.manual_seed(self.seed + epoch)
