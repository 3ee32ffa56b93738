"""Arms compared with their baseline over seeds and prompts.

Oracles: least squares for the sums of squares of the analysis of variance, and designs whose parts are known exactly;
the delete-one jackknife for ratios; `paired_difference` if only prompts vary, Student's test and interval from scipy if
only seeds do; the noncentral t for what is detectable; laws (swapping arms, order, scale, effects that both arms share,
seeds and rows that an arm lacks, nested claims).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from neftcli.events import ScopeId
from neftcli.statistics.crossed import (
    SHARED_BASELINE,
    ArmDifference,
    Claim,
    VarianceComponents,
    compare_arms,
    crossed_p_value,
    estimate_arm,
    estimate_crossed_differences,
    margin_of_error,
    minimum_detectable_effect,
    select_complete,
    variance_components,
)
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, POWER, Estimate, bootstrap_estimate, paired_difference
from tests.unit.statistics.draws import QUICK, Floats, compare, draw_arms, tokens_of


def claim_about_new_seeds(found: ArmDifference) -> Claim:
    assert found.new_seeds is not None
    return found.new_seeds


shapes = st.tuples(st.integers(2, 8), st.integers(2, 25), st.integers(0, 1_000))

# VarianceComponents


@settings(deadline=None)
@given(shapes)
def test_variance_components_are_those_of_least_squares(shape: tuple[int, int, int]) -> None:
    """Dummy variables fitted by lstsq: what seeds, then prompts, then nothing take off the sum of squares."""
    seeds, n, number = shape
    values = draw_arms(seeds, n, number)[0]
    rows, columns = np.indices(values.shape).reshape(2, -1)

    def left(*factors: Floats) -> float:
        design = np.column_stack([np.ones(values.size), *factors])
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return float(((values.ravel() - fitted) ** 2).sum())

    of_seeds, of_prompts = np.eye(seeds)[rows], np.eye(n)[columns]
    rest = left(of_seeds, of_prompts) / ((seeds - 1) * (n - 1))
    between_seeds = (left() - left(of_seeds)) / (seeds - 1)
    between_prompts = (left() - left(of_prompts)) / (n - 1)
    found = variance_components(values)
    assert found.residual == pytest.approx(rest)
    assert found.seed == pytest.approx(max(0, (between_seeds - rest) / n), abs=1e-9)
    assert found.prompt == pytest.approx(max(0, (between_prompts - rest) / seeds), abs=1e-9)


def test_variance_components_known_exactly_are_found() -> None:
    """Seeds at -2, 0, 2 and prompts at -1, 1, 1, -1 without residual: variances 4 and 4/3, at any mean."""
    values = 7 + np.array([-2.0, 0.0, 2.0])[:, None] + np.array([-1.0, 1.0, 1.0, -1.0])
    assert variance_components(values) == VarianceComponents(pytest.approx(4.0), pytest.approx(4 / 3), 0.0)
    assert variance_components(values[:1]) == VarianceComponents(None, pytest.approx(4 / 3), None)
    assert variance_components(np.full((3, 4), 0.1)).unknown()


def test_variance_components_are_unbiased() -> None:
    """Known variances 1, 4 and 9: the means over 300 draws are within four standard errors, and none is cut at 0."""
    found = [
        variance_components(3 * draw_arms(6, 30, number, count=1, seed=0, prompt=0, residual=0)[0])
        for number in range(300)
    ]
    for name, truth in (("seed", 81.0), ("prompt", 81.0), ("residual", 9.0)):
        drawn = np.array([getattr(each, name) for each in found])
        assert drawn.mean() == pytest.approx(truth, abs=4 * stats.sem(drawn))


@pytest.mark.parametrize("seeds", [1, 4])
def test_variance_components_of_a_ratio_are_the_jackknifes(seeds: int) -> None:
    """Leaving each prompt out, of 400 whose spread grows with their tokens: within 3 %."""
    tokens = tokens_of(400)
    values = (draw_arms(seeds, 400, 1)[0] - 10) * tokens
    sums = values.mean(0)
    left_out = (sums.sum() - sums) / (tokens.sum() - tokens)
    jackknife = 399 * left_out.var()
    found = variance_components(values, tokens)
    assert found.prompt / 400 + (found.residual or 0) / seeds / 400 == pytest.approx(jackknife, rel=0.03)


def test_variance_components_seeds_part_of_a_ratio_is_that_of_its_ratios() -> None:
    """Each seed adds so much a token: no prompt and no residual part, whatever the tokens."""
    added = np.array([0.1, 0.5, 0.3])
    found = variance_components(added[:, None] * tokens_of(50), tokens_of(50))
    assert found == VarianceComponents(pytest.approx(added.var(ddof=1)), 0.0, 0.0)


# Claims


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_compare_arms_these_seeds_is_the_paired_test_of_the_average(seeds: int, weighted: bool) -> None:
    """At any number of seeds; with one there is no other claim, and the detectable effect is that test's."""
    baseline, arm = draw_arms(seeds, 60, seeds)
    tokens = tokens_of(60) if weighted else None
    found = compare(baseline, arm, tokens, comparisons=3, seed=5)
    same = paired_difference(baseline.mean(0), arm.mean(0), tokens, comparisons=3, seed=5, resamples=QUICK)
    assert found.these_seeds == Claim(same.low, same.high, same.p or 0.0, same.smallest_p)
    assert (found.value, found.n, found.seeds) == (same.value, 60, seeds)
    assert found.true_level == same.true_level
    if seeds == 1:
        assert found.new_seeds is None
        assert found.seed_spread is None
        assert found.detectable == same.detectable
        assert estimate_arm(arm, tokens, resamples=QUICK) == bootstrap_estimate(arm[0], tokens, resamples=QUICK)
    else:
        assert found.detectable is not None
        assert found.detectable >= (same.detectable or 0.0)


@pytest.mark.parametrize("gap", [0.0, 0.6, 1.2, 3.0])
@pytest.mark.parametrize("seeds", [2, 6])
def test_compare_arms_p_over_new_seeds_is_the_larger_of_two(seeds: int, gap: float) -> None:
    """Tests: p over prompts, and the level whose margin, by scipy's quantiles, equals the difference."""
    baseline, arm = draw_arms(seeds, 40, 2)
    arm = arm + gap
    over_prompts = paired_difference(baseline.mean(0), arm.mean(0), resamples=QUICK)
    parts = variance_components(arm - baseline)
    levels = np.linspace(1e-5, 1 - 1e-5, 20_001)
    assert parts.seed is not None
    assert parts.residual is not None
    of_seeds = stats.t.isf(levels / 2, seeds - 1) ** 2 * (parts.seed + parts.residual / 40) / seeds
    of_prompts = stats.t.isf(levels / 2, 39) ** 2 * parts.prompt / 40
    reach = np.sqrt(of_seeds + of_prompts)
    crossed = levels[np.argmax(reach <= abs((arm - baseline).mean()))]
    found = claim_about_new_seeds(compare(baseline, arm))
    assert found.p == pytest.approx(max(over_prompts.p or 0, crossed), abs=1e-4)
    half = np.interp(LEVEL, levels, reach)
    assert found.low == pytest.approx(min(over_prompts.low or 0, over_prompts.value - half), abs=1e-4)
    assert found.high == pytest.approx(max(over_prompts.high or 0, over_prompts.value + half), abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 6, 8])
def test_compare_arms_is_students_test_if_only_seeds_vary(seeds: int) -> None:
    """Differences that all prompts share: t over seeds, for p and the interval."""
    gains = np.array([0.9, 0.2, 0.4, 1.4, 0.1, 0.5, 0.3, 0.8])[:seeds]
    baseline = draw_arms(8, 50, 0)[0][:seeds]
    found = claim_about_new_seeds(compare(baseline, baseline + gains[:, None]))
    student = stats.ttest_1samp(gains, 0)
    interval = student.confidence_interval(1 - LEVEL)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(max(student.pvalue, 1 / (QUICK + 1)), abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_compare_arms_pools_the_seeds_of_arms(seeds: int) -> None:
    """Three arms in which only seeds vary: Student's interval with the mean variance and 3 (S - 1) / 1.5 degrees."""
    baseline = draw_arms(seeds, 50, 0)[0]
    gains = np.random.default_rng(seeds).normal(0.5, 1, (3, seeds))
    found = compare_arms(baseline, [baseline + each[:, None] for each in gains], resamples=QUICK)
    assert not any(each.uneven for each in found)
    variance = gains.var(1, ddof=1).mean()
    freedom = 3 * (seeds - 1) / (1 + 2 * SHARED_BASELINE**2)
    assert freedom == 2 * (seeds - 1)
    for each, own in zip(found, gains, strict=True):
        ends = stats.t.interval(1 - LEVEL, freedom, own.mean(), math.sqrt(variance / seeds))
        claim = claim_about_new_seeds(each)
        assert (claim.low, claim.high) == pytest.approx(ends)
        assert each.seed_spread == pytest.approx(own.std(ddof=1))
        assert each.components == VarianceComponents(pytest.approx(variance), 0.0, 0.0, pytest.approx(2.0))


def test_compare_arms_pools_components_by_their_seeds() -> None:
    """Arms of 6, 6 and 4 seeds: variances and residuals weighted by 5, 5 and 3; the prompts' part is each arm's own."""
    baseline, *others = draw_arms(6, 40, 11, count=4)
    others[2][[1, 4]] = np.nan
    found = compare_arms(baseline, others, resamples=QUICK)
    split = [np.delete(each - baseline, [1, 4] if place == 2 else [], 0) for place, each in enumerate(others)]
    own = [variance_components(each) for each in split]
    weights = np.array([5, 5, 3])
    residual = np.average([each.residual or 0.0 for each in own], weights=weights)
    between = np.average([each.mean(1).var(ddof=1) for each in split], weights=weights)
    for each, alone, seeds in zip(found, own, (6, 6, 4), strict=True):
        assert each.seeds == seeds
        assert each.components == VarianceComponents(
            pytest.approx(max(0.0, between - residual / 40)),
            pytest.approx(alone.prompt),
            pytest.approx(residual),
            pytest.approx(13 / 1.5 / (seeds - 1)),
        )


def test_compare_arms_gives_an_uneven_arm_its_own_variance() -> None:
    """An arm whose seeds vary ten times as much: compared as if alone, and the F-test says so; the others are not."""
    baseline, *others = draw_arms(6, 40, 3, count=4, seed=0.5, prompt=0.3, residual=0.3)
    others[1] = others[1] + 5 * np.random.default_rng(1).normal(size=(6, 1))
    found = compare_arms(baseline, others, resamples=QUICK)
    assert [each.uneven for each in found] == [False, True, False]
    assert dataclasses.replace(found[1], uneven=False, others_spread=None) == compare(baseline, others[1])
    spreads = [found[place].seed_spread or 0.0 for place in (0, 2)]
    assert found[1].others_spread == pytest.approx(math.sqrt(np.mean(np.square(spreads))))


@pytest.mark.parametrize(("factor", "uneven"), [(0.98, False), (1.02, True)])
def test_compare_arms_calls_an_arm_uneven_by_an_f_test(factor: float, uneven: bool) -> None:
    """A variance 2 % below and above the F distribution's 98 % point: (S - 1) against 2 (S - 1) / 1.25 degrees."""
    shape = np.array([-1.0, 0.0, 0.0, 1.0])
    baseline = draw_arms(4, 20, 0)[0]
    scale = math.sqrt(factor * float(stats.f.isf(0.02, 3, 6 / 1.25)))
    gains = [shape, -shape, scale * shape]
    found = compare_arms(baseline, [baseline + each[:, None] for each in gains], resamples=QUICK)
    assert [each.uneven for each in found] == [False, False, uneven]


differences = st.tuples(
    st.integers(1, 6), st.integers(2, 14), st.integers(1, 3), st.sampled_from([-1.5, -0.5, 0.0, 0.4, 1.0, 3.0])
)


@settings(deadline=None)
@given(differences, st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 0.5, 3.0]))
@example((3, 10, 2, 3.0), 0, True, 0.0)
def test_compare_arms_claims_are_nested_and_agree_with_their_intervals(
    situation: tuple[int, int, int, float], number: int, weighted: bool, seed_sd: float
) -> None:
    """Ties, weights, shared prompts: 0 is outside exactly if p < 0.05, and new seeds never claim more than these."""
    seeds, n, count, gap = situation
    generator = np.random.default_rng(number)
    noise = generator.integers(-2, 3, (count, seeds, n)) + seed_sd * generator.normal(size=(count, seeds, 1)).round()
    baseline = np.zeros((seeds, n))
    weights = generator.integers(1, 6, n).astype(float) if weighted else None
    prompts = (np.arange(n) // 2).tolist() if number % 2 else None
    for found in compare_arms(baseline, list(noise + gap), weights, prompts=prompts, resamples=QUICK):
        claims = [claim for claim in (found.these_seeds, found.new_seeds) if claim is not None]
        for claim in claims:
            excludes = claim.low is not None and claim.high is not None and not claim.low <= 0 <= claim.high
            assert excludes == (claim.p < LEVEL)
        if len(claims) == 2:
            these, new = claims
            assert new.p >= these.p
            assert (new.low is None) == (these.low is None)
            assert new.low is None or these.low is None or new.low <= these.low
            assert new.high is None or these.high is None or new.high >= these.high


# Margin, p and the detectable effect


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 300), st.floats(0.001, 0.4), st.floats(0.8, 4))
def test_margin_of_one_part_is_students(seeds: int, prompts: int, tail: float, freedom: float) -> None:
    """And with both it is between the larger and their sum."""
    of_seeds = margin_of_error(VarianceComponents(2.0, 0.0, 0.0, freedom), seeds, prompts, tail)
    of_prompts = margin_of_error(VarianceComponents(0.0, 3.0, 0.0), seeds, prompts, tail)
    assert of_seeds == pytest.approx(stats.t.isf(tail, freedom * (seeds - 1)) * math.sqrt(2 / seeds))
    assert of_prompts == pytest.approx(stats.t.isf(tail, prompts - 1) * math.sqrt(3 / prompts))
    rest = margin_of_error(VarianceComponents(0.0, 0.0, 2.0 * prompts, freedom), seeds, prompts, tail)
    assert rest == pytest.approx(of_seeds)
    both = margin_of_error(VarianceComponents(2.0, 3.0, 0.0, freedom), seeds, prompts, tail)
    assert max(of_seeds, of_prompts) <= both <= of_seeds + of_prompts


parts = st.builds(
    VarianceComponents, st.floats(0, 4), st.floats(0.01, 4), st.floats(0, 40), st.sampled_from([1.0, 1.6, 2.0, 2.5])
)


@settings(deadline=None)
@given(parts, st.integers(2, 12), st.integers(6, 300), st.floats(0.01, 3.0))
def test_crossed_p_is_the_level_whose_margin_is_the_value(
    components: VarianceComponents, seeds: int, prompts: int, value: float
) -> None:
    p = crossed_p_value(value, components, seeds, prompts)
    assert p == crossed_p_value(-value, components, seeds, prompts)
    if 1e-9 < p < 1:
        assert margin_of_error(components, seeds, prompts, p / 2) == pytest.approx(value, rel=1e-6)


@settings(deadline=None)
@given(parts, st.integers(2, 15), st.integers(6, 400), st.sampled_from([0.05, 0.05 / 3, 0.05 / 12]), st.booleans())
def test_detectable_never_grows_with_more_seeds_or_prompts(
    components: VarianceComponents, seeds: int, prompts: int, level: float, new: bool
) -> None:
    """For fixed components; and it falls with the level."""
    scope = ScopeId.NEW_SEEDS if new else ScopeId.THESE_SEEDS
    at_hand = minimum_detectable_effect(components, seeds, prompts, level, scope)
    more_seeds = minimum_detectable_effect(components, seeds + 1, prompts, level, scope)
    more_prompts = minimum_detectable_effect(components, seeds, prompts + 1, level, scope)  # type: ignore[arg-type]
    stricter = minimum_detectable_effect(components, seeds, prompts, level / 2, scope)  # type: ignore[arg-type]
    assert max(more_seeds, more_prompts) <= at_hand * (1 + 1e-9)
    assert at_hand < stricter


@pytest.mark.parametrize("level", [0.05, 0.05 / 3])
@pytest.mark.parametrize("n", [6, 30, 400])
def test_detectable_is_found_with_the_power_of_the_noncentral_t(n: int, level: float) -> None:
    """If one part alone varies, Student's test of a shift of that size has the promised power, by scipy's nct."""

    def power(effect: float, standard_error: float, freedom: float) -> float:
        return float(stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, effect / standard_error))

    of_prompts = VarianceComponents(0.0, 2.0, 6.0)
    effect = minimum_detectable_effect(of_prompts, 3, n, level, ScopeId.THESE_SEEDS)
    assert power(effect, math.sqrt((2 + 6 / 3) / n), n - 1) == pytest.approx(POWER, abs=1e-6)
    of_seeds = VarianceComponents(2.0, 0.0, 0.0)
    effect = minimum_detectable_effect(of_seeds, n, 50, level, ScopeId.NEW_SEEDS)
    median = math.sqrt(float(stats.chi2.median(n - 1)) / (n - 1))
    assert power(effect * median, math.sqrt(2 / n), n - 1) == pytest.approx(POWER, abs=1e-6)


# Laws


def assert_same(one: ArmDifference, other: ArmDifference, sign: int = 1, scale: float = 1.0) -> None:
    assert other.value == pytest.approx(sign * scale * one.value)
    for ours, theirs in ((one.these_seeds, other.these_seeds), (one.new_seeds, other.new_seeds)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            ends = sorted((sign * scale * (ours.low or 0), sign * scale * (ours.high or 0)))
            assert (theirs.low, theirs.high) == pytest.approx(tuple(ends))
            assert theirs.p == pytest.approx(ours.p)
    assert other.detectable == pytest.approx(scale * (one.detectable or 0))
    assert (other.seeds, other.n, other.uneven) == (one.seeds, one.n, one.uneven)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seeds", [1, 4, 7])
def test_compare_arms_keeps_its_symmetries(seeds: int, weighted: bool) -> None:
    """Swapped arms mirror; a unit scales; what both arms share cancels; seeds have no order; ones are no weights."""
    baseline, arm = draw_arms(seeds, 40, seeds)
    tokens = tokens_of(40) if weighted else None
    found = compare(baseline, arm, tokens)
    assert_same(found, compare(arm, baseline, tokens), sign=-1)
    assert_same(found, compare(1_000 * baseline, 1_000 * arm, tokens), scale=1_000)
    shared = 5 * draw_arms(seeds, 40, 77, count=1)[0]
    assert_same(found, compare(baseline + shared, arm + shared, tokens))
    assert_same(found, compare(baseline[::-1], arm[::-1], tokens))
    if weighted:
        assert_same(found, compare(baseline, arm, 3 * tokens_of(40)), scale=1 / 3)
    else:
        assert compare(baseline, arm, np.ones(40)) == found


def test_compare_arms_does_not_depend_on_the_order_of_arms() -> None:
    baseline, *others = draw_arms(3, 40, 5, count=4)
    found = compare_arms(baseline, others, resamples=QUICK)
    turned = compare_arms(baseline, others[::-1], resamples=QUICK)[::-1]
    for one, other in zip(found, turned, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_compare_arms_of_equal_prompts_is_that_of_rows_summed_beforehand(seeds: int, weighted: bool) -> None:
    baseline, arm = draw_arms(seeds, 60, 9)
    tokens = tokens_of(60) if weighted else np.ones(60)
    prompts = [str(row % 20) for row in range(60)]
    found = compare(baseline, arm, tokens if weighted else None, prompts=prompts)
    summed = [values.reshape(seeds, 3, 20).sum(1) for values in (baseline, arm)]
    expected = compare(*summed, tokens.reshape(3, 20).sum(0))
    assert found.n == 20
    assert_same(expected, found)


def test_compare_arms_is_deterministic_by_its_seed() -> None:
    values = draw_arms(3, 50, 0)
    assert compare(*values, seed=1) == compare(*values, seed=1)
    assert compare(*values, seed=1) != compare(*values, seed=2)


@pytest.mark.parametrize("weighted", [False, True])
def test_compare_arms_leaves_out_what_an_arm_lacks(weighted: bool) -> None:
    """A failed seed of one arm, a row without a value in one cell, a row without tokens; with prompts."""
    values = draw_arms(8, 30, 4)
    tokens = tokens_of(30)
    prompts = [row // 2 for row in range(30)]
    expected = compare(
        *(np.delete(np.delete(each, 2, 0), [5, 9], 1) for each in values),
        np.delete(tokens, [5, 9]) if weighted else None,
        prompts=[prompt for row, prompt in enumerate(prompts) if row not in (5, 9)],
    )
    values[:, :, 9] = 0.0 if weighted else np.nan
    values[1, 6, 5] = np.nan
    values[0, 2] = np.nan
    tokens[9] = 0.0
    found = compare(*values, tokens if weighted else None, prompts=prompts)
    assert found == expected
    assert (found.seeds, found.n) == (7, 15)


def test_arm_estimate_counts_all_seeds_that_an_arm_has() -> None:
    """A failed seed is left out; the mean is that of the seeds left."""
    values = draw_arms(7, 40, 9, seed=2.0)[0]
    failed = np.insert(values, 3, np.nan, axis=0)
    assert estimate_arm(failed, resamples=QUICK) == estimate_arm(values, resamples=QUICK)
    assert estimate_arm(values, resamples=QUICK).value == pytest.approx(values.mean())


# Little or nothing to go by


@pytest.mark.parametrize("seeds", [1, 6])
def test_compare_arms_of_one_prompt_is_a_value_and_nothing_else(seeds: int) -> None:
    found = compare(np.zeros((seeds, 1)), np.full((seeds, 1), 2.0))
    assert (found.value, found.these_seeds, found.new_seeds, found.detectable) == (2.0, None, None, None)
    assert estimate_arm(np.full((seeds, 1), 2.0)) == Estimate(2.0, None, None, 1)


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_compare_arms_of_identical_arms_is_zero(seeds: int) -> None:
    """Also if the arms differ in the last bit: nothing is detectable, and nothing could be significant."""
    values = draw_arms(seeds, 20, 0)[0]
    for other in (values, values * (1 + 2**-52)):
        found = compare(values, other)
        assert found.value == pytest.approx(0, abs=1e-12)
        assert found.these_seeds == Claim(pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12), 1.0, 1.0)
        assert found.new_seeds is None or found.new_seeds.p == 1.0
        assert found.detectable is None
        assert found.components is not None
        assert found.components.unknown()


def test_compare_arms_beside_an_identical_one_rounding_is_not_uneven() -> None:
    """Two arms equal to the baseline, one of them but for the last bit: neither varies."""
    baseline = draw_arms(4, 20, 0)[0]
    found = compare_arms(baseline, [baseline, baseline * (1 + 2**-52)], resamples=QUICK)
    assert [(each.uneven, each.seed_spread) for each in found] == [(False, 0.0), (False, 0.0)]


def test_compare_arms_that_all_gain_the_same_has_no_width() -> None:
    """Nothing varies: p is the smallest that six prompts allow."""
    values = draw_arms(6, MIN_PROMPTS, 0)[0]
    found = compare(values, values + 1)
    assert found.new_seeds == Claim(pytest.approx(1), pytest.approx(1), 2 / 2**MIN_PROMPTS, 2 / 2**MIN_PROMPTS)
    assert found.detectable is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [[0.0]]), "arms must be"),
        (([[0.0]], [[[0.0], [1.0]]]), "arms must be"),
        (([[0.0, 1.0]], [[[0.0, 1.0]]], [1.0]), "arms must be"),
        (([[math.nan]], [[[0.0]]]), "no seeds or no rows"),
        (([[]], [[[]]]), "no seeds or no rows"),
        (([[1.0, math.nan]], [[[math.nan, 1.0]]]), "no seeds or no rows"),
        (([[0.0, 1.0]], [[[0.0, 1.0]]], [0.0, math.nan]), "finite"),
        (([[0.0, math.inf]], [[[0.0, 1.0]]]), "finite"),
        (([[0.0, 1.0]], [[[0.0, 1.0]]], [1.0, -1.0]), "weights must be 0 or more"),
        (([[0.0, 1.0]], [[[0.0, 1.0]]], [1.0, 0.0]), "more than 0 where a value is not 0"),
    ],
)
def test_compare_arms_rejects_what_can_not_be_compared(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_arms(*arguments)


def test_compare_arms_rejects_no_comparison_and_missing_prompts() -> None:
    baseline, arm = draw_arms(3, 9, 0)
    with pytest.raises(ValueError, match="comparisons must be 1 or more, not 0"):
        compare_arms(baseline, [arm], comparisons=0)
    with pytest.raises(ValueError, match="one prompt for each row is needed, not 2 for 9 rows"):
        compare_arms(baseline, [arm], prompts=["a", "b"])
    with pytest.raises(ValueError, match="arms must be"):
        select_complete([np.zeros(3)])


@pytest.mark.parametrize("weighted", [False, True])
def test_crossed_differences_are_those_of_compare_arms_without_its_sign_flips(weighted: bool) -> None:
    """The value and the variances are the same; what is not beyond a level has no p below it."""
    beyond = []
    for number in range(12):
        weights = tokens_of(24) if weighted else None
        baseline, *arms = draw_arms(3, 24, number, count=3) * (1.0 if weights is None else weights)
        prompts = [row // 2 for row in range(24)]
        whole = compare_arms(baseline, arms, weights, prompts=prompts, resamples=QUICK)
        for one, other in zip(
            estimate_crossed_differences(baseline, arms, weights, prompts=prompts), whole, strict=True
        ):
            assert one.value == pytest.approx(other.value)
            assert (one.components, one.seeds, one.n) == (other.components, other.seeds, other.n)
            assert other.new_seeds is not None
            assert one.components is not None
            p = crossed_p_value(one.value, one.components, one.seeds, one.n)
            assert one.is_beyond(p * 1.0001)
            assert not one.is_beyond(p * 0.9999)
            assert not other.new_seeds.p < p * 0.9999
            beyond.append(one.is_beyond(LEVEL))
    assert len({*beyond}) == 2


def test_crossed_differences_one_seed_is_beyond_no_level() -> None:
    [found] = estimate_crossed_differences([[0.0] * 8], [[[9.0 + row / 100 for row in range(8)]]])
    assert (found.seeds, found.n, found.is_beyond(0.99)) == (1, 8, False)
