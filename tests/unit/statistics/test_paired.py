"""Two models compared prompt by prompt.

Oracles: every sign pattern tried in a loop, for p and, by shifting the differences, for the ends of the interval;
scipy's permutation test, Student's test and interval, and binomial test; BCa written out from its definition with other
draws; the jackknife's standard error; laws (swapping the models, shifting, scaling, order, prompts summed beforehand).
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from neftcli.statistics.multiple import name_verdict
from neftcli.statistics.paired import (
    LEVEL,
    MIN_PROMPTS,
    POWER,
    RESAMPLES,
    Estimate,
    PairedDifference,
    bootstrap_estimate,
    paired_difference,
    sum_by_prompt,
)
from tests.unit.statistics.draws import Floats, detectable_in_closed_form, draw_skewed

QUICK = 999  # resamples in simulations: 0.05 (999 + 1) is whole, so the level is kept exactly

numbers = st.floats(-100, 100, allow_nan=False).map(lambda number: round(number, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9)
scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=9)


def columns(rows: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    first, second = np.array(rows).T
    return first, second


def brute_force_p(differences: Floats, weights: Floats | None = None, r: float = 0.0) -> float:
    """Share of all sign patterns of d - r w whose sum is at least as far from 0; differences in whole millionths."""
    counts = np.ones(len(differences)) if weights is None else weights
    whole = [round(float(number) * 1_000_000) for number in differences - r * counts]
    sums = [sum(map(int.__mul__, signs, whole)) for signs in itertools.product((1, -1), repeat=len(whole))]
    return sum(abs(other) >= abs(sum(whole)) for other in sums) / len(sums)


# P


@settings(deadline=None)
@given(pairs)
@example([(100.0, 99.999), (0.0, 0.001), (0.0, 0.001)])
@example([(100.0, 99.999), (0.0, 0.001), (0.0, 0.001), (0.0, 3.0)])
def test_paired_difference_p_of_few_prompts_is_that_of_all_sign_patterns(rows: list[tuple[float, float]]) -> None:
    """Exact enumeration, whatever the seed; weights scale the difference and leave the test alone."""
    first, second = columns(rows)
    expected = brute_force_p(second - first)
    for seed, weights in ((0, None), (7, np.arange(1.0, len(rows) + 1))):
        assert paired_difference(first, second, weights, seed=seed, resamples=QUICK).p == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_paired_difference_exact_p_is_scipys(seed: int) -> None:
    first, second, _ = draw_skewed(13, seed, slope=0.1)
    expected = stats.permutation_test(
        (second - first,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert paired_difference(first, second).p == pytest.approx(expected)


@pytest.mark.parametrize("slope", [0.0, 0.15, 0.3])
def test_paired_difference_sampled_p_nears_the_exact_one(slope: float) -> None:
    """Sixteen prompts are sampled; all 65,536 patterns give a p within 4 standard errors of the sampling."""
    first, second, _ = draw_skewed(16, 3, slope)
    differences = second - first
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=16)))
    expected = float((abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())
    found = paired_difference(first, second).p
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / RESAMPLES) + 2 / RESAMPLES)
    assert found != expected


@pytest.mark.parametrize("resamples", [99, 999])
def test_paired_difference_sampled_p_is_never_zero(resamples: int) -> None:
    """All of a hundred differences lie on one side: no drawn pattern is as far from 0, and p is 1 / (resamples + 1)."""
    found = paired_difference(np.zeros(100), np.arange(1.0, 101.0), resamples=resamples)
    assert found.p == 1 / (resamples + 1)


@settings(deadline=None)
@given(scores)
def test_paired_difference_win_rate_is_tested_against_a_half(won: list[float]) -> None:
    """Ties included, it is every sign pattern of the scores less 0.5."""
    halves = np.full(len(won), 0.5)
    found = paired_difference(halves, won, resamples=QUICK)
    assert found.value == pytest.approx(np.mean(won) - 0.5)
    assert found.p == pytest.approx(brute_force_p(np.array(won) - 0.5))


@pytest.mark.parametrize(("wins", "ties", "losses"), [(115, 0, 85), (60, 100, 40), (30, 1, 0), (5, 0, 5)])
def test_paired_difference_p_of_a_win_rate_is_scipys_binomial_test(wins: int, ties: int, losses: int) -> None:
    """The exact sign test on the prompts that differ, within 4 standard errors of the sampling."""
    won = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    expected = stats.binomtest(wins, wins + losses).pvalue
    found = paired_difference(np.full(won.size, 0.5), won)
    error = 4 * math.sqrt(expected * (1 - expected) / RESAMPLES) + 2 / RESAMPLES
    assert found.p == pytest.approx(expected, abs=0 if won.size <= 13 else error)
    assert found.smallest_p == max(2 / 2 ** (wins + losses), 0 if won.size <= 13 else 1 / (RESAMPLES + 1))


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.15])
def test_paired_difference_of_normal_data_is_students_test_and_interval(shift: float) -> None:
    """Of 400 prompts: p within 4 standard errors of the sampling and 0.005, the ends within 3 % of the width."""
    first, second = np.random.default_rng(12).normal(size=(2, 400))
    found = paired_difference(first, second + shift)
    student = stats.ttest_rel(second + shift, first)
    interval = student.confidence_interval(1 - LEVEL)
    error = 4 * math.sqrt(student.pvalue * (1 - student.pvalue) / RESAMPLES) + 0.005
    assert found.p == pytest.approx(student.pvalue, abs=error)
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), abs=0.03 * (interval.high - interval.low)
    )


# Intervals


def by_definition(values: Floats, weights: Floats, resamples: int) -> tuple[float, float]:
    """BCa from its definition (Efron 1987), with draws of its own."""
    n = values.size
    drawn = np.random.default_rng(99).integers(0, n, (resamples, n))
    ratios = values[drawn].sum(1) / weights[drawn].sum(1)
    ratio = values.sum() / weights.sum()
    left_out = (values.sum() - values) / (weights.sum() - weights)
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    bias = stats.norm.ppf((ratios < ratio).mean())
    ends = []
    for z in stats.norm.ppf([LEVEL / 2, 1 - LEVEL / 2]):
        ends.append(np.quantile(ratios, stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))))
    return ends[0], ends[1]


@pytest.mark.parametrize("weighted", [False, True])
def test_estimate_interval_is_bca(weighted: bool) -> None:
    """On skewed losses, within 3 % of its width: the draws differ."""
    first, _, tokens = draw_skewed(60, 1)
    weights = tokens if weighted else np.ones(60)
    found = bootstrap_estimate(first, weights)
    low, high = by_definition(first, weights, 20_000)
    assert found.value == pytest.approx(first.sum() / weights.sum(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_estimate_interval_of_normal_data_is_students() -> None:
    values = np.random.default_rng(4).normal(3, 2, 1_000)
    low, high = stats.t.interval(1 - LEVEL, 999, values.mean(), stats.sem(values))
    found = bootstrap_estimate(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


weighted_rows = st.lists(st.tuples(st.integers(-40, 40), st.integers(1, 9)), min_size=2, max_size=9)
"""Differences in tenths, with many ties and zeros, and weights."""


@settings(deadline=None)
@given(weighted_rows, st.booleans())
def test_paired_difference_interval_ends_where_brute_force_p_falls_below_the_level(
    rows: list[tuple[int, int]], weighted: bool
) -> None:
    """Just inside of each end p(r) of all sign patterns is 0.05 or more, just outside it is less."""
    differences, counts = np.array(rows, dtype=float).T
    differences = differences / 10
    weights = counts if weighted else None
    found = paired_difference(np.zeros(len(rows)), differences, weights, resamples=QUICK)
    if len(rows) < MIN_PROMPTS:
        assert (found.low, found.high) == (None, None)
        return
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    step = 1e-3
    if found.high - found.low > 2 * step:
        assert brute_force_p(differences, weights, found.low + step) >= LEVEL
        assert brute_force_p(differences, weights, found.high - step) >= LEVEL
    assert brute_force_p(differences, weights, found.low - step) < LEVEL
    assert brute_force_p(differences, weights, found.high + step) < LEVEL


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 8), st.integers(1, 4)), min_size=2, max_size=40),
    st.booleans(),
    st.sampled_from([99, 199, 250]),
    st.sampled_from([0.0, 1.0, 3.7]),
    st.sampled_from([1.0, 0.1, 1e-7, 1e5]),
)
@example([(1, 1)] * 9 + [(-1, 1)], False, 99, 0.0, 0.1)
@example([(1, 1)] * 12 + [(0, 2)] * 9, True, 199, 3.7, 0.1)
def test_paired_difference_interval_excludes_zero_exactly_if_p_is_below_the_level(
    rows: list[tuple[int, int]], weighted: bool, resamples: int, far: float, unit: float
) -> None:
    """Whatever the ties, weights, unit and resamples, exact or sampled."""
    differences, counts = np.array(rows, dtype=float).T
    first = np.full(len(rows), far) * unit
    found = paired_difference(first, first + differences * unit, counts if weighted else None, resamples=resamples)
    assert found.p is not None
    excludes = (found.low is not None and found.low > 0) or (found.high is not None and found.high < 0)
    assert excludes == (found.p < LEVEL)
    if found.low is not None and found.high is not None:
        assert found.low <= found.value + 1e-9 * unit
        assert found.value <= found.high + 1e-9 * unit


@pytest.mark.parametrize("n", [9, 150])
@pytest.mark.parametrize("weighted", [False, True])
def test_paired_difference_interval_moves_with_a_shift(n: int, weighted: bool) -> None:
    """A difference of r more a token moves value and ends by r, so that p at r is p of 0 after it."""
    first, second, tokens = draw_skewed(n, 6)
    weights = tokens if weighted else np.ones(n)
    one = paired_difference(first, second, weights, resamples=QUICK)
    assert one.low is not None
    assert one.high is not None
    for r in (-2.0, 0.3):
        other = paired_difference(first, second + r * weights, weights, resamples=QUICK)
        assert (other.value, other.low, other.high) == pytest.approx((one.value + r, one.low + r, one.high + r))
    inside = paired_difference(first, second - (one.low + 1e-6) * weights, weights, resamples=QUICK)
    outside = paired_difference(first, second - (one.low - 1e-6) * weights, weights, resamples=QUICK)
    assert (inside.p or 0) >= LEVEL > (outside.p or 0)


def test_paired_difference_memory_is_bounded() -> None:
    """Ten thousand prompts, whose sign patterns would take 800 MB at once, stay under 100 MB."""
    first, second, tokens = draw_skewed(10_000, 0)
    paired_difference(first[:50], second[:50])
    tracemalloc.start()
    try:
        paired_difference(first, second, tokens, resamples=RESAMPLES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


# Laws


@settings(deadline=None)
@given(pairs)
@example([(0.1, 0.3), (0.2, 0.4)])
def test_paired_difference_swapped_is_mirrored(rows: list[tuple[float, float]]) -> None:
    """Value and ends change sign, p and the detectable effect don't, the verdict turns round."""
    first, second = columns(rows)
    one = paired_difference(first, second, resamples=QUICK)
    other = paired_difference(second, first, resamples=QUICK)
    assert other.value == -one.value
    assert (other.p, other.smallest_p, other.detectable) == (one.p, one.smallest_p, one.detectable)
    assert mirrored(other) == (one.low, one.high)
    assert name_verdict(one.p, one.value, "lower") == name_verdict(other.p, other.value, "higher")


def mirrored(found: PairedDifference) -> tuple[float | None, float | None]:
    """The ends of the interval of the models the other way round."""
    return None if found.high is None else -found.high, None if found.low is None else -found.low


def test_paired_difference_swapped_is_mirrored_if_patterns_are_sampled() -> None:
    first, second, tokens = draw_skewed(150, 8, slope=0.05)
    one, other = paired_difference(first, second, tokens), paired_difference(second, first, tokens)
    assert (other.value, other.p, other.detectable) == (-one.value, one.p, one.detectable)
    assert mirrored(other) == (one.low, one.high)


@pytest.mark.parametrize("n", [9, 150])
def test_paired_difference_scales_with_the_unit(n: int) -> None:
    """Values times 1,000 or weights by a third: all figures scale, p does not."""
    first, second, tokens = draw_skewed(n, 8, slope=0.05)
    one = paired_difference(first, second, tokens, resamples=QUICK)
    for scale, other in (
        (1_000, paired_difference(1_000 * first, 1_000 * second, tokens, resamples=QUICK)),
        (3, paired_difference(first, second, tokens / 3, resamples=QUICK)),
    ):
        figures = [scale * (number or math.nan) for number in (one.value, one.low, one.high, one.detectable)]
        assert [other.value, other.low, other.high, other.detectable] == pytest.approx(figures)
        assert (other.p, other.true_level) == (one.p, one.true_level)


@settings(deadline=None)
@given(pairs.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_paired_difference_order_does_not_change_value_and_exact_p(
    both: tuple[list[tuple[float, float]], list[tuple[float, float]]],
) -> None:
    one, other = (paired_difference(*columns(rows), resamples=QUICK) for rows in both)
    assert other.value == pytest.approx(one.value, rel=1e-9, abs=1e-12)
    assert other.p == one.p


@pytest.mark.parametrize("n", [2, 5, 12, 40, 300])
def test_paired_difference_weights_of_one_are_no_weights(n: int) -> None:
    """To the bit."""
    first, second, _ = draw_skewed(n, n)
    assert paired_difference(first, second, np.ones(n)) == paired_difference(first, second)
    assert bootstrap_estimate(first, np.ones(n)) == bootstrap_estimate(first)


def test_paired_difference_row_of_weight_zero_does_not_count() -> None:
    """With and without prompts."""
    first, second, tokens = draw_skewed(30, 2)
    longer = [np.insert(array, 4, 0.0) for array in (first, second, tokens)]
    assert paired_difference(*longer) == paired_difference(first, second, tokens)
    assert bootstrap_estimate(longer[0], longer[2]) == bootstrap_estimate(first, tokens)
    prompts = [str(row // 3) for row in range(30)]
    assert paired_difference(*longer, prompts=[*prompts[:4], "0", *prompts[4:]]) == paired_difference(
        first, second, tokens, prompts=prompts
    )


# Rows that share a prompt


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [27, 300])
def test_paired_difference_of_equal_prompts_is_that_of_rows_summed_beforehand(rows: int, weighted: bool) -> None:
    """The values and the weights (or the number of rows) of a prompt are summed, whatever the order of its rows."""
    first, second, tokens = draw_skewed(rows, rows, slope=0.1)
    prompts = [row % (rows // 3) for row in range(rows)]
    weights = tokens if weighted else None
    summed = [array.reshape(3, -1).sum(0) for array in (first, second, tokens if weighted else np.ones(rows))]
    found = paired_difference(first, second, weights, prompts=prompts, comparisons=2, resamples=QUICK)
    expected = paired_difference(*summed, comparisons=2, resamples=QUICK)
    assert found.n == rows // 3
    for name in ("value", "low", "high", "p", "smallest_p", "detectable", "true_level"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    one = bootstrap_estimate(first, weights, prompts=prompts)
    other = bootstrap_estimate(summed[0], summed[2])
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    assert one.n == rows // 3


def test_paired_difference_of_distinct_prompts_is_that_without_prompts() -> None:
    first, second, tokens = draw_skewed(40, 3)
    assert paired_difference(first, second, tokens, prompts=range(40)) == paired_difference(first, second, tokens)


def test_sum_by_prompt_is_a_loop_over_rows() -> None:
    """Two seeds, prompts in the order in which they first appear."""
    values = np.arange(10.0).reshape(2, 5)
    summed, counts = sum_by_prompt(values, None, ["b", "a", "b", "c", "a"])
    assert summed.tolist() == [[0 + 2, 1 + 4, 3], [5 + 7, 6 + 9, 8]]
    assert counts is not None
    assert counts.tolist() == [2, 2, 1]
    _, weights = sum_by_prompt(values, np.array([1.0, 2.0, 4.0, 8.0, 16.0]), ["b", "a", "b", "c", "a"])
    assert weights is not None
    assert weights.tolist() == [5, 18, 8]


def test_paired_difference_is_deterministic_by_its_seed() -> None:
    first, second, tokens = draw_skewed(100, 5)
    assert paired_difference(first, second, tokens, seed=3) == paired_difference(first, second, tokens, seed=3)
    assert paired_difference(first, second, tokens, seed=4) != paired_difference(first, second, tokens, seed=3)
    assert bootstrap_estimate(first, seed=3) == bootstrap_estimate(first, seed=3) != bootstrap_estimate(first, seed=4)


# Little or nothing to go by


def test_paired_difference_of_one_prompt_is_a_value_and_nothing_else() -> None:
    """Also if it has several rows."""
    assert bootstrap_estimate([3.0]) == Estimate(3.0, None, None, 1)
    assert bootstrap_estimate([3.0], [4.0]) == Estimate(0.75, None, None, 1)
    assert paired_difference([3.0], [1.0]) == PairedDifference(-2.0, None, None, None, 1.0, 1, None, None)
    found = paired_difference([3.0, 1.0], [1.0, 0.0], prompts=["a", "a"])
    assert found == PairedDifference(-1.5, None, None, None, 1.0, 1, None, None)
    assert bootstrap_estimate([3.0, 1.0], prompts=["a", "a"]) == Estimate(2.0, None, None, 1)


@pytest.mark.parametrize("n", [2, 9, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_paired_difference_of_identical_models_is_zero(n: int, weighted: bool) -> None:
    first, _, tokens = draw_skewed(n, 1)
    found = paired_difference(first, first, tokens if weighted else None)
    end = 0.0 if n >= MIN_PROMPTS else None
    assert found == PairedDifference(0.0, end, end, 1.0, 1.0, n, None, None)


@settings(deadline=None)
@given(st.integers(2, 30), st.sampled_from([-3.1, 0.1, 0.7]))
def test_paired_difference_equal_everywhere_has_an_interval_of_no_width(n: int, step: float) -> None:
    """Per prompt, or per token if tokens are the weights; p counts the two patterns that are as far."""
    tokens = np.arange(1.0, n + 1)
    far = np.random.default_rng(n).uniform(0, 1_000, n)
    for found in (
        paired_difference(np.zeros(n), np.full(n, step)),
        paired_difference(far, far + step),
        paired_difference(np.zeros(n), step * tokens, tokens),
    ):
        assert found.value == pytest.approx(step)
        assert (found.low, found.high) == ((None, None) if n < MIN_PROMPTS else pytest.approx((step, step)))
        assert found.detectable is None or found.detectable == pytest.approx(2 * abs(step) / n)
    exact = paired_difference(np.zeros(n), np.full(n, step))
    if 2**n <= RESAMPLES:
        assert exact.p == exact.smallest_p == 2 / 2**n
    else:
        assert exact.smallest_p == max(2 / 2**n, 1 / (RESAMPLES + 1))
        assert 1 / (RESAMPLES + 1) <= (exact.p or 1) <= 8 / RESAMPLES


@settings(deadline=None)
@given(pairs, st.integers(2, 40), st.integers(0, 3))
def test_estimate_interval_is_finite_with_few_resamples(
    rows: list[tuple[float, float]], resamples: int, seed: int
) -> None:
    """Also if few resamples all lie on one side and BCa is undefined; no warning (they are errors here)."""
    first, _ = columns(rows)
    found = bootstrap_estimate(first, np.arange(1.0, len(rows) + 1), seed=seed, resamples=resamples)
    assert found.low is not None
    assert found.high is not None
    assert -300 <= found.low <= found.high <= 300


def test_estimate_interval_is_the_percentiles_if_bca_is_undefined() -> None:
    """Of seeds with two resamples, some have both on one side: the ends are then 2.5 % inside of the two."""
    values = np.array([1.0, 2.0, 5.0, 7.0, 9.0])
    met = 0
    for seed in range(20):
        drawn = values[np.random.default_rng((seed, 0)).integers(0, 5, (2, 5))].mean(1)
        if drawn.max() < values.mean() or drawn.min() > values.mean():
            found = bootstrap_estimate(values, seed=seed, resamples=2)
            assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
            met += 1
    assert met > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no rows"),
        (([0.0], [0.0], [0.0]), "no rows"),
        (([1.0, 2.0], [1.0]), "one number for each row"),
        (([1.0, 2.0], [1.0, 2.0], [1.0]), "one number for each row"),
        (([[1.0], [2.0]], [[1.0], [2.0]]), "one number for each row"),
        (([1.0, math.nan], [1.0, 2.0]), "finite"),
        (([1.0, 2.0], [1.0, math.inf]), "finite"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, -1.0]), "weights must be 0 or more"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, 0.0]), "weights must be 0 or more"),
    ],
)
def test_paired_difference_rejects_what_can_not_be_compared(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(*arguments)


def test_paired_difference_rejects_no_rows_no_comparison_and_missing_prompts() -> None:
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_estimate([])
    with pytest.raises(ValueError, match="comparisons must be 1 or more, not 0"):
        paired_difference([1.0, 2.0], [2.0, 1.0], comparisons=0)
    with pytest.raises(ValueError, match="one prompt for each row is needed, not 1 for 2 rows"):
        paired_difference([1.0, 2.0], [2.0, 1.0], prompts=["a"])


# Minimum detectable effect, smallest p and true level


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("n", [15, 100, 2_000])
def test_paired_difference_detectable_is_its_closed_form(n: int, comparisons: int) -> None:
    """With the standard error of a mean, or the jackknife's of a ratio, which nears it in many prompts (3 / n)."""
    first, second, tokens = draw_skewed(n, n)
    differences = second - first
    of_mean = paired_difference(first, second, comparisons=comparisons, resamples=QUICK).detectable
    assert of_mean == pytest.approx(detectable_in_closed_form(float(stats.sem(differences)), n, comparisons))
    left_out = (differences.sum() - differences) / (tokens.sum() - tokens)
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    of_ratio = paired_difference(first, second, tokens, comparisons=comparisons, resamples=QUICK).detectable
    assert of_ratio == pytest.approx(detectable_in_closed_form(jackknife, n, comparisons), rel=3 / n)


def test_paired_difference_detectable_of_many_prompts_is_the_normal_form() -> None:
    """(1.960 + 0.842) standard errors."""
    first, second, _ = draw_skewed(5_000, 0)
    found = paired_difference(first, second, resamples=99).detectable
    assert found == pytest.approx((1.959964 + 0.841621) * stats.sem(second - first), rel=1e-3)


@pytest.mark.parametrize(
    ("n", "comparisons", "resamples", "possible"),
    [(5, 1, 999, False), (6, 1, 999, True), (6, 2, 999, False), (7, 2, 999, True), (100, 2, 39, False)],
)
def test_paired_difference_detects_nothing_if_no_p_is_small_enough(
    n: int, comparisons: int, resamples: int, possible: bool
) -> None:
    """Five prompts can't give a p below 2 / 2^5 = 0.0625, nor 39 resamples one below 1 / 40 = 0.05 / 2."""
    first, second, _ = draw_skewed(n, 0)
    found = paired_difference(first, second, comparisons=comparisons, resamples=resamples)
    assert (found.detectable is not None) == possible


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize("ties", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("n", [100, 200, 400])
def test_paired_difference_power_of_a_win_rate_is_at_least_the_promised(n: int, ties: float, comparisons: int) -> None:
    """Exact, no simulation: plant what is reported as detectable, and sum the chances of all results that p finds.

    The sample it is reported of has won by just that much, rounded to whole wins; hence 0.005 less is let pass.
    """
    planted = 0.0
    for _ in range(12):
        decided = round(n * (1 - ties))
        wins = round(decided / 2 + n * planted)
        sample = np.repeat([1.0, 0.5, 0.0], [wins, n - decided, decided - wins])
        reported = paired_difference(np.full(n, 0.5), sample, comparisons=comparisons, resamples=QUICK).detectable
        assert reported is not None
        planted = reported
    power = 0.0
    for decided in range(n + 1):
        wins = np.arange(decided + 1)
        tail = stats.binom.sf(np.maximum(wins, decided - wins) - 1, decided, 0.5)
        found = np.minimum(1, 2 * tail) < LEVEL / comparisons
        chances = stats.binom.pmf(wins, decided, 0.5 + planted / (1 - ties))
        power += stats.binom.pmf(decided, n, 1 - ties) * chances[found].sum()
    assert POWER - 0.005 <= power <= POWER + 0.07


@settings(deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=9))
def test_paired_difference_smallest_p_is_that_of_the_best_signs(differences: list[float]) -> None:
    """All of one sign, sizes kept: brute force over the patterns."""
    found = paired_difference(np.zeros(len(differences)), differences, resamples=QUICK)
    assert found.smallest_p == pytest.approx(brute_force_p(np.abs(differences)))


@pytest.mark.parametrize(("shape", "low", "high"), [("normal", 0.035, 0.07), ("lognormal", 0.075, 0.2)])
def test_paired_difference_true_level_rises_with_skewness(shape: str, low: float, high: float) -> None:
    """30 prompts: the median of 40 samples near 5 % if normal, and within the bounds if lognormal (true: 11 to 14)."""
    generator = np.random.default_rng(5)
    levels = []
    for _ in range(40):
        values = generator.normal(size=30) if shape == "normal" else generator.lognormal(size=30)
        levels.append(paired_difference(np.zeros(30), values, resamples=99).true_level or 0.0)
    assert low < np.median(levels) < high


def test_paired_difference_true_level_is_scipys_test_on_resamples() -> None:
    """Student's test of each of 2,000 resamples of the residuals with other draws: within 4 standard errors."""
    differences = np.random.default_rng(0).exponential(size=40)
    residuals = differences - differences.mean()
    drawn = residuals[np.random.default_rng(99).integers(40, size=(2_000, 40))]
    expected = float((stats.ttest_1samp(drawn, 0, axis=1).pvalue < LEVEL).mean())
    found = paired_difference(np.zeros(40), differences).true_level
    assert found == pytest.approx(expected, abs=4 * math.sqrt(2 * 0.08 * 0.92 / 2_000))
