"""Arms compared over seeds and examples.

Oracles: least squares for the sums of squares of the analysis of variance, and designs whose parts are known exactly;
the delete-one jackknife for ratios; `paired_difference` where only examples vary, Student's test and interval from
scipy where only seeds do; every sign pattern tried in a loop; a search in steps of one for what is needed; laws
(swapping arms, order, scale, effects that both arms share, seeds and examples that an arm lacks).
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neftcli.evaluation.statistics import LEVEL, POWER, Estimate, estimate, holm, paired_difference
from neftcli.sweep.statistics import (
    MOST_SEEDS,
    SEEDS_FOR_A_CLAIM,
    ArmDifference,
    Components,
    Needed,
    arm_difference,
    arm_estimate,
    complete,
    margin,
    needed,
    seeds_for_a_claim,
    variance_components,
)
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
QUICK = 199  # 0.05 (199 + 1) is whole


def arms(
    seeds: int,
    n: int,
    generator: np.random.Generator | int,
    *,
    count: int = 2,
    seed: float = 0.5,
    example: float = 1.0,
    residual: float = 1.0,
) -> Floats:
    """Values (arms, seeds, examples): parts that all arms share, large, and parts of each arm, of the sd given."""
    draw = np.random.default_rng(generator).normal
    shared = 3 * draw(size=(seeds, 1)) + 3 * draw(size=(1, n)) + draw(size=(seeds, n))
    own = seed * draw(size=(count, seeds, 1)) + example * draw(size=(count, 1, n))
    values: Floats = 10 + shared + own + residual * draw(size=(count, seeds, n))
    return values


def tokens_of(n: int) -> Floats:
    return np.random.default_rng(n).integers(5, 200, n).astype(float)


shapes = st.tuples(st.integers(2, 8), st.integers(2, 25), st.integers(0, 1_000))

# Components


@settings(deadline=None)
@given(shapes)
def test_components_are_those_of_least_squares(shape: tuple[int, int, int]) -> None:
    """Dummy variables fitted by lstsq: what seeds, then examples, then nothing take off the sum of squares."""
    seeds, n, number = shape
    values = arms(seeds, n, number)[0]
    rows, columns = np.indices(values.shape).reshape(2, -1)

    def left(*factors: Floats) -> float:
        design = np.column_stack([np.ones(values.size), *factors])
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return float(((values.ravel() - fitted) ** 2).sum())

    of_seeds, of_examples = np.eye(seeds)[rows], np.eye(n)[columns]
    rest = left(of_seeds, of_examples) / ((seeds - 1) * (n - 1))
    between_seeds = (left() - left(of_seeds)) / (seeds - 1)
    between_examples = (left() - left(of_examples)) / (n - 1)
    found = variance_components(values)
    assert found.residual == pytest.approx(rest)
    assert found.seed == pytest.approx(max(0, (between_seeds - rest) / n), abs=1e-9)
    assert found.example == pytest.approx(max(0, (between_examples - rest) / seeds), abs=1e-9)


def test_parts_that_are_known_exactly_are_found() -> None:
    """Seeds at -2, 0, 2 and examples at -1, 1, 1, -1 without residual: variances 4 and 4/3, at any mean."""
    values = 7 + np.array([-2.0, 0.0, 2.0])[:, None] + np.array([-1.0, 1.0, 1.0, -1.0])
    assert variance_components(values) == Components(pytest.approx(4.0), pytest.approx(4 / 3), 0.0)
    assert variance_components(values[:1]) == Components(None, pytest.approx(4 / 3), None)
    assert variance_components(np.full((3, 4), 0.1)).unknown()


def test_components_are_unbiased() -> None:
    """Known variances 1, 4 and 9: the means over 300 draws are within four standard errors, where none is cut at 0."""
    found = [
        variance_components(3 * arms(6, 30, number, count=1, seed=0, example=0, residual=0)[0]) for number in range(300)
    ]
    for name, truth in (("seed", 81.0), ("example", 81.0), ("residual", 9.0)):
        drawn = np.array([getattr(each, name) for each in found])
        assert drawn.mean() == pytest.approx(truth, abs=4 * stats.sem(drawn))


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_spread_of_a_ratio_is_the_jackknifes(seeds: int) -> None:
    """Leaving each example out, of 400 whose spread grows with their tokens: within 3 %."""
    tokens = tokens_of(400)
    values = (arms(seeds, 400, 1)[0] - 10) * tokens
    sums = values.mean(0)
    left_out = (sums.sum() - sums) / (tokens.sum() - tokens)
    jackknife = 399 * left_out.var()
    found = variance_components(values, tokens)
    assert found.example / 400 + (found.residual or 0) / seeds / 400 == pytest.approx(jackknife, rel=0.03)


def test_a_seeds_part_of_a_ratio_is_that_of_its_ratios() -> None:
    """Each seed adds so much a token: no example and no residual part, whatever the tokens."""
    added = np.array([0.1, 0.5, 0.3])
    found = variance_components(added[:, None] * tokens_of(50), tokens_of(50))
    assert found == Components(pytest.approx(added.var(ddof=1)), 0.0, 0.0)


# Seeds and scope


def test_seeds_for_a_claim_are_those_that_holm_leaves_room_for() -> None:
    """The first count whose smallest p, in all of the family, is below the level after Holm's correction."""
    for comparisons in range(1, 60):
        counts = (seeds for seeds in range(1, 99) if holm([2 / 2**seeds] * comparisons)[0] < LEVEL)
        assert seeds_for_a_claim(comparisons) == next(counts)
    assert seeds_for_a_claim() == SEEDS_FOR_A_CLAIM == 6
    assert [seeds_for_a_claim(comparisons) for comparisons in (2, 3, 4, 6, 7)] == [7, 7, 8, 8, 9]


@pytest.mark.parametrize(("comparisons", "claims"), [(1, 6), (3, 7)])
@pytest.mark.parametrize("seeds", [1, 2, 5, 6, 7, 9])
def test_the_scope_is_what_the_seeds_can_support(seeds: int, comparisons: int, claims: int) -> None:
    found = arm_difference(*arms(seeds, 30, 0), comparisons=comparisons, resamples=QUICK)
    assert found.scope == ("seeds and examples" if seeds >= claims else "examples")
    assert (found.seeds, found.n, found.comparisons) == (seeds, 30, comparisons)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_few_seeds_are_compared_as_their_average(seeds: int, weighted: bool) -> None:
    """Value, p and what is detectable are those of the paired test over examples; with one seed the interval too."""
    baseline, arm = arms(seeds, 60, seeds)
    tokens = tokens_of(60) if weighted else None
    found = arm_difference(baseline, arm, tokens, comparisons=3, seed=5, resamples=QUICK)
    same = paired_difference(baseline.mean(0), arm.mean(0), tokens, comparisons=3, seed=5, resamples=QUICK)
    assert (found.value, found.p, found.detectable) == (same.value, same.p, same.detectable)
    if seeds == 1:
        assert (found.low, found.high) == (same.low, same.high)
        assert arm_estimate(arm, tokens, resamples=QUICK) == estimate(arm[0], tokens, resamples=QUICK)


@pytest.mark.parametrize("gap", [0.0, 0.6, 1.2, 3.0])
@pytest.mark.parametrize("seeds", [6, 8])
def test_p_over_seeds_and_examples_is_the_largest_of_three(seeds: int, gap: float) -> None:
    """All sign patterns of the seeds' figures; those over examples; and the level whose margin is the difference."""
    baseline, arm = arms(seeds, 40, 2)
    arm = arm + gap
    figures = (arm - baseline).mean(1)
    sums = [float(np.dot(signs, figures)) for signs in itertools.product((1, -1), repeat=seeds)]
    over_seeds = sum(abs(other) >= abs(figures.sum()) - 1e-9 for other in sums) / len(sums)
    over_examples = paired_difference(baseline.mean(0), arm.mean(0), resamples=999).p
    parts = variance_components(arm - baseline)
    levels = np.linspace(1e-5, 1 - 1e-5, 20_001)
    assert parts.seed is not None
    assert parts.residual is not None
    of_seeds = stats.t.isf(levels / 2, seeds - 1) ** 2 * (parts.seed + parts.residual / 40) / seeds
    of_rows = stats.t.isf(levels / 2, 39) ** 2 * parts.example / 40
    crossed = levels[np.argmax(np.sqrt(of_seeds + of_rows) <= abs(figures.mean()))]
    found = arm_difference(baseline, arm, resamples=999).p
    assert found == pytest.approx(max(over_seeds, over_examples or 0, crossed), abs=1e-4)


def test_where_only_seeds_vary_it_is_students_test_and_interval() -> None:
    """Differences that all examples share: t over seeds, at any count of them (the interval) and from six on (p)."""
    gains = np.array([0.9, 0.2, 0.4, 4.0, 0.1, 0.5, 0.3, 0.8])
    baseline = arms(8, 50, 0)[0]
    for seeds in (2, 3, 6, 8):
        found = arm_difference(baseline[:seeds], (baseline + gains[:, None])[:seeds], resamples=QUICK)
        ends = stats.t.interval(1 - LEVEL, seeds - 1, gains[:seeds].mean(), stats.sem(gains[:seeds]))
        assert (found.low, found.high) == pytest.approx(ends)
    # All gains are above 0, and of signs alone p is 2 / 256; Student's is larger for the one that is so unlike.
    student = float(stats.ttest_1samp(gains, 0).pvalue)
    assert found.p == pytest.approx(student)
    assert student > 0.05 > 2 / 256


def test_where_examples_vary_no_more_than_the_rest_the_interval_is_students() -> None:
    """The residual is in the seeds' figures already, and is not counted again: t over seeds, in every such draw."""
    met = 0
    for number in range(40):
        baseline, arm = arms(4, 12, number, seed=0.5, example=0.0)
        found = arm_difference(baseline, arm, resamples=QUICK)
        assert found.components is not None
        if found.components.example == 0 and found.components.seed:
            figures = (arm - baseline).mean(1)
            ends = stats.t.interval(1 - LEVEL, 3, figures.mean(), stats.sem(figures))
            assert (found.low, found.high) == pytest.approx(ends)
            met += 1
    assert met > 5


def test_where_only_examples_vary_seeds_change_nothing() -> None:
    """Seeds that train the same models: interval and what is detectable are those of one, but p knows six seeds."""
    baseline, arm = arms(1, 80, 3)
    arm = arm + 1
    once = arm_difference(baseline, arm, resamples=QUICK)
    six = arm_difference(baseline.repeat(6, 0), arm.repeat(6, 0), resamples=QUICK)
    assert (six.low, six.high) == pytest.approx((once.low, once.high))
    assert six.components == Components(0.0, pytest.approx(once.components.example), 0.0)  # type: ignore[union-attr]
    assert six.p == 2 / 2**6
    assert once.p == 1 / (QUICK + 1)


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 300), st.floats(0.001, 0.4))
def test_the_margin_of_one_part_is_students(seeds: int, rows: int, tail: float) -> None:
    """And with both it is between the larger and their sum."""
    of_seeds = margin(Components(2.0, 0.0, 0.0), seeds, rows, tail)
    of_rows = margin(Components(0.0, 3.0, 0.0), seeds, rows, tail)
    assert of_seeds == pytest.approx(stats.t.isf(tail, seeds - 1) * math.sqrt(2 / seeds))
    assert of_rows == pytest.approx(stats.t.isf(tail, rows - 1) * math.sqrt(3 / rows))
    assert margin(Components(0.0, 0.0, 2.0 * rows), seeds, rows, tail) == pytest.approx(of_seeds)
    both = margin(Components(2.0, 3.0, 0.0), seeds, rows, tail)
    assert max(of_seeds, of_rows) <= both <= of_seeds + of_rows


# Laws


def same(one: ArmDifference, other: ArmDifference, sign: int = 1, scale: float = 1.0) -> None:
    ends = sorted((sign * scale * (one.low or 0), sign * scale * (one.high or 0)))
    assert other.value == pytest.approx(sign * scale * one.value)
    assert (other.low, other.high) == pytest.approx(tuple(ends))
    assert other.p == pytest.approx(one.p)
    assert other.detectable == pytest.approx(scale * (one.detectable or 0))
    assert (other.scope, other.seeds, other.n) == (one.scope, one.seeds, one.n)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seeds", [1, 4, 7])
def test_what_changes_nothing_changes_nothing(seeds: int, weighted: bool) -> None:
    """Swapped arms mirror; a unit scales; what both arms share cancels; seeds have no order; ones are no weights."""
    baseline, arm = arms(seeds, 40, seeds)
    tokens = tokens_of(40) if weighted else None

    def compare(one: Floats, other: Floats, weights: Floats | None = tokens) -> ArmDifference:
        return arm_difference(one, other, weights, resamples=QUICK)

    found = compare(baseline, arm)
    same(found, compare(arm, baseline), sign=-1)
    same(found, compare(1_000 * baseline, 1_000 * arm), scale=1_000)
    shared = 5 * arms(seeds, 40, 77, count=1)[0]
    same(found, compare(baseline + shared, arm + shared))
    same(found, compare(baseline[::-1], arm[::-1]))
    if weighted:
        same(found, compare(baseline, arm, 3 * tokens_of(40)), scale=1 / 3)
    else:
        assert compare(baseline, arm, np.ones(40)) == found


def test_the_same_input_gives_the_same_bits_and_another_seed_does_not() -> None:
    values = arms(3, 50, 0)
    assert arm_difference(*values, seed=1, resamples=QUICK) == arm_difference(*values, seed=1, resamples=QUICK)
    assert arm_difference(*values, seed=1, resamples=QUICK) != arm_difference(*values, seed=2, resamples=QUICK)


@pytest.mark.parametrize("weighted", [False, True])
def test_what_an_arm_lacks_counts_in_neither(weighted: bool) -> None:
    """A failed seed of one arm, an example without a value in one cell, an example without tokens."""
    values = arms(8, 30, 4)
    tokens = tokens_of(30)
    expected = arm_difference(
        *(np.delete(np.delete(each, 2, 0), [5, 9], 1) for each in values),
        np.delete(tokens, [5, 9]) if weighted else None,
        resamples=QUICK,
    )
    values[:, :, 9] = 0.0 if weighted else np.nan
    values[1, 6, 5] = np.nan
    values[0, 2] = np.nan
    tokens[9] = 0.0
    found = arm_difference(*values, tokens if weighted else None, resamples=QUICK)
    assert found == expected
    assert (found.seeds, found.n) == (7, 28)


def test_an_arms_own_figure_counts_all_its_seeds() -> None:
    """A failed seed is left out; the mean is that of the seeds left."""
    values = arms(7, 40, 9, seed=2.0)[0]
    failed = np.insert(values, 3, np.nan, axis=0)
    assert arm_estimate(failed, resamples=QUICK) == arm_estimate(values, resamples=QUICK)
    assert arm_estimate(values, resamples=QUICK).value == pytest.approx(values.mean())


# Little or nothing to go by


@pytest.mark.parametrize("seeds", [1, 6])
def test_one_example_gives_a_value_and_nothing_else(seeds: int) -> None:
    found = arm_difference(np.zeros((seeds, 1)), np.full((seeds, 1), 2.0))
    assert (found.value, found.low, found.high, found.p, found.detectable) == (2.0, None, None, None, None)
    assert needed(found, 1.0) == Needed(None, None)
    assert arm_estimate(np.full((seeds, 1), 2.0)) == Estimate(2.0, None, None, 1)


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_identical_arms_differ_by_nothing(seeds: int) -> None:
    """Also where the arms differ in the last bit: nothing is detectable, and no evidence could be named."""
    values = arms(seeds, 20, 0)[0]
    for other in (values, values * (1 + 2**-52)):
        found = arm_difference(values, other, resamples=QUICK)
        assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
        assert (found.p, found.detectable) == (1.0, None)
        assert needed(found, 0.1) == Needed(None, None)


def test_all_seeds_and_examples_gain_the_same() -> None:
    """Nothing varies: p is the smallest that six seeds allow, and the interval has no width."""
    values = arms(6, 20, 0)[0]
    found = arm_difference(values, values + 1, resamples=QUICK)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert (found.p, found.detectable) == (2 / 2**6, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [0.0]), "arms must be"),
        (([[0.0]], [[0.0], [1.0]]), "arms must be"),
        (([[0.0, 1.0]], [[0.0, 1.0]], [1.0]), "arms must be"),
        (([[math.nan]], [[0.0]]), "no seeds or no examples"),
        (([[]], [[]]), "no seeds or no examples"),
        (([[1.0, math.nan]], [[math.nan, 1.0]]), "no seeds or no examples"),
        (([[0.0, 1.0]], [[0.0, 1.0]], [0.0, math.nan]), "finite"),
        (([[0.0, math.inf]], [[0.0, 1.0]]), "finite"),
        (([[0.0, 1.0]], [[0.0, 1.0]], [1.0, -1.0]), "weights must be 0 or more"),
        (([[0.0, 1.0]], [[0.0, 1.0]], [1.0, 0.0]), "more than 0 where a value is not 0"),
    ],
)
def test_what_can_not_be_compared_is_refused(arguments: tuple[list[list[float]], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arm_difference(*arguments)


def test_no_comparison_and_no_target_are_refused() -> None:
    with pytest.raises(ValueError, match="comparisons must be 1 or more, not 0"):
        arm_difference(*arms(3, 9, 0), comparisons=0)
    for target in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            needed(arm_difference(*arms(3, 9, 0), resamples=QUICK), target)
    with pytest.raises(ValueError, match="arms must be"):
        complete([np.zeros(3)])


# What it would need


@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize("seeds", [1, 3, 7, 12])
def test_what_is_detectable_needs_what_there_is(seeds: int, comparisons: int) -> None:
    """The rows at hand, to the row; a target a thousandth smaller needs more."""
    found = arm_difference(*arms(seeds, 90, 1), comparisons=comparisons, resamples=QUICK)
    assert found.detectable is not None
    assert needed(found, found.detectable * (1 + 1e-9)).rows == 90
    assert (needed(found, found.detectable * 0.999).rows or 10**9) > 90
    if found.scope == "seeds and examples":
        assert needed(found, found.detectable * (1 + 1e-9)).seeds == seeds


def test_rows_needed_for_these_seeds_are_those_of_the_closed_form() -> None:
    """Half the difference takes four times the rows, of (z + z)^2 variance / target^2."""
    found = arm_difference(*arms(3, 200, 1), resamples=QUICK)
    parts = found.components
    assert parts is not None
    assert parts.residual is not None
    quantiles = stats.norm.isf(LEVEL / 2) + stats.norm.isf(1 - POWER)
    for target in (0.02, 0.01):
        expected = quantiles**2 * (parts.example + parts.residual / 3) / target**2
        assert needed(found, target).rows == pytest.approx(expected, rel=0.001)


def test_rows_needed_for_a_win_rate_are_those_of_the_sign_test() -> None:
    """Known: 60 % against 50 % takes 194 prompts by the normal formula; the sign test's step makes it a few more."""
    won = np.repeat([[1.0, 0.0]], [100, 100], axis=1)
    found = arm_difference(np.full((1, 200), 0.5), won, resamples=QUICK)
    rows = needed(found, 0.1).rows
    assert rows is not None
    assert 194 < rows < 225
    assert needed(found, found.detectable or 0).rows == 200


@pytest.mark.parametrize("comparisons", [1, 3, 10])
def test_seeds_needed_are_the_first_that_suffice(comparisons: int) -> None:
    """Counted up one by one, in the formula written out with scipy's quantiles."""
    parts = Components(1.0, 4.0, 9.0)
    found = ArmDifference(0.1, -1.0, 1.0, 0.5, "examples", 3, 100, 1.0, comparisons, parts)
    level = LEVEL / comparisons

    def reach(seeds: int) -> float:
        ends = [
            math.sqrt((stats.t.isf(tail, seeds - 1) ** 2) * 1.09 / seeds + (stats.t.isf(tail, 99) ** 2) * 0.04)
            for tail in (level / 2, 1 - POWER)
        ]
        patterns = max(1, math.ceil(level * 2 ** (seeds - 1)) - 1)
        return sum(ends) * (1 + 1 / (2 + 2 * patterns))

    for target in (0.8, 1.0, 1.5, 2.5):
        first = next((seeds for seeds in range(seeds_for_a_claim(comparisons), 500) if reach(seeds) <= target), None)
        assert first is not None
        assert needed(found, target).seeds == first


def test_no_number_of_rows_or_of_seeds_makes_up_for_the_other() -> None:
    """Below the limit of each there is none; just above it there is."""
    found = ArmDifference(
        0.1, -1.0, 1.0, 0.5, "seeds and examples", 8, 100, 1.0, 1, Components(seed=1.0, example=4.0, residual=1.0)
    )
    of_seeds = dataclasses.replace(found, components=Components(1.0, 0.0, 0.0))
    assert of_seeds.components is not None
    patterns = math.ceil(LEVEL * 2**7) - 1
    limit = sum(margin(of_seeds.components, 8, 10**8, tail) for tail in (LEVEL / 2, 1 - POWER))
    limit *= 1 + 1 / (2 + 2 * patterns)
    assert needed(found, 0.99 * limit).rows is None
    assert needed(found, 1.01 * limit).rows is not None
    limit = (stats.t.isf(LEVEL / 2, 99) + stats.t.isf(1 - POWER, 99)) * 0.2
    assert needed(found, 0.99 * limit).seeds is None
    assert 8 < (needed(found, 1.01 * limit).seeds or 0) < MOST_SEEDS


def test_one_seed_can_not_tell_how_many_are_needed() -> None:
    found = arm_difference(*arms(1, 50, 0), resamples=QUICK)
    assert found.components is not None
    assert found.components.seed is None
    assert needed(found, 0.1).seeds is None
    assert needed(found, 0.1).rows is not None
