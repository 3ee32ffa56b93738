"""Win rates: as judged, and controlled for the lengths of the two answers.

The length-controlled win rate is a fractional logistic regression (Papke and Wooldridge 1996), as in AlpacaEval (Dubois
et al. 2024, arXiv 2404.04475) without terms for models and instructions:

    logit E[score] = theta + beta x,    x = tanh(length difference / its standard deviation)

score is 1, 0.5 or 0, and sigmoid(theta) the win rate at equal lengths. docs/statistics.md, section "Win rates".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, POWER, Array, PairedDifference, number_prompts

PARAMETERS = 2
PRIOR_ROWS = np.eye(PARAMETERS)
"""Rows added to the design, each a tie: log-F(1, 1) priors for theta and beta (Greenland and Mansournia 2015)."""


def estimate_win_rate(
    scores: npt.ArrayLike,
    lengths: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    comparisons: int = 1,
) -> PairedDifference | None:
    """Estimate a win rate minus one half; with lengths, the win rate at equal lengths.

    Interval and p come from one Student's test of theta with `prompts - 2` degrees of freedom and a robust standard
    error clustered by prompt, so the interval excludes 0 exactly if p < 0.05. Without lengths the value is the mean
    score, and the interval reaches at least to it.

    Args:
        scores: (pairs,), 1 won, 0.5 tie, 0 lost.
        lengths: (pairs,), length of this model's answer minus the other's; None for the plain win rate.
        prompts: (pairs,), as in `sum_by_prompt`.
        comparisons: As in `paired_difference`.

    Returns:
        The difference from one half, without `true_level`. None with fewer than `MIN_PROMPTS` prompts, or if all length
        differences are equal and not 0, so that length can't be separated from quality.

    Raises:
        ValueError: The shapes differ, a number isn't finite, or a score is not between 0 and 1.
    """
    won = np.asarray(scores, dtype=np.float64)
    longer = np.zeros_like(won) if lengths is None else np.asarray(lengths, dtype=np.float64)
    if won.ndim != 1 or won.shape != longer.shape or (prompts is not None and len(prompts) != won.size):
        raise ValueError(f"one score, length and prompt for each pair are needed, not {won.shape} and {longer.shape}")
    if not (np.isfinite(longer).all() and ((won >= 0) & (won <= 1)).all()):
        raise ValueError("lengths must be finite and scores from 0 to 1")
    if comparisons < 1:
        raise ValueError(f"comparisons must be 1 or more, not {comparisons}")
    groups = np.arange(won.size) if prompts is None else np.array(number_prompts(prompts), dtype=np.intp)
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

    influence[i] is the influence of pair i on theta, so the scores vary as the estimated rate does and can be compared
    over seeds and prompts like any other values.

    Args:
        scores: (pairs,), 1 won, 0.5 tie, 0 lost.
        lengths: (pairs,), length of this model's answer minus the other's.

    Returns:
        (pairs,); the scores themselves with fewer than `MIN_PROMPTS` pairs, or if all length differences are equal.
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


def _fit(scores: Array, design: Array, groups: npt.NDArray[np.intp]) -> tuple[float, float, Array]:
    """Fit theta; return it with its standard error and the influence of each pair on it.

    The error is a sandwich estimate over the sums of scores of each prompt (Liang and Zeger 1986).
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    rows = np.concatenate([design, PRIOR_ROWS])
    targets = np.concatenate([scores, np.full(len(PRIOR_ROWS), 0.5)])

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
    clusters = np.concatenate([groups, groups.max() + 1 + np.arange(len(PRIOR_ROWS))])
    sums = np.zeros((clusters.max() + 1, PARAMETERS))
    np.add.at(sums, clusters, rows * (targets - expit(rows @ parameters))[:, None])
    n = len(sums) - len(PRIOR_ROWS)
    inverse = np.linalg.inv(hessian(parameters))
    covariance = inverse @ (sums.T @ sums) @ inverse * (n / (n - PARAMETERS))
    residuals = targets - expit(rows @ parameters)
    influence: Array = len(scores) * ((rows * residuals[:, None]) @ inverse)[: len(scores), 0]
    return float(parameters[0]), math.sqrt(float(covariance[0, 0])), influence
