"""Draws and differences for tests of the statistics, with known effects and variances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from neftcli.statistics.crossed import ArmDifference, VarianceComponents, compare_arms
from neftcli.statistics.paired import LEVEL, POWER

Floats = NDArray[np.float64]
QUICK = 199
"""Resamples; 0.05 (199 + 1) is whole, so the level is kept exactly."""


def draw_arms(
    seeds: int,
    n: int,
    generator: np.random.Generator | int,
    *,
    count: int = 2,
    seed: float = 0.5,
    prompt: float = 1.0,
    residual: float = 1.0,
) -> Floats:
    """Draw values (arms, seeds, prompts): large parts that all arms share, and parts of each arm with the given sd."""
    draw = np.random.default_rng(generator).normal
    shared = 3 * draw(size=(seeds, 1)) + 3 * draw(size=(1, n)) + draw(size=(seeds, n))
    own = seed * draw(size=(count, seeds, 1)) + prompt * draw(size=(count, 1, n))
    values: Floats = 10 + shared + own + residual * draw(size=(count, seeds, n))
    return values


def compare(baseline: Floats, arm: Floats, weights: Floats | None = None, **options: Any) -> ArmDifference:
    """Compare one arm with the baseline."""
    return compare_arms(baseline, [arm], weights, resamples=QUICK, **options)[0]


def tokens_of(n: int) -> Floats:
    """Draw the tokens of n prompts."""
    return np.random.default_rng(n).integers(5, 200, n).astype(float)


def draw_skewed(n: int, seed: int, slope: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """Draw nats of two models and tokens per prompt; losses are skewed, and harder examples are longer."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 200, n).astype(float)
    hard = generator.gamma(2, 1, n) + tokens / 100
    first, second = (tokens * (hard + generator.exponential(0.3, n)) for _ in range(2))
    return first, second + slope * tokens, tokens


def detectable_in_closed_form(standard_error: float, n: int, comparisons: int = 1) -> float:
    """The detectable effect at a known standard error."""
    quantiles = stats.t.ppf([1 - LEVEL / comparisons / 2, POWER], n - 1)
    return float(quantiles.sum() * standard_error)


def difference(
    components: VarianceComponents | None, seeds: int = 3, n: int = 100, comparisons: int = 1
) -> ArmDifference:
    """Return a difference with known components."""
    return ArmDifference(0.1, None, None, seeds, n, None, comparisons, components, None, None, False, None)
