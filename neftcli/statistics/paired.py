"""Two models compared on the same prompts: difference, 95 % confidence interval and p-value of one sign-flip test.

    H0: sum(d) = r sum(w)        d: difference of a prompt, w: its weight (tokens, or rows)
    T(signs) = |sum signs (d - r w)|
    p(r)     = share of the sign patterns with T(signs) >= T(+1, ..., +1)

Rows with the same prompt are summed first, because they are not independent. The interval holds every r with
p(r) >= 0.05. The result is about prompts like these and these two models, not about other seeds. docs/statistics.md has
the derivation, section "These seeds: a sign-flip test and its inversion".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

RESAMPLES = 9_999
LEVEL = 0.05
POWER = 0.8
MIN_PROMPTS = 6
"""Prompts that a test needs; with fewer, no p-value is below 0.05."""

Array: TypeAlias = npt.NDArray[np.float64]

ROUNDING = 1e-12
"""Numbers that differ by less than this share of the largest value count as equal."""
SKEWNESS_THRESHOLD = 0.065
"""Estimated true level above which neft warns of skewness: clearly above the nominal 0.05."""
BATCH = 2**20
"""Numbers drawn at once; bounds the memory (8 MB per array) for any number of prompts."""
LEVEL_RESAMPLES = 2_000
"""Resamples that estimate the true level under skewness, with a standard error of 0.5 percentage points."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of one model with its confidence interval.

    Attributes:
        value: Mean, or sum of values over sum of weights.
        low: Lower end of the 95 % confidence interval; None with fewer than two prompts.
        high: Upper end of the interval; None with fewer than two prompts.
        n: Distinct prompts that count.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of the second model's value from the first's, on the same prompts.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % confidence interval; None if no test of these prompts can give p < 0.05.
        high: Upper end of the interval; None if no test of these prompts can give p < 0.05.
        p: Two-sided p-value, not corrected for several comparisons; None with fewer than two prompts.
        smallest_p: The smallest p-value that any outcome with differences of these sizes could give.
        n: Distinct prompts that count.
        detectable: Minimum detectable effect: the true difference that is significant with probability `POWER` at
            `LEVEL` / comparisons; None if no difference could be significant, or nothing varies.
        true_level: Estimated rate of p < 0.05 without a true difference, which skewness raises; None if nothing varies.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float
    n: int
    detectable: float | None
    true_level: float | None


def sum_by_prompt(values: Array, weights: Array | None, prompts: Sequence[object] | None) -> tuple[Array, Array | None]:
    """Sum the rows that share a prompt.

    Args:
        values: (..., rows).
        weights: (rows,), or None for a mean over rows.
        prompts: (rows,), equal for rows that share a prompt; None if all differ.

    Returns:
        Values (..., prompts) and weights (prompts,). Without weights, the weights are numbers of rows, or None if no
        two rows share a prompt.
    """
    if prompts is None or len(set(prompts)) == len(prompts):
        return values, weights
    group = np.array(number_prompts(prompts))
    indicator = np.zeros((len(group), group.max() + 1))
    indicator[np.arange(len(group)), group] = 1.0
    return values @ indicator, (indicator.sum(0) if weights is None else weights @ indicator)


def number_prompts(prompts: Sequence[object]) -> list[int]:
    """Number the prompts from 0 in the order of their first rows, with equal numbers for equal prompts."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]


def bootstrap_estimate(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate the value of one model with a 95 % BCa bootstrap interval over prompts.

    Args:
        values: (rows,). Without weights their mean is estimated.
        weights: (rows,), e.g. tokens; the estimate is then sum(values) / sum(weights), e.g. nats per token. Rows of
            weight 0 do not count.
        prompts: (rows,), as in `sum_by_prompt`.
        seed: Seed of the resampling; the result is deterministic.
        resamples: Number of bootstrap samples.

    Raises:
        ValueError: No row counts, a number isn't finite, or the shapes or weights don't fit.
    """
    (sums,), counts, prompts_with_weight = _rows([values], weights, prompts)
    value = math.fsum(sums) / (sums.size if counts is None else math.fsum(counts))  # exact in any order of the rows
    grouped, sizes = sum_by_prompt(sums, counts, prompts_with_weight)
    low, high = _bootstrap_interval(grouped, sizes, _rounding(sums), seed, resamples)
    return Estimate(value, low, high, grouped.shape[-1])


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    comparisons: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Estimate and test the difference (sum(second) - sum(first)) / sum(weights).

    A win rate (scores 0, 0.5, 1) is compared with 50 % by a `first` of halves. For such scores, and for right or wrong
    answers, the test is the sign test on the prompts that differ (McNemar's).

    Args:
        first: (rows,), values of the reference model.
        second: (rows,), values of the other model, in the same order.
        weights: (rows,), as in `bootstrap_estimate`; the mean of the differences if None.
        prompts: (rows,), as in `sum_by_prompt`.
        comparisons: Number of comparisons that are corrected together. `detectable` uses the strictest step of Holm's
            correction, so its power holds whatever the other tests give.
        seed: Seed of the sign patterns; the result is deterministic.
        resamples: Number of sign patterns to draw if there are too many to try all.

    Raises:
        ValueError: As in `bootstrap_estimate`, or fewer than one comparison.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be 1 or more, not {comparisons}")
    (before, after), counts, prompts_with_weight = _rows([first, second], weights, prompts)
    rounding = _rounding(before, after)
    differences, sizes = sum_by_prompt(after - before, counts, prompts_with_weight)
    differences[np.abs(differences) <= rounding] = 0.0
    value = math.fsum(differences) / (differences.size if sizes is None else math.fsum(sizes))
    n = differences.size
    if n < 2:
        return PairedDifference(value, None, None, None, 1.0, n, None, None)
    low, high, p = _sign_flip_test(differences, sizes, rounding, seed, resamples)
    smallest = _smallest_p(differences, resamples)
    residuals = _residuals(differences, sizes, rounding)
    detectable = None
    if smallest < LEVEL / comparisons and residuals.any():
        detectable = _detectable(differences, sizes, residuals, rounding, LEVEL / comparisons)
    level = _true_level(residuals, seed) if residuals.any() else None
    return PairedDifference(value, low, high, p, smallest, n, detectable, level)


def _rows(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> tuple[list[Array], Array | None, Sequence[object] | None]:
    """Return columns, weights and prompts, each (rows,), without the rows of weight 0."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    counts = None if weights is None else np.asarray(weights, dtype=np.float64)
    checked = arrays if counts is None else [*arrays, counts]
    for array in checked:
        if array.ndim != 1 or array.shape != arrays[0].shape:
            raise ValueError(f"one number for each row is needed, not shapes {array.shape} and {arrays[0].shape}")
        if not np.isfinite(array).all():
            raise ValueError("every number must be finite")
    if prompts is not None and len(prompts) != arrays[0].size:
        raise ValueError(f"one prompt for each row is needed, not {len(prompts)} for {arrays[0].size} rows")
    if counts is not None:
        if (counts < 0).any() or any(array[counts == 0].any() for array in arrays):
            raise ValueError("weights must be 0 or more, and more than 0 where a value is not 0")
        prompts = None if prompts is None else [prompt for prompt, count in zip(prompts, counts, strict=True) if count]
        arrays = [array[counts > 0] for array in arrays]
        counts = counts[counts > 0]
    if not arrays[0].size:
        raise ValueError("no rows to compare")
    return arrays, counts, prompts


def _ratio(values: Array, weights: Array | None = None, axis: int = -1) -> Array:
    """Return the sum of values over the sum of weights, along an axis; the mean without weights."""
    ratio: Array = values.sum(axis) / (values.shape[axis] if weights is None else weights.sum(axis))
    return ratio


def _rounding(*columns: Array) -> float:
    """Return the difference up to which numbers computed from the columns count as equal."""
    return ROUNDING * max(float(np.abs(column).max()) for column in columns)


def _residuals(values: Array, weights: Array | None, rounding: float) -> Array:
    """Return the residuals d - ratio w (prompts,); exactly 0 if only rounding error is left.

    Divided by the mean weight they are the influence values of the ratio (Davison and Hinkley 1997, section 2.7).
    """
    residuals: Array = values - _ratio(values, weights) * (1.0 if weights is None else weights)
    residuals[np.abs(residuals) <= rounding] = 0.0
    return residuals


def _bootstrap_interval(
    values: Array, weights: Array | None, rounding: float, seed: int, resamples: int
) -> tuple[float, float] | tuple[None, None]:
    """Compute the 95 % BCa bootstrap interval of one model's value; docs/statistics.md, "The value of one model".

    None with fewer than two prompts. The estimate itself, twice, if every resample gives it. The percentile interval if
    BCa is undefined for another reason.
    """
    if values.size < 2:
        return None, None
    if not _residuals(values, weights, rounding).any():
        value = float(_ratio(values, weights))
        return value, value
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
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
    low, high = result.confidence_interval
    if not np.isfinite([low, high]).all():
        low, high = np.quantile(result.bootstrap_distribution, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _sign_flip_test(
    differences: Array, weights: Array | None, rounding: float, seed: int, resamples: int
) -> tuple[float | None, float | None, float]:
    """Compute the 95 % confidence interval and the p-value of the module's formula; an infinite end is None.

    Exact if there are at most `resamples` of the 2^n patterns. Otherwise patterns are drawn, and the one that flips
    nothing counts as well (Phipson and Smyth 2010, arXiv 1603.05766).
    """
    counts = np.ones_like(differences) if weights is None else weights
    of_differences, of_weights = differences.sum(), counts.sum()
    sides = []
    for signs in _sign_patterns(differences.size, seed, resamples):
        flipped, weighed = signs @ differences, signs @ counts
        numerators = np.stack([of_differences - flipped, of_differences + flipped])
        numerators[np.abs(numerators) <= differences.size * rounding] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.sort(numerators / np.stack([of_weights - weighed, of_weights + weighed]), axis=0)
        # Patterns that flip no sign, or all, count at every r; rounding could make their sums of weights differ.
        all_alike = np.abs(signs.sum(1)) == differences.size
        sides.append(np.where(all_alike, [[-np.inf], [np.inf]], between))
    ends = np.concatenate(sides, axis=1)
    drawn = int(2**differences.size > resamples)
    total = ends.shape[1] + drawn
    p = (int(((ends[0] <= 0) & (ends[1] >= 0)).sum()) + drawn) / total
    inside = math.ceil(LEVEL * total - 1e-9) - drawn  # patterns that must count at r for p(r) >= LEVEL
    if inside < 1:
        return None, None, p
    low, high = (
        float(np.partition(ends[0], inside - 1)[inside - 1]),
        float(-np.partition(-ends[1], inside - 1)[inside - 1]),
    )
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None), p


def _sign_patterns(n: int, seed: int, resamples: int) -> Iterator[Array]:
    """Yield patterns of n signs, (patterns, n) at a time: all 2^n if at most `resamples`, else as many drawn ones."""
    if 2**n <= resamples:
        yield _signs(np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return
    generator = np.random.default_rng((seed, 1))
    width = -(-n // 8)
    for start in range(0, resamples, step := max(1, BATCH // n)):
        count = min(step, resamples - start)
        random_bytes = np.frombuffer(generator.bytes(count * width), dtype=np.uint8).reshape(count, width)
        yield _signs(np.unpackbits(random_bytes, axis=1, count=n))


def _signs(bits: npt.NDArray[np.integer]) -> Array:
    """Map bits to signs: 0 to +1, and 1 to -1."""
    return (1 - 2 * bits.astype(np.int8)).astype(np.float64)  # int8 first halves the time


def _smallest_p(differences: Array, resamples: int) -> float:
    """Return the smallest p of the test over all signs of these differences; zeros give no evidence."""
    moved = int(np.count_nonzero(differences))
    smallest = 2.0 ** min(0, 1 - moved)
    return smallest if 2**differences.size <= resamples else max(smallest, 1 / (resamples + 1))


def _detectable(differences: Array, weights: Array | None, residuals: Array, rounding: float, level: float) -> float:
    """Compute (t[1 - level / 2] + t[POWER]) standard error + step, with Student's quantiles for n - 1 freedom.

    The step is that of the sign test if all differences have one size: 2 size / sum(weights), so 1 / n for a win rate.
    """
    from scipy.special import stdtrit

    sizes = np.abs(differences[differences != 0])
    n = differences.size
    total = n if weights is None else float(weights.sum())
    step = 2 * float(sizes.max()) / total if np.ptp(sizes) <= rounding else 0.0
    standard_error = float(np.sqrt((residuals**2).sum() * n / (n - 1))) / total
    return float(stdtrit(n - 1, 1 - level / 2) + stdtrit(n - 1, POWER)) * standard_error + step


def _true_level(residuals: Array, seed: int) -> float:
    """Estimate the rate of p < `LEVEL` under skewness: the share of resamples for which Student's test rejects."""
    from scipy.special import stdtrit

    n = residuals.size
    generator = np.random.default_rng((seed, 2))
    # |mean| > t sd / sqrt(n), rewritten with sums: sum^2 (n - 1 + t^2) > t^2 n (sum of squares).
    squared = float(stdtrit(n - 1, 1 - LEVEL / 2)) ** 2
    hits, drawn = 0, 0
    while drawn < LEVEL_RESAMPLES:
        count = min(LEVEL_RESAMPLES - drawn, max(1, BATCH // n))
        sample = residuals[generator.integers(n, size=(count, n), dtype=np.int32)]
        squares = np.einsum("ij,ij->i", sample, sample)
        hits += int((sample.sum(1) ** 2 * (n - 1 + squared) > squared * n * squares).sum())
        drawn += count
    return hits / LEVEL_RESAMPLES
