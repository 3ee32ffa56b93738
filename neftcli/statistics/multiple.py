"""Several comparisons at once: which are significant with a family-wise error rate of 5 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from neftcli.statistics.paired import LEVEL

Direction: TypeAlias = Literal["lower", "higher", "none"]
NOT_SIGNIFICANT = "not significant"


def holm_adjust(p_values: Sequence[float], smallest: Sequence[float] | None = None) -> list[float]:
    """Adjust p-values so that the chance of any false finding is at most `LEVEL`, in the order given.

    Holm's correction: with p sorted upwards, the i-th (from 0) of m is max over j <= i of min(1, (m - j) p[j]) (Holm
    1979, "A Simple Sequentially Rejective Multiple Test Procedure"). Comparisons that could not be significant at
    `LEVEL` / m, whatever their outcome, don't count in m and get 1 (Tarone 1990, "A Modified Bonferroni Method for
    Discrete Data"): m is the smallest number that at least as many others' `smallest` allow.

    Args:
        p_values: Two-sided p-values.
        smallest: The smallest p-value that each comparison could give; 0 for all if None.
    """
    least = [0.0] * len(p_values) if smallest is None else list(smallest)
    m = next((m for m in range(1, len(least) + 1) if sum(each < LEVEL / m for each in least) <= m), 1)
    counted = [index for index, each in enumerate(least) if each < LEVEL / m]
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(counted, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(counted) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def name_direction(p_adjusted: float | None, difference: float) -> str:
    """Name the direction of a significant difference.

    Returns:
        "lower" or "higher"; "not significant"; "" if there was no test (p is None).
    """
    if p_adjusted is None:
        return ""
    if not p_adjusted < LEVEL or difference == 0:
        return NOT_SIGNIFICANT
    return "higher" if difference > 0 else "lower"


def name_verdict(p_adjusted: float | None, difference: float, better: Direction) -> str:
    """Name a significant difference by its direction, and by its value if a direction is good.

    Returns:
        "better" or "worse", or "higher" or "lower" if no direction is good; "not significant"; "" without a test.
    """
    word = name_direction(p_adjusted, difference)
    if better == "none" or word not in ("higher", "lower"):
        return word
    return "better" if word == better else "worse"
