"""Seeds or prompts that would settle a comparison, for a smallest effect of interest."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from neftcli.statistics.crossed import ArmDifference, minimum_detectable_effect
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS

# Larger numbers are not reported: nobody would write or train them.
MOST_PROMPTS = 10**8
MOST_SEEDS = 10**4


@dataclass(frozen=True, slots=True)
class RequiredSizes:
    """Prompts or seeds that find an effect with probability `POWER` in a claim about new seeds.

    Attributes:
        prompts: Prompts that suffice with the seeds at hand; None if no number does, because the seeds vary too much,
            or with one seed, which can't show how much seeds vary.
        seeds: Seeds that suffice with the prompts at hand; None if no number does, because the prompts are too few, or
            with one seed.
    """

    prompts: int | None
    seeds: int | None


def required_sizes(difference: ArmDifference, delta: float) -> RequiredSizes:
    """Compute how many prompts, or how many seeds, would find a true difference of `delta`.

    They are the smallest numbers whose minimum detectable effect, by the components of the variance at hand, is `delta`
    or less, at `LEVEL` / comparisons. Components are estimates: from three seeds, the number of seeds may be wrong
    several times over.

    Raises:
        ValueError: `delta` is not above 0.
    """
    if not delta > 0:
        raise ValueError(f"the effect to find must be above 0, not {delta}")
    parts, level = difference.components, LEVEL / difference.comparisons
    if parts is None or parts.seed is None or parts.unknown():
        return RequiredSizes(None, None)

    def by_prompts(count: int) -> bool:
        return minimum_detectable_effect(parts, difference.seeds, count, level, "new seeds") <= delta

    def by_seeds(count: int) -> bool:
        return minimum_detectable_effect(parts, count, difference.n, level, "new seeds") <= delta

    # If what is at hand does not suffice, more is needed, even if the pooled components alone don't show it.
    short = difference.detectable is not None and difference.detectable > delta
    prompts = range(difference.n + 1 if short else MIN_PROMPTS, MOST_PROMPTS)
    seeds = range(difference.seeds + 1 if short else 2, MOST_SEEDS)
    return RequiredSizes(_first(prompts, by_prompts), _first(seeds, by_seeds))


def _first(counts: range, enough: Callable[[int], bool]) -> int | None:
    """The smallest number that is enough; None if none is. More is never worse."""
    place = bisect.bisect_left(counts, True, key=enough)
    return counts[place] if place < len(counts) else None
