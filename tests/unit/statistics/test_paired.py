"""Two models compared example by example.

Oracles: every sign pattern tried in a loop, and scipy's own permutation test; the exact sign test from binomial
coefficients; BCa written out from its definition with other draws; Student's interval on normal data; the jackknife's
standard error; a table of Holm's correction worked by hand; laws (swapping the models, order, weights of 1).
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from neftcli.evaluation.statistics import (
    LEVEL,
    POWER,
    RESAMPLES,
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
    verdict,
)
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
QUICK = 999  # resamples in simulations: 0.05 (999 + 1) is whole, so the level is kept exactly

numbers = st.floats(-100, 100, allow_nan=False).map(lambda number: round(number, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9)
scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12)


def columns(rows: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    first, second = np.array(rows).T
    return first, second


def brute_force_p(differences: Floats) -> float:
    """Share of all sign patterns whose sum is at least as far from 0, in integers of a millionth."""
    whole = [round(float(number) * 1_000_000) for number in differences]
    sums = [sum(map(int.__mul__, signs, whole)) for signs in itertools.product((1, -1), repeat=len(whole))]
    return sum(abs(other) >= abs(sum(whole)) for other in sums) / len(sums)


def skewed(n: int, seed: int, slope: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """Sums of nats of two models and the tokens, per example; the losses are skewed and harder examples are longer."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 200, n).astype(float)
    hard = generator.gamma(2, 1, n) + tokens / 100
    first, second = (tokens * (hard + generator.exponential(0.3, n)) for _ in range(2))
    return first, second + slope * tokens, tokens


# P


@settings(deadline=None)
@given(pairs)
@example([(100.0, 99.999), (0.0, 0.001), (0.0, 0.001)])
@example([(100.0, 99.999), (0.0, 0.001), (0.0, 0.001), (0.0, 3.0)])
def test_p_of_few_examples_is_that_of_all_sign_patterns(rows: list[tuple[float, float]]) -> None:
    """Exact enumeration, whatever the seed; weights scale the difference and leave the test alone."""
    first, second = columns(rows)
    expected = brute_force_p(second - first)
    for seed, weights in ((0, None), (7, np.arange(1.0, len(rows) + 1))):
        assert paired_difference(first, second, weights, seed=seed, resamples=QUICK).p == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_exact_p_is_scipys(seed: int) -> None:
    first, second, _ = skewed(13, seed, slope=0.1)
    expected = stats.permutation_test(
        (second - first,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert paired_difference(first, second).p == pytest.approx(expected)


@pytest.mark.parametrize("slope", [0.0, 0.15, 0.3])
def test_sampled_p_nears_the_exact_one(slope: float) -> None:
    """Sixteen examples are sampled; all 65,536 patterns give a p within 4 standard errors of the sampling."""
    first, second, _ = skewed(16, 3, slope)
    differences = second - first
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=16)))
    expected = float((abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())
    found = paired_difference(first, second).p
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / RESAMPLES) + 2 / RESAMPLES)
    assert found != expected


@pytest.mark.parametrize("resamples", [99, 999])
def test_a_sampled_p_is_never_zero(resamples: int) -> None:
    """All of a hundred differences lie on one side: no drawn pattern is as far from 0, and p is 1 / (resamples + 1)."""
    found = paired_difference(np.zeros(100), np.arange(1.0, 101.0), resamples=resamples)
    assert found.p == 1 / (resamples + 1)


@settings(deadline=None)
@given(scores)
def test_a_win_rate_is_tested_against_a_half(won: list[float]) -> None:
    """Ties included, it is every sign pattern of the scores less 0.5."""
    halves = np.full(len(won), 0.5)
    found = paired_difference(halves, won, resamples=QUICK)
    assert found.value == pytest.approx(np.mean(won) - 0.5)
    assert found.p == pytest.approx(brute_force_p(np.array(won) - 0.5))


@pytest.mark.parametrize(("wins", "ties", "losses"), [(115, 0, 85), (60, 100, 40), (30, 1, 0), (5, 0, 5)])
def test_p_of_a_win_rate_is_the_sign_test(wins: int, ties: int, losses: int) -> None:
    """Exact at any count of examples: twice the binomial tail, from its coefficients."""
    won = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    decided, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(decided, count) for count in range(most, decided + 1)) / 2**decided
    assert paired_difference(np.full(won.size, 0.5), won, resamples=QUICK).p == pytest.approx(min(1.0, 2 * tail))


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
def test_the_interval_is_bca(weighted: bool) -> None:
    """On skewed losses, within 3 % of its width: the draws differ."""
    first, second, tokens = skewed(60, 1, slope=0.2)
    weights = tokens if weighted else np.ones(60)
    for found, values in (
        (estimate(first, weights), first),
        (paired_difference(first, second, weights), second - first),
    ):
        low, high = by_definition(values, weights, 20_000)
        assert found.value == pytest.approx(values.sum() / weights.sum(), rel=1e-12)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_the_interval_of_normal_data_is_students() -> None:
    values = np.random.default_rng(4).normal(3, 2, 1_000)
    low, high = stats.t.interval(1 - LEVEL, 999, values.mean(), stats.sem(values))
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_memory_is_bounded() -> None:
    """Ten thousand examples, whose jackknife alone would take 800 MB at once, stay under 100 MB."""
    first, second, tokens = skewed(10_000, 0)
    paired_difference(first[:50], second[:50])
    tracemalloc.start()
    try:
        paired_difference(first, second, tokens, resamples=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


# Laws


@settings(deadline=None)
@given(pairs)
@example([(0.1, 0.3), (0.2, 0.4)])
def test_swapping_the_models_mirrors_all(rows: list[tuple[float, float]]) -> None:
    """Value and ends change sign, p and what is detectable don't, the verdict turns round."""
    first, second = columns(rows)
    one = paired_difference(first, second, resamples=QUICK)
    other = paired_difference(second, first, resamples=QUICK)
    assert other.value == -one.value
    assert (other.p, other.detectable) == (one.p, one.detectable)
    assert one.low is not None
    assert one.high is not None
    spread = np.ptp(second - first)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), rel=1e-9, abs=1e-9 * spread + 1e-12)
    assert verdict(one.p, one.value, "lower") == verdict(other.p, other.value, "higher")


def test_swapping_the_models_mirrors_a_sampled_comparison_too() -> None:
    first, second, tokens = skewed(150, 8, slope=0.05)
    one, other = paired_difference(first, second, tokens), paired_difference(second, first, tokens)
    assert (other.value, other.p, other.detectable) == (-one.value, one.p, one.detectable)
    assert one.low is not None
    assert one.high is not None
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), rel=1e-9)


@settings(deadline=None)
@given(pairs.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_the_examples_is_nothing_to_value_and_exact_p(
    both: tuple[list[tuple[float, float]], list[tuple[float, float]]],
) -> None:
    one, other = (paired_difference(*columns(rows), resamples=QUICK) for rows in both)
    assert other.value == pytest.approx(one.value, rel=1e-9, abs=1e-12)
    assert other.p == one.p


@pytest.mark.parametrize("n", [2, 5, 12, 40, 300])
def test_weights_of_one_are_no_weights(n: int) -> None:
    """To the bit."""
    first, second, _ = skewed(n, n)
    assert paired_difference(first, second, np.ones(n)) == paired_difference(first, second)
    assert estimate(first, np.ones(n)) == estimate(first)


def test_an_example_of_weight_zero_does_not_count() -> None:
    first, second, tokens = skewed(30, 2)
    longer = [np.insert(array, 4, 0.0) for array in (first, second, tokens)]
    assert paired_difference(*longer) == paired_difference(first, second, tokens)
    assert estimate(longer[0], longer[2]) == estimate(first, tokens)


def test_the_same_input_gives_the_same_bits_and_another_seed_does_not() -> None:
    first, second, tokens = skewed(100, 5)
    assert paired_difference(first, second, tokens, seed=3) == paired_difference(first, second, tokens, seed=3)
    assert paired_difference(first, second, tokens, seed=4) != paired_difference(first, second, tokens, seed=3)
    assert estimate(first, seed=3) == estimate(first, seed=3) != estimate(first, seed=4)


# Little or nothing to go by


def test_one_example_gives_a_value_and_nothing_else() -> None:
    assert estimate([3.0]) == Estimate(3.0, None, None, 1)
    assert estimate([3.0], [4.0]) == Estimate(0.75, None, None, 1)
    assert paired_difference([3.0], [1.0]) == Difference(-2.0, None, None, None, 1, None)


@pytest.mark.parametrize("n", [2, 9, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_identical_models_differ_by_nothing(n: int, weighted: bool) -> None:
    first, _, tokens = skewed(n, 1)
    found = paired_difference(first, first, tokens if weighted else None)
    assert found == Difference(0.0, 0.0, 0.0, 1.0, n, None)


@settings(deadline=None)
@given(st.integers(2, 30), st.sampled_from([-3.1, 0.1, 0.7]))
def test_equal_differences_have_an_interval_of_no_width(n: int, step: float) -> None:
    """Per example, or per token where tokens are the weights; p counts the two patterns that are as far."""
    tokens = np.arange(1.0, n + 1)
    far = np.random.default_rng(n).uniform(0, 1_000, n)
    for found in (
        paired_difference(np.zeros(n), np.full(n, step)),
        paired_difference(far, far + step),
        paired_difference(np.zeros(n), step * tokens, tokens),
    ):
        assert found.low == found.high == found.value == pytest.approx(step)
        assert found.detectable is None
    assert paired_difference(np.zeros(n), np.full(n, step)).p == pytest.approx(2 / 2**n)


@settings(deadline=None)
@given(pairs, st.integers(2, 40), st.integers(0, 3))
def test_whatever_is_given_the_interval_is_finite(rows: list[tuple[float, float]], resamples: int, seed: int) -> None:
    """Also where few resamples all lie on one side and BCa is undefined; no warning (they are errors here)."""
    first, second = columns(rows)
    for found in (
        paired_difference(first, second, seed=seed, resamples=resamples),
        estimate(first, np.arange(1.0, len(rows) + 1), seed=seed, resamples=resamples),
    ):
        assert found.low is not None
        assert found.high is not None
        assert -300 <= found.low <= found.high <= 300


def test_where_bca_is_undefined_the_percentile_interval_is_given() -> None:
    """Of seeds with two resamples, some have both on one side: the ends are then 2.5 % inside of the two."""
    values = np.array([1.0, 2.0, 5.0, 7.0, 9.0])
    met = 0
    for seed in range(20):
        drawn = values[np.random.default_rng((seed, 0)).integers(0, 5, (2, 5))].mean(1)
        if drawn.max() < values.mean() or drawn.min() > values.mean():
            found = estimate(values, seed=seed, resamples=2)
            assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
            met += 1
    assert met > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no examples"),
        (([0.0], [0.0], [0.0]), "no examples"),
        (([1.0, 2.0], [1.0]), "one number for each example"),
        (([1.0, 2.0], [1.0, 2.0], [1.0]), "one number for each example"),
        (([[1.0], [2.0]], [[1.0], [2.0]]), "one number for each example"),
        (([1.0, math.nan], [1.0, 2.0]), "finite"),
        (([1.0, 2.0], [1.0, math.inf]), "finite"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, -1.0]), "weights must be 0 or more"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, 0.0]), "weights must be 0 or more"),
    ],
)
def test_what_can_not_be_compared_is_refused(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(*arguments)


def test_an_estimate_of_nothing_and_no_comparison_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        estimate([])
    with pytest.raises(ValueError, match="comparisons must be 1 or more, not 0"):
        paired_difference([1.0, 2.0], [2.0, 1.0], comparisons=0)


# Holm and the verdict


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.02, 0.5], [1.0, 0.06, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_is_the_table_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


probabilities = st.lists(st.floats(0, 1), max_size=8)


@settings(deadline=None)
@given(probabilities.flatmap(lambda p: st.tuples(st.just(p), st.permutations(range(len(p))))))
def test_holm_keeps_its_laws(both: tuple[list[float], list[int]]) -> None:
    """Between p and min(1, m p), in the order of p, and each place keeps its own whatever the order given."""
    p_values, order = both
    adjusted = holm(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p <= corrected <= min(1.0, len(p_values) * p)
    for (p, corrected), (other, other_corrected) in itertools.product(zip(p_values, adjusted, strict=True), repeat=2):
        assert p > other or corrected <= other_corrected
    assert holm([p_values[index] for index in order]) == [adjusted[index] for index in order]


@settings(deadline=None)
@given(probabilities.filter(len), st.floats(0.001, 0.5))
def test_holm_rejects_as_its_steps_do(p_values: list[float], level: float) -> None:
    """Smallest first, each p against level / tests left, until one fails: the procedure as Holm describes it."""
    left, rejected = sorted(p_values), 0
    while left and left[0] * len(left) < level:
        rejected += 1
        left.pop(0)
    assert sum(adjusted < level for adjusted in holm(p_values)) == rejected


@pytest.mark.parametrize(
    ("p", "difference", "words"),
    [
        (0.049, 1.0, {"lower": "worse", "higher": "better", "none": "higher"}),
        (0.049, -1.0, {"lower": "better", "higher": "worse", "none": "lower"}),
        (0.05, -1.0, dict.fromkeys(("lower", "higher", "none"), "not distinguishable")),
        (1.0, 0.0, dict.fromkeys(("lower", "higher", "none"), "not distinguishable")),
        (None, 1.0, dict.fromkeys(("lower", "higher", "none"), "")),
    ],
)
def test_the_verdict(p: float | None, difference: float, words: dict[str, str]) -> None:
    assert {better: verdict(p, difference, better) for better in words} == words  # type: ignore[arg-type]


# What could have been found


def closed_form(standard_error: float, n: int, comparisons: int = 1) -> float:
    """What is detectable at a known standard error."""
    quantiles = stats.t.ppf([1 - LEVEL / comparisons / 2, POWER], n - 1)
    return float(quantiles.sum() * standard_error)


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("n", [15, 100, 2_000])
def test_detectable_is_its_closed_form(n: int, comparisons: int) -> None:
    """With the standard error of a mean, or the jackknife's of a ratio, which nears it in many examples (3 / n)."""
    first, second, tokens = skewed(n, n)
    differences = second - first
    of_mean = paired_difference(first, second, comparisons=comparisons, resamples=QUICK).detectable
    assert of_mean == pytest.approx(closed_form(float(stats.sem(differences)), n, comparisons))
    left_out = (differences.sum() - differences) / (tokens.sum() - tokens)
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    of_ratio = paired_difference(first, second, tokens, comparisons=comparisons, resamples=QUICK).detectable
    assert of_ratio == pytest.approx(closed_form(jackknife, n, comparisons), rel=3 / n)


def test_of_many_examples_it_is_the_normal_form() -> None:
    """(1.960 + 0.842) standard errors."""
    first, second, _ = skewed(5_000, 0)
    found = paired_difference(first, second, resamples=99).detectable
    assert found == pytest.approx((1.959964 + 0.841621) * stats.sem(second - first), rel=1e-3)


@pytest.mark.parametrize(
    ("n", "comparisons", "resamples", "possible"),
    [(5, 1, 999, False), (6, 1, 999, True), (6, 2, 999, False), (7, 2, 999, True), (100, 2, 39, False)],
)
def test_where_no_p_is_small_enough_nothing_is_detectable(
    n: int, comparisons: int, resamples: int, possible: bool
) -> None:
    """Five examples can't give a p below 2 / 2^5 = 0.0625, nor 39 resamples one below 1 / 40 = 0.05 / 2."""
    first, second, _ = skewed(n, 0)
    found = paired_difference(first, second, comparisons=comparisons, resamples=resamples)
    assert (found.detectable is not None) == possible


@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize("ties", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("n", [100, 200, 400])
def test_the_power_of_a_win_rate_is_at_least_the_promised(n: int, ties: float, comparisons: int) -> None:
    """Exact, no simulation: plant what is reported as detectable, and sum the chances of all results that p finds.

    The sample it is reported of has won by just that much, rounded to whole wins; hence 0.005 less is let pass.
    """
    planted = 0.0
    for _ in range(20):
        decided = round(n * (1 - ties))
        wins = round(decided / 2 + n * planted)
        sample = np.repeat([1.0, 0.5, 0.0], [wins, n - decided, decided - wins])
        reported = paired_difference(np.full(n, 0.5), sample, comparisons=comparisons, resamples=9).detectable
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
