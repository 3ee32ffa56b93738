"""Correction of several comparisons, and the words for their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from neftcli.events.evaluation import NOT_SIGNIFICANT, NOT_TESTED
from neftcli.statistics.paired import LEVEL

Direction: TypeAlias = Literal["lower", "higher", "none"]
"""Values of a metric that are better; none if the metric only describes."""


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


def name_direction(p_adjusted: float | None, difference: float) -> str:
    """Name the direction of a significant difference.

    Returns:
        "lower" or "higher"; "not significant"; "not tested" if p is None.
    """
    if p_adjusted is None:
        return NOT_TESTED
    if not p_adjusted < LEVEL or difference == 0:
        return NOT_SIGNIFICANT
    return "higher" if difference > 0 else "lower"


def name_verdict(p_adjusted: float | None, difference: float, better: Direction) -> str:
    """Name a significant difference by its value if one direction is better, and else by its direction.

    Returns:
        "better" or "worse"; "lower" or "higher" if neither direction is better; "not significant" or "not tested".
    """
    word = name_direction(p_adjusted, difference)
    if better == "none" or word not in ("higher", "lower"):
        return word
    return "better" if word == better else "worse"
