"""Two models compared example by example: intervals, p-values, Holm's correction, and what could have been found.

The same examples are answered by both models, so that the differences of the pairs are the data. No distribution is
assumed: intervals are bootstrapped over examples, and p comes from flipping the signs of the differences. What is found
holds for examples like these and for the two models at hand; it says nothing about other seeds of training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

RESAMPLES = 9_999
LEVEL = 0.05
POWER = 0.8

Array: TypeAlias = npt.NDArray[np.float64]
Better: TypeAlias = Literal["lower", "higher", "none"]

# Numbers that differ by less than this share of the largest value differ by rounding only.
ROUNDING = 1e-12
# Numbers drawn at once: bounds the memory (8 MB an array), whatever the count of examples.
BATCH = 2**20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of one model.

    Attributes:
        value: Mean, or sum of values over sum of weights.
        low: Lower end of the 95 % interval; None with fewer than two examples.
        high: Its upper end.
        n: Examples that count.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model's figure minus the first's, on the same examples.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval; None with fewer than two examples.
        high: Its upper end.
        p: Two-sided, not corrected for several comparisons; None with fewer than two examples.
        n: Examples that count.
        detectable: The smallest true difference that is found with probability `POWER` at `LEVEL` / comparisons; None
            where no difference could be found (too few examples differ) or their spread is unknown (all equal).
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    detectable: float | None


def estimate(
    values: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A figure of one model with its 95 % interval.

    Args:
        values: (examples,). Without weights their mean is estimated.
        weights: (examples,), e.g. tokens; then the ratio sum(values) / sum(weights) is estimated, e.g. nats a token.
            An example of weight 0 does not count.
        seed: Of the resampling; the same input gives the same bits.
        resamples: Bootstrap samples.

    Raises:
        ValueError: No example counts, a number isn't finite, or the shapes or weights don't fit.
    """
    (sums,), counts = _examples([values], weights)
    low, high = _interval(sums, counts, _rounding(sums), seed, resamples)
    value = math.fsum(sums) / (sums.size if counts is None else math.fsum(counts))  # whatever the examples' order
    return Estimate(value, low, high, sums.size)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    comparisons: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """The second model's figure minus the first's: (sum(second) - sum(first)) / sum(weights).

    A win rate (scores 0, 0.5, 1) is compared with 50 % by a `first` of halves. For such scores, and for right or wrong,
    the test is the exact sign test on the examples that differ (McNemar's).

    Args:
        first: (examples,), of the model compared with.
        second: (examples,), of the other, in the same order.
        weights: (examples,), as in `estimate`; the mean of the differences if None.
        comparisons: Of the family that is corrected together. `detectable` uses the strictest step of Holm's
            correction, so that its power holds whatever the other tests say.
        seed: Of the resampling; the same input gives the same bits.
        resamples: Bootstrap samples, and sign patterns where not all of them are tried.

    Raises:
        ValueError: As in `estimate`, or fewer than one comparison.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be 1 or more, not {comparisons}")
    (before, after), counts = _examples([first, second], weights)
    differences, rounding = after - before, _rounding(before, after)
    differences[np.abs(differences) <= rounding] = 0.0
    value = float(_ratio(differences, counts))
    if differences.size < 2:
        return Difference(value, None, None, None, differences.size, None)
    low, high = _interval(differences, counts, rounding, seed, resamples)
    p = _sign_flip_p(differences, rounding, seed, resamples)
    detectable = _detectable(differences, counts, rounding, LEVEL / comparisons, resamples)
    return Difference(value, low, high, p, differences.size, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that all together are wrong with probability `LEVEL` at most, in the order given.

    With p sorted upwards, the i-th (from 0) of m is max over j <= i of min(1, (m - j) p[j]) (Holm 1979, "A Simple
    Sequentially Rejective Multiple Test Procedure").
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(p_adjusted: float | None, difference: float, better: Better) -> str:
    """The difference in words, decided by the adjusted p.

    Args:
        p_adjusted: After Holm's correction; None where nothing could be tested.
        difference: Second minus first.
        better: The direction that is good; "none" where the figure only describes, e.g. the length of answers.

    Returns:
        "better", "worse", or without a good direction "higher", "lower"; "not distinguishable"; "" if p is None.
    """
    if p_adjusted is None:
        return ""
    if not p_adjusted < LEVEL or difference == 0:
        return "not distinguishable"
    direction = "higher" if difference > 0 else "lower"
    if better == "none":
        return direction
    return "better" if direction == better else "worse"


def _examples(columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None) -> tuple[list[Array], Array | None]:
    """The columns and the weights as arrays (examples,), without the examples of weight 0."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    counts = None if weights is None else np.asarray(weights, dtype=np.float64)
    for array in arrays if counts is None else [*arrays, counts]:
        if array.ndim != 1 or array.shape != arrays[0].shape:
            raise ValueError(f"one number for each example is needed, not shapes {array.shape} and {arrays[0].shape}")
        if not np.isfinite(array).all():
            raise ValueError("every number must be finite")
    if counts is not None:
        if (counts < 0).any() or any(array[counts == 0].any() for array in arrays):
            raise ValueError("weights must be 0 or more, and more than 0 where a value is not 0")
        arrays = [array[counts > 0] for array in arrays]
        counts = counts[counts > 0]
    if not arrays[0].size:
        raise ValueError("no examples to compare")
    return arrays, counts


def _ratio(values: Array, weights: Array | None = None, axis: int = -1) -> Array:
    """Sum of values over sum of weights, along an axis; the mean without weights."""
    ratio: Array = values.sum(axis) / (values.shape[axis] if weights is None else weights.sum(axis))
    return ratio


def _rounding(*columns: Array) -> float:
    """The difference up to which numbers computed from the columns are equal."""
    return ROUNDING * max(float(np.abs(column).max()) for column in columns)


def _residuals(values: Array, weights: Array | None, rounding: float) -> Array:
    """The values less the estimate: (examples,), d[i] - ratio w[i]; exactly 0 where only rounding is left.

    Divided by the mean weight they are the influence values of the ratio (Davison and Hinkley 1997, section 2.7).
    """
    residuals: Array = values - _ratio(values, weights) * (1.0 if weights is None else weights)
    residuals[np.abs(residuals) <= rounding] = 0.0
    return residuals


def _interval(
    values: Array, weights: Array | None, rounding: float, seed: int, resamples: int
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % bootstrap interval, bias-corrected and accelerated (BCa; Efron 1987), examples being resampled.

    None with fewer than two examples. The estimate itself, twice, where every resample gives it. Where BCa is undefined
    for another reason (all resamples on one side of the estimate), the percentile interval.

    Simulated coverage at n = 100: 0.94 for exponential values, 0.92 for differences whose spread grows with length.
    """
    if values.size < 2:
        return None, None
    if not _residuals(values, weights, rounding).any():
        value = float(_ratio(values, weights))
        return value, value
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (values,) if weights is None else (values, weights),
            _ratio,
            n_resamples=resamples,
            batch=max(1, BATCH // values.size),
            vectorized=True,
            paired=True,
            confidence_level=1 - LEVEL,
            method="BCa",
            rng=np.random.default_rng((seed, 0)),
        )
    low, high = found.confidence_interval
    if not np.isfinite([low, high]).all():
        low, high = np.quantile(found.bootstrap_distribution, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _sign_flip_p(differences: Array, rounding: float, seed: int, resamples: int) -> float:
    """Share of the sign patterns with which the sum of the differences is at least as far from 0 as it is.

    At most a share `LEVEL` of comparisons gives p < `LEVEL` where the differences are symmetric about 0, as they are
    if the two models are alike. Where only their mean is 0, that holds in large samples (simulated at n = 200: 0.054
    for exponential differences, 0.077 for log-normal ones of sigma 1).

    Exact, and so without a seed, where all differences that are not 0 have one size (the sign test) or there are at
    most `resamples` patterns. Otherwise patterns are drawn and p = (hits + 1) / (resamples + 1), which is valid and
    never 0 (Phipson and Smyth 2010, arXiv 1603.05766). scipy's `permutation_test` gives the same, but takes 8 s where
    random bits take 0.1 s (10,000 examples).
    """
    moved = differences[differences != 0]
    sizes = np.abs(moved)
    if not moved.size:
        return 1.0
    if np.ptp(sizes) <= rounding:
        from scipy.stats import binomtest

        return float(binomtest(int((moved > 0).sum()), moved.size).pvalue)
    bar = abs(moved.sum()) - moved.size * rounding

    def hits(flipped: npt.NDArray[np.integer]) -> int:  # (patterns, differences), 0 or 1
        return int((np.abs(moved.sum() - 2 * (flipped.astype(np.float64) @ moved)) >= bar).sum())

    if 2**moved.size <= resamples:
        patterns = np.arange(2**moved.size)[:, None]
        return hits(patterns >> np.arange(moved.size) & 1) / len(patterns)
    generator = np.random.default_rng((seed, 1))
    width = -(-moved.size // 8)
    count = 0
    for start in range(0, resamples, step := max(1, BATCH // moved.size)):
        rows = min(step, resamples - start)
        random_bytes = np.frombuffer(generator.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        count += hits(np.unpackbits(random_bytes, axis=1, count=moved.size))
    return (count + 1) / (resamples + 1)


def _detectable(
    differences: Array, weights: Array | None, rounding: float, level: float, resamples: int
) -> float | None:
    """(t[1 - level / 2] + t[POWER]) standard error + step, with Student's quantiles for n - 1 degrees of freedom.

    The normal quantiles would be the large-sample form; Student's are right here because flipping signs is a
    permutation of Student's t. The step is that of the sign test, 2 size / sum(weights) (1 / n for a win rate), and 0
    otherwise: the test's true level lies up to one step below `level`, and without it the power of a win rate at
    n = 200 is 0.76. Simulated powers for normal differences: 0.79 or more from n = 10 on, 0.64 at n = 6; for
    exponential ones at n = 200, 0.84 where the tail lies on the side of the difference and 0.77 on the other.
    """
    sizes = np.abs(differences[differences != 0])
    residuals = _residuals(differences, weights, rounding)
    n = differences.size
    total = n if weights is None else float(weights.sum())
    one_size = bool(sizes.size) and np.ptp(sizes) <= rounding
    smallest_p = 2.0 ** (1 - sizes.size)
    if not one_size and 2**sizes.size > resamples:
        smallest_p = max(smallest_p, 1 / (resamples + 1))
    if not residuals.any() or smallest_p >= level:
        return None
    from scipy.stats import t

    standard_error = float(np.sqrt((residuals**2).sum() * n / (n - 1))) / total
    quantiles = float(t.ppf(1 - level / 2, n - 1) + t.ppf(POWER, n - 1))
    return quantiles * standard_error + (2 * float(sizes.max()) / total if one_size else 0.0)
