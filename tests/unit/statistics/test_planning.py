"""Planning: the seeds or prompts that would settle a comparison.

Oracles: a search in steps of one; the detectable effect at hand, which needs just what is at hand; the limits of the
formula for many seeds and many prompts; laws (a larger effect needs no more).
"""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.events import ScopeId
from neftcli.statistics.crossed import VarianceComponents, minimum_detectable_effect
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS
from neftcli.statistics.planning import MAX_PROMPTS, MAX_SEEDS, RequiredSizes, required_sizes
from tests.unit.statistics.draws import compare, difference, draw_arms

KNOWN = VarianceComponents(1.0, 4.0, 9.0, 2.0)


@pytest.mark.parametrize("comparisons", [1, 3, 10])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_needed_is_what_is_at_hand_for_the_detectable_effect(seeds: int, comparisons: int) -> None:
    """To the prompt and to the seed; an effect a thousandth smaller needs more."""
    found = difference(KNOWN, seeds, 100, comparisons)
    delta = minimum_detectable_effect(KNOWN, seeds, 100, LEVEL / comparisons, ScopeId.NEW_SEEDS)
    assert required_sizes(found, delta * (1 + 1e-9)) == RequiredSizes(100, seeds)
    more = required_sizes(found, delta * 0.999)
    assert (more.prompts or MAX_PROMPTS) > 100
    assert (more.seeds or MAX_SEEDS) > seeds


def test_needed_is_more_than_what_does_not_suffice() -> None:
    """The effect that is detectable was above delta for another reason than the pooled components."""
    found = dataclasses.replace(difference(KNOWN), detectable=1e3)
    assert required_sizes(found, 999.0) == RequiredSizes(101, 4)


@pytest.mark.parametrize("delta", [0.8, 1.0, 1.5, 2.5])
def test_needed_is_the_first_number_that_suffices(delta: float) -> None:
    """Counted up one by one."""
    found = difference(KNOWN, comparisons=3)

    def enough(seeds: int, prompts: int) -> bool:
        return minimum_detectable_effect(KNOWN, seeds, prompts, LEVEL / 3, ScopeId.NEW_SEEDS) <= delta

    first_seeds = next(seeds for seeds in range(2, 500) if enough(seeds, 100))
    first_prompts = next((prompts for prompts in range(MIN_PROMPTS, 1_000) if enough(3, prompts)), None)
    plan = required_sizes(found, delta)
    assert plan.seeds == first_seeds
    if first_prompts is not None:
        assert plan.prompts == first_prompts
    else:
        assert plan.prompts is None or plan.prompts >= 1_000


@settings(deadline=None)
@given(
    st.builds(VarianceComponents, st.floats(0, 4), st.floats(0, 4), st.floats(0.01, 40), st.sampled_from([1.0, 2.0])),
    st.integers(2, 10),
    st.integers(6, 200),
    st.floats(0.05, 3),
    st.floats(1, 3),
)
def test_needed_never_grows_with_the_effect(
    components: VarianceComponents, seeds: int, n: int, delta: float, factor: float
) -> None:
    found = difference(components, seeds, n)
    small, large = required_sizes(found, delta), required_sizes(found, delta * factor)
    for more, fewer in ((small.prompts, large.prompts), (small.seeds, large.seeds)):
        assert (fewer or math.inf) <= (more or math.inf)


def test_needed_is_none_if_the_other_number_is_the_limit() -> None:
    """Below the limit of 10^8 prompts, and of 10^4 seeds, no number suffices; just above it one does."""
    found = difference(KNOWN, seeds=8)
    limit = minimum_detectable_effect(KNOWN, 8, 10**8, LEVEL, ScopeId.NEW_SEEDS)
    assert required_sizes(found, 0.99 * limit).prompts is None
    assert required_sizes(found, 1.01 * limit).prompts is not None
    limit = minimum_detectable_effect(KNOWN, MAX_SEEDS, 100, LEVEL, ScopeId.NEW_SEEDS)
    assert required_sizes(found, 0.99 * limit).seeds is None
    assert 8 < (required_sizes(found, 1.01 * limit).seeds or 0) < MAX_SEEDS


def test_needed_is_unknown_with_one_seed_or_without_spread() -> None:
    """One seed can't show how much seeds vary."""
    assert required_sizes(compare(*draw_arms(1, 50, 0)), 0.1) == RequiredSizes(None, None)
    same = np.ones((3, 20))
    assert required_sizes(compare(same, same), 0.1) == RequiredSizes(None, None)
    assert required_sizes(difference(None), 0.1) == RequiredSizes(None, None)
    several = compare(*draw_arms(3, 50, 0))
    assert None not in dataclasses.astuple(required_sizes(several, 1.5))


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_needed_rejects_no_effect(delta: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        required_sizes(difference(KNOWN), delta)
