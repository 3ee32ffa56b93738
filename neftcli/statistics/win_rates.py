"""Win rates: as judged, and as a judge would give them if the two answers of a pair were equally long.

Judges like length, so the win rate of a model that answers at more length is too high: without a true difference, 200
pairs of a judge like that of Dubois et al. were called significant in half of all simulations. A fractional logistic
regression (Papke and Wooldridge 1996, "Econometric Methods for Fractional Response Variables"), as in
length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475) but without its terms for models and instructions,
which need many models on the same instructions:

    logit E[score] = theta + beta x,    x = tanh(length difference / its standard deviation)

score is 1, 0.5 or 0, and sigmoid(theta) the win rate at equal lengths. What it can't see: whether an answer was liked
because it says more (then length is part of the quality, and is taken away), and a liking of length that depends on the
kind of prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, POWER, Array, PairedDifference

PARAMETERS = 2
EVEN = np.eye(PARAMETERS)
"""Rows of the design that are added, each a tie: one for theta and one for beta (log-F(1, 1) priors; Greenland and
Mansournia 2015, "Penalization, bias reduction, and default priors in logistic and related categorical and survival
regressions"). They keep the estimates finite if one model wins every pair, or the longer answer does."""


def estimate_win_rate(
    scores: npt.ArrayLike,
    lengths: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    comparisons: int = 1,
) -> PairedDifference | None:
    """Estimate the win rate, or with lengths the win rate at equal lengths, less one half.

    The sign-flip interval of other differences is too narrow near 0 and 100 %: at a true rate of 97 % it covers 49 %
    with 20 pairs without ties, this one 88 % (simulated). Without lengths the value is the mean score, and the interval
    reaches at least to it.

    The interval and p come from one test, Student's of theta with `prompts - 2` degrees of freedom and a standard error
    that is robust and clustered by prompt, so the interval excludes 0 exactly if p < 0.05.

    Args:
        scores: (pairs,), 1 won, 0.5 tie, 0 lost.
        lengths: (pairs,), length of this model's answer less the other's; None for the win rate as it is.
        prompts: (pairs,), as in `sum_by_prompt`.
        comparisons: As in `paired_difference`.

    Returns:
        The difference from one half, without `true_level`. None with fewer than `MIN_PROMPTS` prompts, or if every
        answer is longer, or shorter, by the same length, which can't be told from a difference in quality.

    Raises:
        ValueError: The shapes differ, a number isn't finite, or a score is not from 0 to 1.
    """
    won = np.asarray(scores, dtype=np.float64)
    longer = np.zeros_like(won) if lengths is None else np.asarray(lengths, dtype=np.float64)
    if won.ndim != 1 or won.shape != longer.shape or (prompts is not None and len(prompts) != won.size):
        raise ValueError(f"one score, length and prompt for each pair are needed, not {won.shape} and {longer.shape}")
    if not (np.isfinite(longer).all() and ((won >= 0) & (won <= 1)).all()):
        raise ValueError("lengths must be finite and scores from 0 to 1")
    if comparisons < 1:
        raise ValueError(f"comparisons must be 1 or more, not {comparisons}")
    _, groups = np.unique(range(won.size) if prompts is None else _numbered(prompts), return_inverse=True)
    n = int(groups.max(initial=-1)) + 1
    if n < MIN_PROMPTS:
        return None
    spread = float(longer.std())
    if spread == 0 and longer.any():
        return None
    design = np.stack([np.ones_like(longer), np.tanh(longer / spread) if spread else longer], axis=1)
    from scipy.special import expit, stdtr, stdtrit

    freedom = n - PARAMETERS

    def p_value(theta: float, error: float) -> float:
        return 2 * float(stdtr(freedom, -abs(theta) / error)) if error else 1.0  # no error: all pairs are ties

    theta, error, _ = _fit(won, design, groups)
    margin = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    smallest = p_value(*_fit(np.where(won == 0.5, 0.5, 1.0), design, groups)[:2])
    detectable = None
    if smallest < LEVEL / comparisons:
        quantiles = float(stdtrit(freedom, 1 - LEVEL / comparisons / 2) + stdtrit(freedom, POWER))
        detectable = float(expit(quantiles * error)) - 0.5
    value, low, high = (float(expit(logit)) - 0.5 for logit in (theta, theta - margin, theta + margin))
    if lengths is None:
        value = math.fsum(won) / won.size - 0.5
        low, high = min(low, value), max(high, value)
    return PairedDifference(value, low, high, p_value(theta, error), smallest, n, detectable, None)


def length_controlled_scores(scores: npt.ArrayLike, lengths: npt.ArrayLike) -> Array:
    """Compute a score for each pair whose mean is the win rate at equal lengths.

        score[i] = rate + rate (1 - rate) influence[i],    rate = sigmoid(theta)

    influence[i] is that of pair i on theta, so the scores vary as the estimated rate does and can be compared over
    seeds and prompts like any other values.

    Args:
        scores: (pairs,), 1 won, 0.5 tie, 0 lost.
        lengths: (pairs,), length of this model's answer less the other's.

    Returns:
        (pairs,). The scores themselves with fewer than `MIN_PROMPTS` pairs, or if all lengths differ by the same.
    """
    won, longer = (np.asarray(column, dtype=np.float64) for column in (scores, lengths))
    spread = float(longer.std())
    if won.size < MIN_PROMPTS or spread == 0:
        return won
    from scipy.special import expit

    design = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    theta, _, influence = _fit(won, design, np.arange(won.size))
    rate = float(expit(theta))
    adjusted: Array = rate + rate * (1 - rate) * (influence - influence.mean())
    return adjusted


def _numbered(prompts: Sequence[object]) -> list[int]:
    """A number for each prompt, equal for equal ones."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]


def _fit(scores: Array, design: Array, groups: npt.NDArray[np.intp]) -> tuple[float, float, Array]:
    """Theta, its standard error and the influence of each pair on it.

    The error is a sandwich of the sums of scores of each prompt (Liang and Zeger 1986).
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    rows = np.concatenate([design, EVEN])
    targets = np.concatenate([scores, np.full(len(EVEN), 0.5)])

    def loss(parameters: Array) -> float:
        logits = rows @ parameters
        return float((np.logaddexp(0.0, logits) - targets * logits).sum())

    def gradient(parameters: Array) -> Array:
        slope: Array = rows.T @ (expit(rows @ parameters) - targets)
        return slope

    def hessian(parameters: Array) -> Array:
        share = expit(rows @ parameters)
        curvature: Array = (rows * (share * (1 - share))[:, None]).T @ rows
        return curvature

    parameters = minimize(
        loss, np.zeros(PARAMETERS), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    ).x
    clusters = np.concatenate([groups, groups.max() + 1 + np.arange(len(EVEN))])
    sums = np.zeros((clusters.max() + 1, PARAMETERS))
    np.add.at(sums, clusters, rows * (targets - expit(rows @ parameters))[:, None])
    n = len(sums) - len(EVEN)
    inverse = np.linalg.inv(hessian(parameters))
    covariance = inverse @ (sums.T @ sums) @ inverse * (n / (n - PARAMETERS))
    residuals = targets - expit(rows @ parameters)
    influence: Array = len(scores) * ((rows * residuals[:, None]) @ inverse)[: len(scores), 0]
    return float(parameters[0]), math.sqrt(float(covariance[0, 0])), influence
