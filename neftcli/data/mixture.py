"""Several sources as one sequence of rows, as `datasets.interleave_datasets` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neftcli.errors import DataError, Problem

if TYPE_CHECKING:
    from neftcli.data.splits import Indices

MOST_REPEATS = 100
"""Maximum rows of a mixture, as a multiple of the rows of all its sources."""


def mixed(parts: Sequence[Indices], weights: Sequence[float | None], seed: int, stopping_strategy: str) -> Indices:
    """The places of the mixture's rows, in their order.

    Without weights the parts are concatenated. With weights the part of each row is drawn by the seed with probability
    weight / sum of weights, and each part gives its rows in order; a part without a weight has weight 1.

    Args:
        parts: The places of each source's rows.
        weights: The weight of each, or None.
        seed: Seed of the draws.
        stopping_strategy: "first_exhausted" ends when a part has no row left; "all_exhausted" when each row was drawn
            at least once, with the rows of parts that ran out drawn again.

    Raises:
        DataError: The weights would repeat rows too often.
    """
    import numpy

    if all(weight is None for weight in weights):
        return numpy.concatenate(parts)
    from datasets import Dataset, interleave_datasets

    filled = [1.0 if weight is None else weight for weight in weights]
    probabilities = [weight / sum(filled) for weight in filled]
    total = sum(map(len, parts))
    longest = max(len(part) / probability for part, probability in zip(parts, probabilities, strict=True))
    if stopping_strategy == "all_exhausted" and longest > MOST_REPEATS * total:
        message = "data.sources: rows would repeat too often before the source with the smallest weight is used up"
        hint = "--set data.stopping_strategy=first_exhausted, or weights closer to each other"
        raise DataError(Problem(message, f"about {longest:,.0f} rows drawn from {total:,}", hint))
    sets = [Dataset.from_dict({"place": part}) for part in parts]
    drawn = interleave_datasets(sets, probabilities, seed, stopping_strategy=stopping_strategy)
    return numpy.asarray(drawn.with_format("numpy")[:]["place"], dtype=numpy.int64)
