"""The length-controlled win rate.

Oracles: a grid search for the maximum of the penalised likelihood, a delete-one-prompt jackknife, planted effects, and
simulated rates of errors.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, stdtrit

from neftcli.statistics.paired import PairedDifference
from neftcli.statistics.win_rates import estimate_win_rate, length_controlled_scores


def judged(
    generator: np.random.Generator, n: int, theta: float = 0.0, beta: float = 1.2
) -> tuple[list[float], list[float]]:
    """Scores of a judge who likes length, a fifth of them ties, of answers that are longer on average."""
    lengths = generator.normal(0.5, 1.0, n)
    won = (generator.random(n) < expit(theta + beta * np.tanh(lengths))).astype(float)
    return list(np.where(generator.random(n) < 0.2, 0.5, won)), list(100 * lengths)


def controlled(scores: list[float], lengths: list[float], **options: object) -> PairedDifference:
    found = estimate_win_rate(scores, lengths, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_win_rate_value_maximises_the_penalised_likelihood() -> None:
    scores, lengths = judged(np.random.default_rng(0), 30)
    x = np.tanh(np.array(lengths) / np.std(lengths))
    thetas, betas = np.meshgrid(np.linspace(-2, 2, 801), np.linspace(-1, 4, 1001), indexing="ij")
    likelihood = 0.5 * (np.log(expit(thetas) * expit(-thetas)) + np.log(expit(betas) * expit(-betas)))
    for score, length in zip(scores, x, strict=True):
        logit = thetas + betas * length
        likelihood += score * np.log(expit(logit)) + (1 - score) * np.log(expit(-logit))
    best = thetas.flat[likelihood.argmax()]
    assert controlled(scores, lengths).value == pytest.approx(expit(best) - 0.5, abs=0.002)


def test_win_rate_interval_and_p_agree() -> None:
    generator = np.random.default_rng(1)
    for n in (6, 7, 20, 60):
        for theta in (0.0, 0.8):
            for _ in range(20):
                found = controlled(*judged(generator, n, theta))
                assert found.low is not None
                assert found.high is not None
                assert found.p is not None
                assert -0.5 < found.low < found.value < found.high < 0.5
                assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
                assert found.smallest_p <= found.p + 1e-12 or found.p > 0.05


def test_win_rate_standard_error_is_that_of_a_jackknife_over_prompts() -> None:
    scores, lengths = judged(np.random.default_rng(2), 120)
    prompts = [place // 3 for place in range(120)]
    found = controlled(scores, lengths, prompts=prompts)
    assert found.low is not None
    assert found.n == 40

    def theta(value: float) -> float:
        return math.log((0.5 + value) / (0.5 - value))

    left = []
    for left_out in range(40):
        kept = [pair for pair in range(120) if prompts[pair] != left_out]
        left.append(
            theta(
                controlled(
                    [scores[pair] for pair in kept],
                    [lengths[pair] for pair in kept],
                    prompts=[prompts[pair] for pair in kept],
                ).value
            )
        )
    jackknife = math.sqrt(39 / 40 * ((np.array(left) - np.mean(left)) ** 2).sum())
    error = (theta(found.value) - theta(found.low)) / stdtrit(38, 0.975)
    assert error == pytest.approx(jackknife, rel=0.1)


def test_win_rate_takes_length_away() -> None:
    """The longer answer always wins, and this model's is mostly longer: nothing is left of a win rate of 75 %."""
    lengths = [float(place % 20 - 5) + 0.5 for place in range(200)]
    scores = [float(length > 0) for length in lengths]
    assert np.mean(scores) == 0.75
    found = controlled(scores, lengths)
    assert abs(found.value) < 0.05
    assert found.p is not None
    assert found.p > 0.3


@pytest.mark.parametrize("sign", [1, -1])
def test_win_rate_all_won_or_lost(sign: int) -> None:
    """Separation: near 100 %, with the exact binomial limit (0.025^(1/n)) as lower end, but for 1 point."""
    generator = np.random.default_rng(3)
    lengths = list(generator.normal(0, 50, 60))
    found = controlled([float(sign > 0)] * 60, lengths)
    ends = sorted(0.5 + sign * (end or 0) for end in (found.low, found.high))
    assert 0.985 < 0.5 + sign * found.value < 1
    assert ends[0] == pytest.approx(0.025 ** (1 / 60), abs=0.01)
    assert found.p is not None
    assert found.p < 1e-4


def test_win_rate_swapped_models_mirror() -> None:
    scores, lengths = judged(np.random.default_rng(4), 40, 0.5)
    ours = controlled(scores, lengths)
    theirs = controlled([1 - score for score in scores], [-length for length in lengths])
    assert (theirs.value, theirs.low) == pytest.approx((-ours.value, -(ours.high or 0)), abs=1e-6)


def test_win_rate_of_equal_lengths() -> None:
    """A tie is added, so that the rate is (wins + 0.5) / (n + 1)."""
    found = controlled([1.0] * 24 + [0.0] * 15, [0.0] * 39)
    assert found.value == pytest.approx(24.5 / 40 - 0.5, abs=1e-6)


@pytest.mark.parametrize("wins", [0, 1, 12, 24, 29, 30])
def test_win_rate_without_lengths(wins: int) -> None:
    """The mean score, inside an interval that excludes 0 exactly if p < 0.05 and stays between 0 and 100 %."""
    found = estimate_win_rate([1.0] * wins + [0.0] * (30 - wins))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert found.value == pytest.approx(wins / 30 - 0.5)
    assert -0.5 <= found.low <= found.value <= found.high <= 0.5
    assert (found.low > 0 or found.high < 0) == (found.p < 0.05)


def test_win_rate_all_ties() -> None:
    found = controlled([0.5] * 10, [float(place) for place in range(10)])
    assert (found.value, found.p, found.smallest_p, found.detectable) == (0.0, 1.0, 1.0, None)


@pytest.mark.parametrize(
    ("scores", "lengths", "prompts"),
    [
        ([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], None),
        ([1.0] * 12, [float(place) for place in range(12)], [place % 5 for place in range(12)]),
        ([1.0, 0.0] * 10, [30.0] * 20, None),
        ([], [], None),
    ],
)
def test_win_rate_is_none_with_few_prompts_or_one_length(
    scores: list[float], lengths: list[float], prompts: list[int] | None
) -> None:
    assert estimate_win_rate(scores, lengths, prompts=prompts) is None


@pytest.mark.parametrize(
    ("scores", "lengths"), [([1.0, 2.0], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, math.nan])]
)
def test_win_rate_rejects(scores: list[float], lengths: list[float]) -> None:
    with pytest.raises(ValueError, match="score"):
        estimate_win_rate(scores, lengths)


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60])
def test_win_rate_level_and_coverage(n: int) -> None:
    """300 judges who like length, of answers of equal quality; the Monte Carlo error is 1.3 points."""
    generator = np.random.default_rng(n)
    found = [controlled(*judged(generator, n)) for _ in range(300)]
    assert sum((one.p or 0) < 0.05 for one in found) / 300 < 0.08
    assert abs(np.mean([one.value for one in found])) < 0.02
    planted = [controlled(*judged(generator, n, 0.6)) for _ in range(300)]
    truth = 0.8 * expit(0.6) + 0.1 - 0.5
    assert sum((one.low or 0) <= truth <= (one.high or 0) for one in planted) / 300 > 0.92


def test_length_controlled_scores() -> None:
    """Their mean is the win rate at equal lengths, and their standard error is its own, up to the clusters' factor."""
    draw = np.random.default_rng(9)
    lengths = draw.normal(20, 40, 300)
    scores = (draw.random(300) < 1 / (1 + np.exp(-lengths / 60))).astype(float)
    values, rate = length_controlled_scores(scores, lengths), estimate_win_rate(scores, lengths)
    assert rate is not None
    assert values.mean() == pytest.approx(0.5 + rate.value, abs=1e-6)
    half = (rate.high or 0.0) - (rate.low or 0.0)
    assert 2 * 1.97 * values.std(ddof=1) / np.sqrt(300) == pytest.approx(half, rel=0.02)
    assert (length_controlled_scores(scores[:5], lengths[:5]) == scores[:5]).all()
    assert (length_controlled_scores(scores, np.full(300, 7.0)) == scores).all()
