"""Seeds or prompts that a sweep needs to detect the smallest effect of interest."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from neftcli.events.evaluation import ScopeId
from neftcli.statistics.crossed import ArmDifference, minimum_detectable_effect
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS

# Larger numbers are not reported.
MAX_PROMPTS = 10**8
MAX_SEEDS = 10**4


@dataclass(frozen=True, slots=True)
class RequiredSizes:
    """Prompts or seeds that detect an effect with probability `POWER` in a claim about new seeds.

    Attributes:
        prompts: Prompts that suffice with the present seeds; None if no number does, because the seeds vary too much,
            or with one seed.
        seeds: Seeds that suffice with the present prompts; None if no number does, because there are too few prompts,
            or with one seed.
    """

    prompts: int | None
    seeds: int | None


def required_sizes(difference: ArmDifference, delta: float) -> RequiredSizes:
    """Compute the smallest number of prompts, or of seeds, that detects a true difference of `delta`.

    Its minimum detectable effect, by the present variance components, is `delta` or less at `LEVEL` / comparisons.
    Components are estimates: from three seeds, the number of seeds may be several times too large or too small.

    Raises:
        ValueError: `delta` is not above 0.
    """
    if not delta > 0:
        raise ValueError(f"the effect to find must be above 0, not {delta}")
    parts, level = difference.components, LEVEL / difference.comparisons
    if parts is None or parts.seed is None or parts.unknown():
        return RequiredSizes(None, None)

    def by_prompts(count: int) -> bool:
        return minimum_detectable_effect(parts, difference.seeds, count, level, ScopeId.NEW_SEEDS) <= delta

    def by_seeds(count: int) -> bool:
        return minimum_detectable_effect(parts, count, difference.n, level, ScopeId.NEW_SEEDS) <= delta

    # If the present numbers do not suffice, more are needed, even if the pooled components alone don't show it.
    short = difference.detectable is not None and difference.detectable > delta
    prompts = range(difference.n + 1 if short else MIN_PROMPTS, MAX_PROMPTS)
    seeds = range(difference.seeds + 1 if short else 2, MAX_SEEDS)
    return RequiredSizes(_first(prompts, by_prompts), _first(seeds, by_seeds))


def _first(counts: range, enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number that is enough, by bisection; None if none is."""
    index = bisect.bisect_left(counts, True, key=enough)
    return counts[index] if index < len(counts) else None
