"""What the statistics of a sweep claim: level, power and coverage, by simulation.

Oracle: the binomial distribution. Of 500 simulations at most 37 may be false findings where 5 % are allowed, and at
least 379 must be findings where 80 % are promised: the one-sided 99 % bounds. Seeds are fixed. Values are sums of
parts that all arms of a sweep share (seeds, examples, large) and parts of each arm (arm x seed, arm x example, and the
rest), so that what a claim is about is known: the arm's mean over the seeds drawn, or over all seeds.
"""

import itertools
import math

import numpy as np
import pytest
from neftcli.evaluation.statistics import LEVEL, POWER, holm, paired_difference, verdict
from neftcli.sweep.statistics import ArmDifference, Components, arm_difference, arm_estimate, margin, needed
from scipy import stats

from tests.unit.sweep.test_statistics import QUICK, Floats, arms, tokens_of

SIMULATIONS = 500
FALSE_FINDINGS = int(stats.binom.ppf(0.99, SIMULATIONS, LEVEL))
TRUE_FINDINGS = int(stats.binom.ppf(0.01, SIMULATIONS, POWER))
FEWER = 250
FEWER_FALSE_FINDINGS = int(stats.binom.ppf(0.99, FEWER, LEVEL))
FEWER_TRUE_FINDINGS = int(stats.binom.ppf(0.01, FEWER, POWER))
COVERED = int(stats.binom.ppf(0.01, FEWER, 1 - LEVEL))
ROWS = 40


def claims(found: list[ArmDifference], corrected: bool = True) -> bool:
    """Whether any arm is called better or worse than the baseline."""
    p_values = [each.p or 0.0 for each in found]
    adjusted = holm(p_values) if corrected else p_values
    words = {verdict(p, each.value, "lower") for p, each in zip(adjusted, found, strict=True)}
    return bool({"better", "worse"} & words)


def sweep(values: Floats, weights: Floats | None = None, number: int = 0) -> list[ArmDifference]:
    """All arms against the first, corrected together."""
    baseline, *others = values
    return [
        arm_difference(baseline, arm, weights, comparisons=len(others), seed=number, resamples=QUICK) for arm in others
    ]


def test_the_bounds_are_those_stated() -> None:
    assert (FALSE_FINDINGS, TRUE_FINDINGS) == (37, 379)
    assert (FEWER_FALSE_FINDINGS, FEWER_TRUE_FINDINGS, COVERED) == (21, 185, 229)


# Level


@pytest.mark.parametrize("weighted", [False, True])
def test_three_seeds_seldom_claim_what_is_not_so_of_them(weighted: bool) -> None:
    """Three arms, Holm-corrected, alike for these seeds: any claim in at most 37 of 500 sweeps; uncorrected, more."""
    corrected = uncorrected = 0
    for number in range(SIMULATIONS):
        weights = tokens_of(ROWS) if weighted else None
        values = arms(3, ROWS, number, count=4, seed=0.0) * (1.0 if weights is None else weights)
        found = sweep(values, weights, number)
        assert {each.scope for each in found} == {"examples"}
        corrected += claims(found)
        uncorrected += claims(found, corrected=False)
    assert 0 < corrected <= FALSE_FINDINGS < uncorrected


def test_three_seeds_say_nothing_about_other_seeds() -> None:
    """Why the scope is said: arms alike over all seeds, but not in each, are "better" or "worse" in nine sweeps of ten.

    The claims are true of the three seeds at hand; as claims over seeds they would be wrong; the interval,
    which is over seeds, holds the truth, 0, in at least 463 of the 500 first arms (95 %, 99 % bound).
    """
    claimed = covered = 0
    for number in range(SIMULATIONS):
        found = sweep(arms(3, ROWS, number, count=4, seed=1.0, example=0.3), None, number)
        claimed += claims(found)
        covered += (found[0].low or 0) <= 0 <= (found[0].high or 0)
    assert claimed > 0.9 * SIMULATIONS
    assert covered >= stats.binom.ppf(0.01, SIMULATIONS, 1 - LEVEL)


MIXES = {
    "seeds": {"seed": 1.0, "example": 0.1, "residual": 0.3},
    "examples": {"seed": 0.0, "example": 1.0, "residual": 0.5},
    "rest": {"seed": 0.0, "example": 0.0, "residual": 1.0},
}


def balanced(seeds: int) -> dict[str, float]:
    """Seeds and examples that add the same variance to the mean: the worst for tests that each see one of them."""
    return {"seed": math.sqrt(seeds), "example": math.sqrt(ROWS), "residual": 1.0}


@pytest.mark.parametrize(("seeds", "count"), [(6, 2), (7, 4)])
@pytest.mark.parametrize("mix", [*MIXES, "balanced"])
def test_claims_over_seeds_and_examples_are_seldom_wrong(seeds: int, count: int, mix: str) -> None:
    """Arms alike over all seeds and examples, one of them or three with Holm: at most 21 of 250 (5 %, 99 % bound)."""
    parts = MIXES.get(mix) or balanced(seeds)
    claimed = 0
    for number in range(FEWER):
        found = sweep(arms(seeds, ROWS, number, count=count, **parts), None, number)
        assert {each.scope for each in found} == {"seeds and examples"}
        claimed += claims(found)
    assert claimed <= FEWER_FALSE_FINDINGS


def test_a_test_over_seeds_and_one_over_examples_are_not_enough() -> None:
    """Why p also counts both parts at once: with ten seeds both reject in 11 % of sweeps, all three in at most 5 %."""
    both = all_three = 0
    for number in range(SIMULATIONS):
        baseline, arm = arms(10, ROWS, number, **balanced(10))
        over_seeds = paired_difference(baseline.mean(1), arm.mean(1), resamples=1_024).p or 0.0
        over_examples = paired_difference(baseline.mean(0), arm.mean(0), resamples=QUICK).p or 0.0
        both += max(over_seeds, over_examples) < LEVEL
        all_three += (arm_difference(baseline, arm, resamples=QUICK).p or 0.0) < LEVEL
    assert all_three <= FALSE_FINDINGS < 0.08 * SIMULATIONS < both


@pytest.mark.parametrize("tail", [0.025, 0.004])
@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_margin_keeps_its_chance_whatever_the_parts(seeds: int, tail: float) -> None:
    """Of 2,000 analyses of variance, drawn from their chi-squared distributions, for each of eight mixes of parts.

    The chance is 2 tail, both sides taken together; the bound is the 99.9 % one, as there are 48 cases.
    """
    generator = np.random.default_rng(seeds)
    for seed, example, residual in itertools.product((0.0, 0.3, 1.0, 4.0), (0.0, 1.0), (0.1,)):
        # Variances of the mean that seeds, examples and the rest add.
        means = generator.normal(0, math.sqrt(seed + example + residual), 2_000)
        expected = (seed + residual, example + residual, residual)
        freedoms = (seeds - 1, ROWS - 1, (seeds - 1) * (ROWS - 1))
        squares = np.stack(
            [
                mean * generator.chisquare(freedom, 2_000) / freedom
                for mean, freedom in zip(expected, freedoms, strict=True)
            ]
        )
        above = 0
        for mean, (of_seeds, of_examples, rest) in zip(means, squares.T, strict=True):
            parts = Components(
                seeds * max(0.0, of_seeds - rest), ROWS * max(0.0, of_examples - rest), seeds * ROWS * rest
            )
            above += abs(mean) > margin(parts, seeds, ROWS, tail)
        assert above <= stats.binom.ppf(0.999, 2_000, 2 * tail)


# Coverage


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize("mix", [*MIXES, "balanced"])
def test_the_intervals_cover_the_truth(seeds: int, mix: str) -> None:
    """An arm's figure, and the difference of arms alike: each in at least 229 of 250 (95 %, 99 % bound)."""
    differences = figures = 0
    for number in range(FEWER):
        baseline, arm = arms(seeds, ROWS, number, **(MIXES.get(mix) or balanced(seeds)))
        found = arm_difference(baseline, arm, seed=number, resamples=QUICK)
        differences += (found.low or 0) <= 0 <= (found.high or 0)
        own = arm_estimate(arm, seed=number, resamples=QUICK)
        figures += (own.low or 0) <= 10 <= (own.high or 0)
    assert differences >= COVERED
    assert figures >= COVERED


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.6), (3, 0.8)])
def test_resampling_seeds_would_not_cover_it(seeds: int, most: float) -> None:
    """Why the seeds' part is Student's: two or three seeds drawn from themselves, and examples, cover far less."""
    covered = 0
    generator = np.random.default_rng(seeds)
    for number in range(FEWER):
        baseline, arm = arms(seeds, ROWS, number, **MIXES["seeds"])
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), 200) / seeds
        of_rows = generator.multinomial(ROWS, np.full(ROWS, 1 / ROWS), 200) / ROWS
        low, high = np.quantile(((of_seeds @ (arm - baseline)) * of_rows).sum(1), [LEVEL / 2, 1 - LEVEL / 2])
        covered += low <= 0 <= high
    assert covered < most * FEWER


# Power


@pytest.mark.parametrize(("seeds", "comparisons"), [(6, 1), (8, 3), (12, 3)])
@pytest.mark.parametrize("mix", [*MIXES, "balanced"])
def test_what_is_detectable_over_seeds_is_found(seeds: int, comparisons: int, mix: str) -> None:
    """A true difference of the median size that sweeps call detectable: found in at least 185 of 250 (80 %, 99 %)."""
    parts = MIXES.get(mix) or balanced(seeds)

    def found(number: int, shift: float) -> ArmDifference:
        baseline, arm = arms(seeds, ROWS, number, **parts)
        return arm_difference(baseline, arm + shift, comparisons=comparisons, seed=number, resamples=999)

    shift = float(np.median([found(number, 0.0).detectable or math.inf for number in range(1_000, 1_060)]))
    hits = sum((found(number, shift).p or 0.0) < LEVEL / comparisons for number in range(FEWER))
    assert hits >= FEWER_TRUE_FINDINGS


def test_the_rows_that_are_needed_suffice() -> None:
    """Three seeds, 0.5 to find, rows counted from known parts: found in at least 379 of 500 and not in many more."""
    known = Components(0.0, 2.0, 2.0)
    rows = needed(ArmDifference(0.0, -1.0, 1.0, 1.0, "examples", 3, ROWS, None, 1, known), 0.5).rows
    assert rows is not None
    hits = 0
    for number in range(SIMULATIONS):
        baseline, arm = arms(3, rows, number, seed=0.0)
        hits += (arm_difference(baseline, arm + 0.5, seed=number, resamples=999).p or 0.0) < LEVEL
    assert TRUE_FINDINGS <= hits <= 0.87 * SIMULATIONS
