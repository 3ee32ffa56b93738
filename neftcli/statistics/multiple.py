"""Correction of several comparisons, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence

from neftcli.events.evaluation import VerdictId
from neftcli.metrics.registry import Direction
from neftcli.statistics.paired import LEVEL


def holm_adjust(p_values: Sequence[float], smallest: Sequence[float] | None = None) -> list[float]:
    """Adjust p-values so that the probability of any false rejection is at most `LEVEL`.

    Holm's correction (1979) with Tarone's rule (1990): docs/statistics.md, section "Several comparisons".

    Args:
        p_values: Two-sided p-values.
        smallest: The smallest p-value that each comparison could give; 0 for all if None.

    Returns:
        The adjusted p-values, in the same order; 1 for comparisons that Tarone's rule does not count.
    """
    smallest = [0.0] * len(p_values) if smallest is None else list(smallest)
    m = count_testable(smallest)
    counted = [index for index, possible in enumerate(smallest) if possible < LEVEL / m]
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(counted, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(counted) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def count_testable(smallest: Sequence[float]) -> int:
    """Return Tarone's m: the smallest m of which at most m comparisons could be significant at `LEVEL` / m.

    Args:
        smallest: The smallest p-value that each comparison could give.
    """
    for m in range(1, len(smallest) + 1):
        if sum(possible < LEVEL / m for possible in smallest) <= m:
            return m
    return 1


def name_direction(p_adjusted: float | None, difference: float) -> VerdictId:
    """Name the direction of a significant difference: lower or higher, not_significant, or not_tested if p is None."""
    if p_adjusted is None:
        return VerdictId.NOT_TESTED
    if not p_adjusted < LEVEL or difference == 0:
        return VerdictId.NOT_SIGNIFICANT
    return VerdictId.HIGHER if difference > 0 else VerdictId.LOWER


def name_verdict(p_adjusted: float | None, difference: float, better: Direction) -> VerdictId:
    """Name a significant difference better or worse if one direction is better, and else by its direction."""
    direction = name_direction(p_adjusted, difference)
    if better == "none" or direction not in (VerdictId.LOWER, VerdictId.HIGHER):
        return direction
    return VerdictId.BETTER if direction.value == better else VerdictId.WORSE
