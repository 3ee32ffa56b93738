"""Arms of a sweep compared with their baseline, over seeds and prompts.

All arms are trained with the same seeds and measured on the same prompts, so seeds and prompts are crossed:

    difference[s, i] = mean + seed[s] + prompt[i] + residual[s, i]

There are two claims: about these seeds (a sign-flip test over prompts of the differences averaged over seeds), and
about new seeds as well. docs/statistics.md has the model, the formulas, their sources and simulations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neftcli.events.evaluation import ScopeId
from neftcli.statistics.paired import (
    LEVEL,
    POWER,
    RESAMPLES,
    ROUNDING,
    Array,
    Estimate,
    PairedDifference,
    bootstrap_estimate,
    paired_difference,
    sum_by_prompt,
)

SHARED_BASELINE = 0.5
"""Correlation of two arms' differences from one baseline, if the arms and the baseline vary equally."""
UNEVEN_LEVEL = 0.02
"""Level of the F-test for an arm that varies more between seeds than the others."""


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Variances of the parts of a difference, in the squared unit of the metric; negative estimates become 0.

    Attributes:
        seed: Between seeds, the same for all prompts; None with one seed.
        prompt: Between prompts, the same for all seeds; with one seed it contains the residual.
        residual: Of a single (seed, prompt); None with one seed.
        freedom: Degrees of freedom of the seeds' part, for each seed after the first.
    """

    seed: float | None
    prompt: float
    residual: float | None
    freedom: float = 1.0

    def of_seeds(self, seeds: int, prompts: float) -> float:
        """Return the variance of the mean that more seeds reduce: (seed + residual / prompts) / seeds."""
        return ((self.seed or 0.0) + (self.residual or 0.0) / prompts) / seeds

    def of_prompts(self, prompts: float) -> float:
        """Return the variance of the mean that only more prompts reduce: prompt / prompts."""
        return self.prompt / prompts

    def unknown(self) -> bool:
        """Return whether nothing varies, so that no detectable effect can be computed."""
        return not (self.seed or self.prompt or self.residual)


@dataclass(frozen=True, slots=True)
class Claim:
    """A 95 % confidence interval and the p-value that agrees with it.

    Attributes:
        low: Lower end; None if there is none.
        high: Upper end; None if there is none.
        p: Two-sided p-value, not corrected for several comparisons.
        smallest_p: The smallest p-value that any outcome with differences of these sizes could give.
    """

    low: float | None
    high: float | None
    p: float
    smallest_p: float


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """Difference of an arm from the baseline, on the same seeds and prompts.

    Attributes:
        value: Difference, averaged over the seeds.
        these_seeds: Claim about new prompts and the models of these seeds; None with fewer than two prompts.
        new_seeds: Claim about new prompts and new seeds; None with fewer than two seeds or prompts. It is never
            significant without `these_seeds`.
        seeds: Seeds that both arms have.
        n: Distinct prompts that count.
        detectable: Minimum detectable effect of the claim about new seeds, or with one seed about these seeds: the true
            difference that is significant with probability `POWER` at `LEVEL` / comparisons; None if none could be.
        comparisons: Number of comparisons that are corrected together.
        components: Variances of the difference's parts; None with fewer than two prompts.
        seed_spread: Standard deviation of this arm's differences between seeds; None with one seed.
        others_spread: Standard deviation of the other arms of the baseline, pooled; None without others.
        uneven: True if this arm varies significantly more between seeds than the other arms, and is tested by its own
            variance.
        true_level: As in `PairedDifference`, of the claim about these seeds.
    """

    value: float
    these_seeds: Claim | None
    new_seeds: Claim | None
    seeds: int
    n: int
    detectable: float | None
    comparisons: int
    components: VarianceComponents | None
    seed_spread: float | None
    others_spread: float | None
    uneven: bool
    true_level: float | None


@dataclass(frozen=True, slots=True)
class CrossedDifference:
    """Difference of an arm from the baseline, with the variances of the claim about new seeds.

    Attributes:
        value: As in `ArmDifference`.
        components: As in `ArmDifference`, the seeds' part pooled over arms.
        seeds: As in `ArmDifference`.
        n: As in `ArmDifference`.
    """

    value: float
    components: VarianceComponents | None
    seeds: int
    n: int

    def is_beyond(self, level: float) -> bool:
        """Return whether `crossed_p_value` is below a level, which the claim about new seeds needs."""
        if self.components is None or self.seeds < 2:
            return False
        return abs(self.value) > margin_of_error(self.components, self.seeds, self.n, level / 2)


@dataclass(frozen=True, slots=True)
class _SeedPart:
    """The variance components of a pair with the seeds' part pooled, and the pooled spreads; as in `ArmDifference`."""

    components: VarianceComponents | None
    spread: float | None = None
    others_spread: float | None = None
    uneven: bool = False


@dataclass(frozen=True, slots=True)
class _Pair:
    """An arm and its baseline, (seeds, rows) each, on the seeds and rows that both have."""

    before: Array
    after: Array
    weights: Array | None
    prompts: Sequence[object] | None

    def differences(self) -> tuple[Array, Array | None]:
        """Return the differences (seeds, prompts) and the weights (prompts,)."""
        return sum_by_prompt(self.after - self.before, self.weights, self.prompts)

    def size(self) -> float:
        """Return the largest number that the differences are computed from."""
        return float(max(np.abs(self.before).max(), np.abs(self.after).max()))


def estimate_arm(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate the value of an arm, averaged over seeds, with a 95 % confidence interval over seeds and prompts.

    The interval is the bootstrap over prompts, widened by Student's interval for the seeds (MOVER); docs/statistics.md,
    section "The value of one model".

    Args:
        values: (seeds, rows), NaN for missing values. A seed without any value does not count, nor does a row that
            lacks a value in a seed that counts.
        weights: (rows,), as in `bootstrap_estimate`.
        prompts: (rows,), as in `sum_by_prompt`.
        seed: As in `bootstrap_estimate`.
        resamples: As in `bootstrap_estimate`.

    Raises:
        ValueError: No seed or row counts, a number is infinite, or the shapes or weights don't fit.
    """
    (sums,), counts, complete_prompts = _require_complete([values], weights, prompts)
    mean = bootstrap_estimate(sums.mean(0), counts, prompts=complete_prompts, seed=seed, resamples=resamples)
    seeds = len(sums)
    if mean.low is None or mean.high is None or seeds == 1:
        return mean
    grouped, sizes = sum_by_prompt(sums, counts, complete_prompts)
    components = variance_components(grouped, sizes)
    # MOVER (Zou and Donner 2008): squared distances of both intervals, the residual counted once.
    variance = components.prompt + (components.residual or 0.0) / seeds
    share = components.prompt / variance if variance else 0.0
    of_seeds = _quantile(seeds - 1, LEVEL / 2) ** 2 * components.of_seeds(seeds, grouped.shape[1])
    below, above = (math.sqrt(share * (mean.value - end) ** 2 + of_seeds) for end in (mean.low, mean.high))
    return Estimate(mean.value, mean.value - below, mean.value + above, mean.n)


def compare_arms(
    baseline: npt.ArrayLike,
    arms: Sequence[npt.ArrayLike],
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    comparisons: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[ArmDifference]:
    """Compare arms with the baseline that they share.

    `crossed_p_value` tests the claim about new seeds, with the seeds' part pooled over the arms. The claim must also
    hold for these seeds: p is the larger of both, and the interval reaches as far as both.

    Args:
        baseline: (seeds, rows), NaN for missing values.
        arms: Each (seeds, rows), in the same order. What an arm or the baseline lacks does not count in its comparison.
        weights: (rows,), as in `bootstrap_estimate`.
        prompts: (rows,), as in `sum_by_prompt`.
        comparisons: As in `paired_difference`.
        seed: As in `paired_difference`.
        resamples: As in `paired_difference`.

    Raises:
        ValueError: As in `estimate_arm`, or fewer than one comparison.
    """
    pairs = [_Pair(*_complete_pair(baseline, arm, weights, prompts)) for arm in arms]
    return [
        _difference(pair, seed_part, comparisons, seed, resamples)
        for pair, seed_part in zip(pairs, _pool_seed_parts(pairs), strict=True)
    ]


def estimate_crossed_differences(
    baseline: npt.ArrayLike,
    arms: Sequence[npt.ArrayLike],
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
) -> list[CrossedDifference]:
    """Estimate the differences as `compare_arms` does, without the sign-flip test, which takes most of the time.

    Raises:
        ValueError: As in `estimate_arm`.
    """
    pairs = [_Pair(*_complete_pair(baseline, arm, weights, prompts)) for arm in arms]
    differences = []
    for pair, seed_part in zip(pairs, _pool_seed_parts(pairs), strict=True):
        values, counts = pair.differences()
        value = float(per_seed_values(values, counts).mean())
        differences.append(CrossedDifference(value, seed_part.components, *values.shape))
    return differences


def margin_of_error(components: VarianceComponents, seeds: int, prompts: int, tail: float) -> float:
    """Compute the most by which the mean over seeds and prompts exceeds the truth, except with probability `tail`.

        sqrt(t_s^2 (seed + residual / prompts) / seeds + t_p^2 prompt / prompts)

    with Student's quantiles of 1 - tail for freedom x (seeds - 1) and prompts - 1 degrees of freedom (Banerjee 1960);
    docs/statistics.md, section "New seeds: seeds and prompts together".
    """
    of_seeds = 0.0
    if seeds > 1:
        quantile = _quantile(components.freedom * (seeds - 1), tail)
        of_seeds = quantile**2 * components.of_seeds(seeds, prompts)
    return math.sqrt(of_seeds + _quantile(prompts - 1, tail) ** 2 * components.of_prompts(prompts))


def crossed_p_value(value: float, components: VarianceComponents, seeds: int, prompts: int) -> float:
    """Compute the two-sided p-value: the level whose `margin_of_error` reaches the value; at least 1e-9."""
    from scipy.optimize import brentq

    def excess(exponent: float) -> float:
        return margin_of_error(components, seeds, prompts, math.exp(exponent) / 2) - abs(value)

    if value == 0:
        return 1.0
    smallest = math.log(1e-9)
    return math.exp(brentq(excess, smallest, 0.0)) if excess(smallest) > 0 else 1e-9


def minimum_detectable_effect(
    components: VarianceComponents, seeds: int, prompts: int, level: float, scope: ScopeId
) -> float:
    """Compute the true difference that is significant with probability `POWER` at a level.

    This is `margin_of_error` with noncentral quantiles; docs/statistics.md, section "Minimum detectable effect". For a
    claim about these seeds, the seeds' own part does not count, and the residual is a part of the prompts'.
    """
    from scipy.special import chdtri, nctdtrinc, stdtrit

    def quantile(freedom: float) -> float:
        return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2)))

    if scope == ScopeId.THESE_SEEDS:
        variance = components.prompt + (components.residual or 0.0) / seeds
        return quantile(prompts - 1) * math.sqrt(variance / prompts)
    freedom = components.freedom * (seeds - 1)
    of_seeds = quantile(freedom) / math.sqrt(float(chdtri(freedom, 0.5)) / freedom)
    return math.sqrt(
        of_seeds**2 * components.of_seeds(seeds, prompts) + quantile(prompts - 1) ** 2 * components.of_prompts(prompts)
    )


def variance_components(
    values: Array, weights: Array | None = None, *, size: float | None = None
) -> VarianceComponents:
    """Estimate the variance components of complete values by a two-way analysis of variance without replication.

        seed = (MS_s - MS_r) / prompts,    prompt = (MS_p - MS_r) / seeds,    residual = MS_r

    with mean squares MS of seeds, prompts and residual (Searle, Casella and McCulloch 1992); docs/statistics.md,
    section "New seeds: seeds and prompts together".

    Args:
        values: (seeds, prompts), two prompts or more.
        weights: (prompts,), all above 0.
        size: Largest number that the values were computed from; values below its rounding error count as 0.
    """
    seeds, n = values.shape
    scale = 1.0 if weights is None else float(weights.mean())
    ratios = per_seed_values(values, weights)
    influence = (values - ratios[:, None] * (1.0 if weights is None else weights)) / scale  # (seeds, prompts)
    by_prompt = influence.mean(0)
    rounding = (ROUNDING * (float(np.abs(values).max()) if size is None else size) / scale) ** 2

    def mean_square(sum_of_squares: float, freedom: int) -> float:
        return sum_of_squares / freedom if sum_of_squares / freedom > seeds * n * rounding else 0.0

    of_prompts = mean_square(seeds * float((by_prompt**2).sum()), n - 1)
    if seeds == 1:
        return VarianceComponents(None, of_prompts, None)
    residual = mean_square(float(((influence - by_prompt) ** 2).sum()), (seeds - 1) * (n - 1))
    of_seeds = mean_square(n * float(((ratios - ratios.mean()) ** 2).sum()), seeds - 1)
    return VarianceComponents(max(0.0, (of_seeds - residual) / n), max(0.0, (of_prompts - residual) / seeds), residual)


def per_seed_values(values: Array, weights: Array | None) -> Array:
    """Return the value of each seed: (seeds,)."""
    of_seeds: Array = values.mean(1) if weights is None else values.sum(1) / weights.sum()
    return of_seeds


def select_complete(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None = None, prompts: Sequence[object] | None = None
) -> tuple[list[Array], Array | None, Sequence[object] | None]:
    """Select the seeds and rows that all arms have; there may be none.

    First a seed is dropped if an arm has no value in it, then every row that lacks a value in a remaining seed, or
    whose weight is 0.

    Returns:
        The arms (seeds, rows), weights (rows,) and prompts (rows,).

    Raises:
        ValueError: The shapes or weights don't fit, or a number is infinite.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    counts = None if weights is None else np.asarray(weights, dtype=np.float64)
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 2 or len(set(shapes)) > 1 or (counts is not None and counts.shape != shapes[0][1:]):
        raise ValueError(f"arms must be (seeds, rows), of one shape, and weights (rows,), not {shapes}")
    if prompts is not None and len(prompts) != shapes[0][1]:
        raise ValueError(f"one prompt for each row is needed, not {len(prompts)} for {shapes[0][1]} rows")
    if np.isinf(arrays).any() or (counts is not None and not np.isfinite(counts).all()):
        raise ValueError("every number must be finite, or NaN if it is missing")
    seeds = ~np.any([np.isnan(array).all(1) for array in arrays], axis=0)
    arrays = [array[seeds] for array in arrays]
    rows: npt.NDArray[np.bool_] = ~np.any(np.isnan(arrays), axis=(0, 1))
    if counts is not None:
        if (counts < 0).any() or any(array[:, rows & (counts == 0)].any() for array in arrays):
            raise ValueError("weights must be 0 or more, and more than 0 where a value is not 0")
        rows &= counts > 0
        counts = counts[rows]
    complete_prompts = None if prompts is None else [prompt for prompt, keep in zip(prompts, rows, strict=True) if keep]
    return [np.compress(rows, array, axis=1) for array in arrays], counts, complete_prompts


def _require_complete(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> tuple[list[Array], Array | None, Sequence[object] | None]:
    """Select the seeds and rows that all arms have, as `select_complete`.

    Raises:
        ValueError: There are none, or as in `select_complete`.
    """
    arrays, counts, complete_prompts = select_complete(columns, weights, prompts)
    if not arrays[0].size:
        raise ValueError(f"no seeds or no rows to compare: {arrays[0].shape} are left")
    return arrays, counts, complete_prompts


def _complete_pair(
    baseline: npt.ArrayLike, arm: npt.ArrayLike, weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> tuple[Array, Array, Array | None, Sequence[object] | None]:
    (before, after), counts, complete_prompts = _require_complete([baseline, arm], weights, prompts)
    return before, after, counts, complete_prompts


def _pool_seed_parts(pairs: Sequence[_Pair]) -> list[_SeedPart]:
    """Pool the variance between seeds over all pairs.

    docs/statistics.md, section "New seeds: seeds and prompts together".

    K arms of one baseline have K (seeds - 1) / (1 + (K - 1) SHARED_BASELINE^2) degrees of freedom. An arm whose
    variance is above the others' mean by an F-test at `UNEVEN_LEVEL` is tested by its own variance, and stays in the
    others' mean.
    """
    split = [pair.differences() for pair in pairs]
    own = [
        variance_components(values, weights, size=pair.size()) if values.shape[1] > 1 else None
        for pair, (values, weights) in zip(pairs, split, strict=True)
    ]
    known = [
        (index, parts, len(split[index][0]), split[index][0].shape[1])
        for index, parts in enumerate(own)
        if parts is not None and parts.seed is not None
    ]
    # Without a seeds' part and a residual, the rest is rounding error.
    variances = {
        index: _seed_variance(*split[index]) if parts.seed or parts.residual else 0.0 for index, parts, *_ in known
    }
    freedoms = {index: seeds - 1 for index, _, seeds, _ in known}
    others = {index: [other for other in variances if other != index] for index in variances}
    uneven = set()
    for index, rest in others.items():
        if rest:
            mean, freedom = _pooled_mean(variances, freedoms, rest), _pooled_freedom(freedoms, rest)
            if _is_larger(variances[index], freedoms[index], mean, freedom):
                uneven.add(index)
    residuals = {index: parts.residual or 0.0 for index, parts, *_ in known}
    result = [_SeedPart(parts) for parts in own]
    for index, parts, seeds, n in known:
        pool = [index] if index in uneven else list(variances)
        residual = _pooled_mean(residuals, freedoms, pool)
        seed = max(0.0, _pooled_mean(variances, freedoms, pool) - residual / n)
        shared = VarianceComponents(seed, parts.prompt, residual, _pooled_freedom(freedoms, pool) / (seeds - 1))
        of_others = math.sqrt(_pooled_mean(variances, freedoms, others[index])) if others[index] else None
        result[index] = _SeedPart(shared, math.sqrt(variances[index]), of_others, index in uneven)
    return result


def _seed_variance(values: Array, weights: Array | None) -> float:
    """Return the variance between the values of the seeds."""
    return float(per_seed_values(values, weights).var(ddof=1))


def _pooled_mean(numbers: dict[int, float], freedoms: dict[int, int], pool: Sequence[int]) -> float:
    return sum(freedoms[index] * numbers[index] for index in pool) / sum(freedoms[index] for index in pool)


def _pooled_freedom(freedoms: dict[int, int], pool: Sequence[int]) -> float:
    """Return the degrees of freedom of the pooled variance; `_pool_seed_parts` has the formula."""
    return sum(freedoms[index] for index in pool) / (1 + (len(pool) - 1) * SHARED_BASELINE**2)


def _is_larger(variance: float, freedom: float, other: float, other_freedom: float) -> bool:
    """Return whether a variance is above another by a one-sided F-test at `UNEVEN_LEVEL`."""
    from scipy.special import fdtrc

    return variance > 0 and (other == 0 or float(fdtrc(freedom, other_freedom, variance / other)) < UNEVEN_LEVEL)


def _difference(
    pair: _Pair,
    seed_part: _SeedPart,
    comparisons: int,
    seed: int,
    resamples: int,
) -> ArmDifference:
    """Compare one arm with its baseline, by components that are pooled already."""
    components = seed_part.components
    difference = paired_difference(
        pair.before.mean(0),
        pair.after.mean(0),
        pair.weights,
        prompts=pair.prompts,
        comparisons=comparisons,
        seed=seed,
        resamples=resamples,
    )
    seeds = len(pair.before)
    these = new = None
    if difference.p is not None:
        these = Claim(difference.low, difference.high, difference.p, difference.smallest_p)
        if components is not None and seeds > 1:
            new = _new_seeds(difference, these, components, seeds)
    effect = difference.detectable
    if effect is not None and new is not None and components is not None:
        level = LEVEL / comparisons
        effect = max(effect, minimum_detectable_effect(components, seeds, difference.n, level, ScopeId.NEW_SEEDS))
    return ArmDifference(
        value=difference.value,
        these_seeds=these,
        new_seeds=new,
        seeds=seeds,
        n=difference.n,
        detectable=effect,
        comparisons=comparisons,
        components=components,
        seed_spread=seed_part.spread,
        others_spread=seed_part.others_spread,
        uneven=seed_part.uneven,
        true_level=difference.true_level,
    )


def _new_seeds(difference: PairedDifference, these: Claim, components: VarianceComponents, seeds: int) -> Claim:
    """Make the claim about new seeds, which holds only if the claim about these seeds does."""
    p = max(these.p, crossed_p_value(difference.value, components, seeds, difference.n))
    if these.low is None or these.high is None:
        return Claim(None, None, p, these.smallest_p)
    margin = margin_of_error(components, seeds, difference.n, LEVEL / 2)
    return Claim(
        min(these.low, difference.value - margin), max(these.high, difference.value + margin), p, these.smallest_p
    )


def _quantile(freedom: float, tail: float) -> float:
    """Return the quantile of Student's t at `tail`: below 0 for tails under a half."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, tail))
