"""Level, power and coverage of the comparison of two models, by simulation.

Oracle: the binomial distribution. Of 400 simulations at most 31 may be false findings if 5 % are allowed, and at least
301 must be findings if 80 % are promised: the one-sided 99 % bounds. A method that keeps its claim exactly would break
a bound at one seed in a hundred; seeds are fixed. `make calibrate` simulates more situations.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from neftcli.statistics import paired
from neftcli.statistics.multiple import holm_adjust, name_verdict
from neftcli.statistics.paired import LEVEL, POWER, bootstrap_estimate, paired_difference
from tests.unit.statistics.draws import QUICK, Floats, detectable_in_closed_form, draw_skewed

SIMULATIONS = 400
FALSE_FINDINGS = int(stats.binom.ppf(0.99, SIMULATIONS, LEVEL))
TRUE_FINDINGS = int(stats.binom.ppf(0.01, SIMULATIONS, POWER))


@pytest.fixture(autouse=True)
def few_resamples_for_the_true_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of the true level, which is not looked at here, would take most of the time."""
    monkeypatch.setattr(paired, "LEVEL_RESAMPLES", 20)


@pytest.mark.parametrize("weighted", [False, True])
def test_paired_difference_seldom_claims_what_is_not_so(weighted: bool) -> None:
    """The same model, resampled: "better" or "worse" is said in at most 31 of 400 comparisons (5 %, 99 % bound)."""
    claims = 0
    for seed in range(SIMULATIONS):
        first, second, tokens = draw_skewed(100, seed)
        found = paired_difference(first, second, tokens if weighted else None, seed=seed, resamples=QUICK)
        claims += name_verdict(found.p, found.value, "lower") in {"better", "worse"}
    assert 0 < claims <= FALSE_FINDINGS


def test_adjust_keeps_families_as_seldom_wrong_in_any() -> None:
    """Three models against one, corrected: any claim in at most 31 of 400 families; uncorrected, far more."""
    corrected = uncorrected = 0
    for seed in range(SIMULATIONS):
        hard, noise = np.random.default_rng(seed), np.random.default_rng((seed, 1))
        base = hard.gamma(2, 1, 40)
        first, *others = (base + noise.lognormal(0, 1, 40) for _ in range(4))
        found = [paired_difference(first, other, comparisons=3, seed=seed, resamples=QUICK) for other in others]
        p_values = [each.p for each in found if each.p is not None]
        uncorrected += min(p_values) < LEVEL
        adjusted = holm_adjust(p_values, [each.smallest_p for each in found])
        words = [name_verdict(p, each.value, "lower") for p, each in zip(adjusted, found, strict=True)]
        corrected += bool({"better", "worse"} & set(words))
    assert corrected <= FALSE_FINDINGS < uncorrected


def test_paired_difference_summed_by_prompt_keeps_its_level() -> None:
    """Five rows a prompt, correlated by 0.7: at most 31 of 400 are false; a test over rows would err in over 20 %."""
    by_prompt = by_row = 0
    prompts = np.repeat(np.arange(24), 5).tolist()
    for seed in range(SIMULATIONS):
        generator = np.random.default_rng(seed)
        values = math.sqrt(0.7) * generator.normal(size=24).repeat(5) + math.sqrt(0.3) * generator.normal(size=120)
        nothing = np.zeros(120)
        by_prompt += (paired_difference(nothing, values, prompts=prompts, seed=seed, resamples=QUICK).p or 0) < LEVEL
        by_row += (paired_difference(nothing, values, seed=seed, resamples=QUICK).p or 0) < LEVEL
    assert 0 < by_prompt <= FALSE_FINDINGS
    assert by_row > 0.2 * SIMULATIONS


def mean_planted(n: int) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Differences of two exponentials, sd sqrt(2), shifted."""
    shift = detectable_in_closed_form(math.sqrt(2 / n), n)

    def draw(seed: int) -> tuple[Floats, Floats, Floats | None]:
        first, second = np.random.default_rng(seed).exponential(1, (2, n))
        return first, second + shift, None

    return draw


def ratio_planted(n: int) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Nats and tokens 5 to 199: w (x + shift), x of sd 0.3 sqrt(2); se = 0.3 sqrt(2 E w^2 / n) / E w."""
    possible = np.arange(5.0, 200.0)
    shift = detectable_in_closed_form(0.3 * math.sqrt(2 * float((possible**2).mean()) / n) / float(possible.mean()), n)
    return lambda seed: draw_skewed(n, seed, shift)


def wins_planted(n: int, ties: float) -> Callable[[int], tuple[Floats, Floats, Floats | None]]:
    """Scores 0, 0.5, 1; the spread is that of the shifted scores, hence the fixed point; one step, 1 / n, is added."""
    shift = 0.0
    for _ in range(50):
        shift = detectable_in_closed_form(math.sqrt(((1 - ties) / 4 - shift**2) / n), n) + 1 / n
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
def test_paired_difference_finds_what_is_detectable_with_the_stated_power(
    draw: Callable[[int], tuple[Floats, Floats, Floats | None]],
) -> None:
    """A true difference of just what is detectable: "higher" in at least 301 of 400 (80 %, 99 % bound)."""
    words = []
    for seed in range(SIMULATIONS):
        found = paired_difference(*draw(seed), seed=seed, resamples=QUICK)
        words.append(name_verdict(found.p, found.value, "none"))
    assert TRUE_FINDINGS <= words.count("higher") <= 0.87 * SIMULATIONS
    assert words.count("lower") == 0


@pytest.mark.parametrize(("n", "weighted"), [(25, False), (100, True)])
def test_paired_difference_interval_covers_the_truth(n: int, weighted: bool) -> None:
    """Skewed losses: in at least 369 of 400 (95 %, 99 % bound)."""
    covered = 0
    for seed in range(SIMULATIONS):
        first, second, tokens = draw_skewed(n, seed, 0.1)
        if not weighted:
            first, second = first / tokens, second / tokens
        found = paired_difference(first, second, tokens if weighted else None, seed=seed, resamples=QUICK)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.1 <= found.high
    assert SIMULATIONS - FALSE_FINDINGS <= covered < SIMULATIONS


def test_estimate_interval_covers_the_truth() -> None:
    """A skewed figure of 100 prompts is covered in 355 to 389 of 400: the 99 % bounds of 0.92 and of 0.95.

    BCa is right only in large samples: 0.94 were covered in 10,000 simulations of exponential values.
    """
    covered = 0
    for seed in range(SIMULATIONS):
        found = bootstrap_estimate(np.random.default_rng(seed).exponential(1, 100) - 1, seed=seed, resamples=QUICK)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert stats.binom.ppf([0.01, 0.99], SIMULATIONS, [0.92, 0.95]).tolist() == [355, 389]
    assert 355 <= covered <= 389


def test_the_bounds_are_those_stated() -> None:
    assert (FALSE_FINDINGS, TRUE_FINDINGS) == (31, 301)
