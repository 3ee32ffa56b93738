"""What the statistics claim: level, power and coverage, by simulation.

Oracle: the binomial distribution. Of 1,000 simulations at most 67 may be false findings where 5 % are allowed, and at
least 770 must be findings where 80 % are promised: the one-sided 99 % bounds. A method that keeps its claim exactly
would break a bound at one seed in a hundred; seeds are fixed.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from neftcli.evaluation.statistics import (
    LEVEL,
    POWER,
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
    verdict,
)
from numpy.typing import NDArray
from scipy import stats

from tests.unit.evaluation.test_statistics import QUICK, closed_form, skewed

Floats = NDArray[np.float64]
SIMULATIONS = 1_000
FALSE_FINDINGS = int(stats.binom.ppf(0.99, SIMULATIONS, LEVEL))
TRUE_FINDINGS = int(stats.binom.ppf(0.01, SIMULATIONS, POWER))


@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_true_difference_one_is_seldom_claimed(weighted: bool) -> None:
    """The same model, resampled: "better" or "worse" is said in at most 67 of 1,000 comparisons (5 %, 99 % bound)."""
    claims = 0
    for seed in range(SIMULATIONS):
        first, second, tokens = skewed(100, seed)
        found = paired_difference(first, second, tokens if weighted else None, seed=seed, resamples=QUICK)
        claims += verdict(found.p, found.value, "lower") in {"better", "worse"}
    assert 0 < claims <= FALSE_FINDINGS


def test_families_of_comparisons_are_as_seldom_wrong_in_any() -> None:
    """Three models against one, Holm-corrected: any claim in at most 67 of 1,000 families; uncorrected, far more."""
    corrected = uncorrected = 0
    for seed in range(SIMULATIONS):
        hard, noise = np.random.default_rng(seed), np.random.default_rng((seed, 1))
        base = hard.gamma(2, 1, 40)
        first, *others = (base + noise.lognormal(0, 1, 40) for _ in range(4))
        found = [paired_difference(first, other, comparisons=3, seed=seed, resamples=QUICK) for other in others]
        p_values = [each.p for each in found if each.p is not None]
        uncorrected += min(p_values) < LEVEL
        words = [verdict(p, each.value, "lower") for p, each in zip(holm(p_values), found, strict=True)]
        corrected += bool({"better", "worse"} & set(words))
    assert corrected <= FALSE_FINDINGS < uncorrected


def mean_planted(n: int) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Differences of two exponentials, sd sqrt(2), shifted."""
    shift = closed_form(math.sqrt(2 / n), n)

    def draw(seed: int) -> tuple[Floats, Floats, Floats | None]:
        first, second = np.random.default_rng(seed).exponential(1, (2, n))
        return first, second + shift, None

    return draw


def ratio_planted(n: int) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Nats and tokens 5 to 199: w (x + shift), x of sd 0.3 sqrt(2); se = 0.3 sqrt(2 E w^2 / n) / E w."""
    possible = np.arange(5.0, 200.0)
    shift = closed_form(0.3 * math.sqrt(2 * float((possible**2).mean()) / n) / float(possible.mean()), n)
    return lambda seed: skewed(n, seed, shift)


def wins_planted(n: int, ties: float) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Scores 0, 0.5, 1; the spread is that of the shifted scores, hence the fixed point; one step, 1 / n, is added."""
    shift = 0.0
    for _ in range(50):
        shift = closed_form(math.sqrt(((1 - ties) / 4 - shift**2) / n), n) + 1 / n
    chances = [(1 - ties) / 2 - shift, ties, (1 - ties) / 2 + shift]

    def draw(seed: int) -> tuple[Floats, Floats, Floats | None]:
        return np.full(n, 0.5), np.random.default_rng(seed).choice([0.0, 0.5, 1.0], n, p=chances), None

    return draw


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(mean_planted(100), id="mean"),
        pytest.param(ratio_planted(200), id="ratio"),
        pytest.param(wins_planted(200, 0.0), id="wins"),
        pytest.param(wins_planted(100, 0.3), id="wins-and-ties"),
    ],
)
def test_a_planted_difference_is_found_with_the_stated_power(
    draw: Callable[[int], tuple[Floats, Floats, Floats | None]],
) -> None:
    """A true difference of just what is detectable: "higher" in at least 770 of 1,000 (80 %, 99 % bound)."""
    words = []
    for seed in range(SIMULATIONS):
        found = paired_difference(*draw(seed), seed=seed, resamples=QUICK)
        words.append(verdict(found.p, found.value, "none"))
    assert TRUE_FINDINGS <= words.count("higher") <= 0.86 * SIMULATIONS
    assert words.count("lower") == 0


@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_covers_the_truth(paired: bool) -> None:
    """A skewed figure and a difference, of 100 examples, are covered in 899 to 965 of 1,000.

    BCa is right only in large samples. In 10,000 simulations 0.94 were covered here (exponential values), and 0.924
    of the differences, whose spread grows with the tokens. The bounds are the 99 % ones of 0.92 and of 0.95.
    """
    covered = 0
    for seed in range(SIMULATIONS):
        if paired:
            found: Estimate | Difference = paired_difference(*skewed(100, seed), seed=seed, resamples=QUICK)
        else:
            found = estimate(np.random.default_rng(seed).exponential(1, 100) - 1, seed=seed, resamples=QUICK)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert stats.binom.ppf([0.01, 0.99], SIMULATIONS, [0.92, 0.95]).tolist() == [899, 965]
    assert 899 <= covered <= 965


def test_the_bounds_are_those_stated() -> None:
    assert (FALSE_FINDINGS, TRUE_FINDINGS) == (67, 770)
