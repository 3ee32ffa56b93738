"""Arms of a sweep compared with their baseline, over seeds and prompts.

All arms are trained with the same seeds and measured on the same prompts, so the differences within (seed, prompt) are
the data, and seeds and prompts are crossed, not nested:

    difference[s, i] = mean + seed[s] + prompt[i] + residual[s, i]

Two claims are kept apart. One is about these seeds: the differences are averaged over the seeds, and a sign-flip test
over prompts tells whether other prompts would show them. The other is about new seeds as well, and is what people mean
by "alpha 10 is better": it must hold against the seeds' part and the prompts' part together. A test over seeds and a
test over prompts that both reject are not enough, because each takes the other's part as fixed (simulated: wrong in 7 %
with six seeds and 11 % with ten, where 5 % are allowed; Clark 1973, "The Language-as-Fixed-Effect Fallacy").

How much seeds vary is estimated from all arms of one baseline together, since few seeds say little about one arm. The
assumption is that the differences of these arms vary equally between seeds; an arm that varies significantly more than
the others gets an estimate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

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

Scope: TypeAlias = Literal["these seeds", "new seeds"]
SHARED_BASELINE = 0.5
"""Correlation of two arms' differences from one baseline, if the arms and the baseline vary equally."""
UNEVEN_LEVEL = 0.02
"""Level of the test whether an arm varies more between seeds than the others. If one arm of three varies three times
as much, the family-wise error is 4 % on average and at most 7 % (9 % beside an arm that is better), with two to eight
seeds (simulated; without the test up to 8 % if all arms are null)."""


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """The variances of a difference's parts, in the squared unit of the figure; estimates below 0 are 0.

    Attributes:
        seed: Between seeds, the same for all prompts; None with one seed, which can't show it.
        prompt: Between prompts, the same for all seeds; with one seed the residual is in it.
        residual: Of the rest, of a (seed, prompt); None with one seed.
        freedom: Degrees of freedom of the seeds' part, for each seed more than one.
    """

    seed: float | None
    prompt: float
    residual: float | None
    freedom: float = 1.0

    def of_seeds(self, seeds: int, prompts: float) -> float:
        """The variance of the mean that more seeds reduce: (seed + residual / prompts) / seeds."""
        return ((self.seed or 0.0) + (self.residual or 0.0) / prompts) / seeds

    def of_prompts(self, prompts: float) -> float:
        """The rest of it, which only more prompts reduce: prompt / prompts."""
        return self.prompt / prompts

    def unknown(self) -> bool:
        """Nothing varies, so nothing can be said about what could be found."""
        return not (self.seed or self.prompt or self.residual)


@dataclass(frozen=True, slots=True)
class Claim:
    """A 95 % confidence interval and the p-value that agrees with it.

    Attributes:
        low: Lower end; None if there is none.
        high: Upper end.
        p: Two-sided, not corrected for several comparisons.
        smallest_p: The smallest p that these sizes of differences could give.
    """

    low: float | None
    high: float | None
    p: float
    smallest_p: float


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """An arm's figure minus the baseline's, on the same seeds and prompts.

    Attributes:
        value: The difference, averaged over the seeds.
        these_seeds: Claim about new prompts and the models of these seeds; None with fewer than two prompts.
        new_seeds: Claim about new prompts and new seeds; None with fewer than two seeds or prompts. It is never
            significant without `these_seeds`.
        seeds: Seeds that both arms have.
        n: Distinct prompts that count.
        detectable: Minimum detectable effect of the claim about new seeds, with one seed of that about these: the true
            difference that is significant with probability `POWER` at `LEVEL` / comparisons. None if none could be.
        comparisons: Number of comparisons that are corrected together.
        components: The parts of the difference's variance; None with fewer than two prompts.
        seed_spread: Standard deviation of the seeds' own differences, this arm's alone; None with one seed.
        others_spread: That of the other arms of the baseline together; None without others.
        uneven: This arm varies significantly more between seeds than the other arms, and is tested by its own variance.
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
    """An arm's figure minus the baseline's, with the variances that the claim about new seeds rests on.

    Attributes:
        value: As in `ArmDifference`.
        components: As in `ArmDifference`, the seeds' part pooled.
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
    """A pair's components with the seeds' part pooled, and the spreads that were pooled; as in `ArmDifference`."""

    components: VarianceComponents | None
    spread: float | None = None
    others_spread: float | None = None
    uneven: bool = False


@dataclass(frozen=True, slots=True)
class _Pair:
    """An arm and its baseline on the seeds and rows that both have."""

    before: Array
    after: Array
    weights: Array | None
    prompts: Sequence[object] | None

    def differences(self) -> tuple[Array, Array | None]:
        """(seeds, prompts) and the prompts' weights."""
        return sum_by_prompt(self.after - self.before, self.weights, self.prompts)

    def size(self) -> float:
        """The largest number that the differences were computed from."""
        return float(max(np.abs(self.before).max(), np.abs(self.after).max()))


def estimate_arm(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate an arm's figure, averaged over seeds, with its 95 % confidence interval over seeds and prompts.

    Args:
        values: (seeds, rows), NaN if there is none. A seed without any does not count, nor does a row that lacks a
            value in a seed that counts.
        weights: (rows,), as in `bootstrap_estimate`.
        prompts: (rows,), as in `sum_by_prompt`.
        seed: As in `bootstrap_estimate`.
        resamples: As in `bootstrap_estimate`.

    Raises:
        ValueError: No seed or row counts, a number is infinite, or the shapes or weights don't fit.
    """
    (sums,), counts, kept = _compared([values], weights, prompts)
    mean = bootstrap_estimate(sums.mean(0), counts, prompts=kept, seed=seed, resamples=resamples)
    seeds = len(sums)
    if mean.low is None or mean.high is None or seeds == 1:
        return mean
    grouped, sizes = sum_by_prompt(sums, counts, kept)
    components = variance_components(grouped, sizes)
    # Squared distances are added (MOVER; Zou and Donner 2008): those of the interval over prompts, less the residual's
    # share, and Student's for the seeds.
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

    The claim about new seeds is tested by `crossed_p_value`, with the seeds' part pooled over the arms, and must also
    hold for these seeds: p is the larger of the two, and the interval reaches as far as both.

    Args:
        baseline: (seeds, rows), NaN if there is no value.
        arms: Each (seeds, rows), in the same order. What an arm or the baseline lacks does not count in its comparison.
        weights: (rows,), as in `bootstrap_estimate`.
        prompts: (rows,), as in `sum_by_prompt`.
        comparisons: As in `paired_difference`.
        seed: As in `paired_difference`.
        resamples: As in `paired_difference`.

    Raises:
        ValueError: As in `estimate_arm`, or fewer than one comparison.
    """
    pairs = [_Pair(*_two(baseline, arm, weights, prompts)) for arm in arms]
    return [
        _difference(pair, seed_part, comparisons, seed, resamples)
        for pair, seed_part in zip(pairs, _pooled(pairs), strict=True)
    ]


def estimate_crossed_differences(
    baseline: npt.ArrayLike,
    arms: Sequence[npt.ArrayLike],
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
) -> list[CrossedDifference]:
    """Compare as `compare_arms` does, without the sign-flip test, which takes most of the time.

    Raises:
        ValueError: As in `estimate_arm`.
    """
    pairs = [_Pair(*_two(baseline, arm, weights, prompts)) for arm in arms]
    found = []
    for pair, seed_part in zip(pairs, _pooled(pairs), strict=True):
        values, counts = pair.differences()
        value = float(per_seed_values(values, counts).mean())
        found.append(CrossedDifference(value, seed_part.components, *values.shape))
    return found


def margin_of_error(components: VarianceComponents, seeds: int, prompts: int, tail: float) -> float:
    """Compute the most by which the mean over seeds and prompts is above the truth, except with probability `tail`.

    sqrt(t_s^2 (seed + residual / prompts) / seeds + t_p^2 prompt / prompts), t_s and t_p being Student's quantiles of
    1 - tail for freedom (seeds - 1) and prompts - 1 degrees of freedom. For normal parts the probability is kept at
    every tail up to a half and with two seeds already, however large each part is (Banerjee 1960, "Approximate
    Confidence Interval for Linear Functions of Means of k Populations When the Population Variances Are Not Equal"):
    the normal tail beyond sqrt(x) is convex in x, so that the chance is largest if all variance is in one part, and
    there it is exact. Satterthwaite's degrees of freedom, usual here, give 13 % instead of 5 % with two seeds
    (simulated).

    The residual is in the seeds' part alone, not in both as there; in every mix of parts tried the probability is still
    kept (simulated, from 2 to 10 seeds and 10 to 400 prompts). As no component is below 0, seeds that happen to agree
    by more than the residual allows are not taken for seeds that must.
    """
    of_seeds = 0.0
    if seeds > 1:
        quantile = _quantile(components.freedom * (seeds - 1), tail)
        of_seeds = quantile**2 * components.of_seeds(seeds, prompts)
    return math.sqrt(of_seeds + _quantile(prompts - 1, tail) ** 2 * components.of_prompts(prompts))


def crossed_p_value(value: float, components: VarianceComponents, seeds: int, prompts: int) -> float:
    """Two-sided p against both parts: the level whose `margin_of_error` just reaches the value; at least 1e-9."""
    from scipy.optimize import brentq

    def excess(exponent: float) -> float:
        return margin_of_error(components, seeds, prompts, math.exp(exponent) / 2) - abs(value)

    if value == 0:
        return 1.0
    smallest = math.log(1e-9)
    return math.exp(brentq(excess, smallest, 0.0)) if excess(smallest) > 0 else 1e-9


def minimum_detectable_effect(
    components: VarianceComponents, seeds: int, prompts: int, level: float, scope: Scope
) -> float:
    """The true difference that is significant with probability `POWER` at a level.

    As in `margin_of_error`, with quantiles that hold the power as well: q is the noncentrality for which Student's t
    exceeds t[1 - level / 2] with probability `POWER`. The seeds' q is divided by the median of sqrt(chi^2 / freedom),
    since the median estimate of a spread from few seeds is below the spread. For a claim about these seeds, the seeds'
    own part does not count, and the residual is a part of the prompts'.
    """
    from scipy.special import chdtri, nctdtrinc, stdtrit

    def quantile(freedom: float) -> float:
        return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - level / 2)))

    if scope == "these seeds":
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
    """Two-way random-effects analysis of variance without replication, of complete values (seeds, prompts).

    With mean squares MS of seeds, prompts and residual (Searle, Casella and McCulloch 1992, "Variance Components"):
    seed = (MS_s - MS_r) / prompts, prompt = (MS_p - MS_r) / seeds, residual = MS_r. With weights the values are those
    linearised: a seed's ratio, and the influence (d[s, i] - ratio[s] w[i]) / mean(w) of a prompt on it.

    Args:
        values: (seeds, prompts), two prompts or more.
        weights: (prompts,), all above 0.
        size: Largest number that the values were computed from; what is only its rounding counts as 0.
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
    """Each seed's figure: (seeds,)."""
    figures: Array = values.mean(1) if weights is None else values.sum(1) / weights.sum()
    return figures


def select_complete(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None = None, prompts: Sequence[object] | None = None
) -> tuple[list[Array], Array | None, Sequence[object] | None]:
    """The arms (seeds, rows), weights (rows,) and prompts (rows,) of the seeds and rows that all have; maybe none.

    A seed without a value in some arm goes first, then every row that lacks a value in a seed left, or whose weight is
    0.

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
    kept: npt.NDArray[np.bool_] = ~np.any(np.isnan(arrays), axis=(0, 1))
    if counts is not None:
        if (counts < 0).any() or any(array[:, kept & (counts == 0)].any() for array in arrays):
            raise ValueError("weights must be 0 or more, and more than 0 where a value is not 0")
        kept &= counts > 0
        counts = counts[kept]
    asked = None if prompts is None else [prompt for prompt, keep in zip(prompts, kept, strict=True) if keep]
    return [np.compress(kept, array, axis=1) for array in arrays], counts, asked


def _compared(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> tuple[list[Array], Array | None, Sequence[object] | None]:
    """Select what is complete, as `select_complete` does; at least one number of each arm must be left."""
    arrays, counts, kept = select_complete(columns, weights, prompts)
    if not arrays[0].size:
        raise ValueError(f"no seeds or no rows to compare: {arrays[0].shape} are left")
    return arrays, counts, kept


def _two(
    baseline: npt.ArrayLike, arm: npt.ArrayLike, weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> tuple[Array, Array, Array | None, Sequence[object] | None]:
    (before, after), counts, kept = _compared([baseline, arm], weights, prompts)
    return before, after, counts, kept


def _pooled(pairs: Sequence[_Pair]) -> list[_SeedPart]:
    """Pool the seeds' part of all pairs.

    The mean of the arms' variances v, weighted by their seeds, estimates the variance if it is the same for all. As
    they share a baseline, the v are correlated by `SHARED_BASELINE` squared, so that K arms give

        K (seeds - 1) / (1 + (K - 1) SHARED_BASELINE^2)

    degrees of freedom instead of K (seeds - 1). The number of arms would be right for arms that are independent of the
    baseline's seeds; it errs in up to 14 % instead of 5 % if the arms vary together, as alphas do whose noise has the
    same directions (simulated: 2 to 8 seeds, 1 to 5 arms, correlations 0 to 0.9; with this formula at most 6 %).

    An arm whose variance is above the others' mean by an F-test at `UNEVEN_LEVEL` is tested by its own variance and
    freedom.
    It stays in the mean of the others: left out, they err in up to 8 % instead of 7 % (one arm of 3 x the spread).
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
    # Without a seed's part and a residual there is only rounding.
    variances = {
        index: _seed_variance(*split[index]) if parts.seed or parts.residual else 0.0 for index, parts, *_ in known
    }
    freedoms = {index: seeds - 1 for index, _, seeds, _ in known}
    others = {index: [other for other in variances if other != index] for index in variances}
    uneven = {
        index
        for index, rest in others.items()
        if rest
        and _is_larger(variances[index], freedoms[index], _mean(variances, freedoms, rest), _freedom(freedoms, rest))
    }
    result = [_SeedPart(parts) for parts in own]
    for index, parts, seeds, n in known:
        pool = [index] if index in uneven else list(variances)
        residual = _mean({other: own[other].residual or 0.0 for other in pool}, freedoms, pool)  # type: ignore[union-attr]
        seed = max(0.0, _mean(variances, freedoms, pool) - residual / n)
        shared = VarianceComponents(seed, parts.prompt, residual, _freedom(freedoms, pool) / (seeds - 1))
        of_others = math.sqrt(_mean(variances, freedoms, others[index])) if others[index] else None
        result[index] = _SeedPart(shared, math.sqrt(variances[index]), of_others, index in uneven)
    return result


def _seed_variance(values: Array, weights: Array | None) -> float:
    """The variance of the seeds' figures."""
    return float(per_seed_values(values, weights).var(ddof=1))


def _mean(numbers: dict[int, float], freedoms: dict[int, int], pool: Sequence[int]) -> float:
    return sum(freedoms[index] * numbers[index] for index in pool) / sum(freedoms[index] for index in pool)


def _freedom(freedoms: dict[int, int], pool: Sequence[int]) -> float:
    """Degrees of freedom of the pooled variance; the formula is in `_pooled`."""
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
    """One arm's comparison, by components that are pooled already."""
    components = seed_part.components
    found = paired_difference(
        pair.before.mean(0),
        pair.after.mean(0),
        pair.weights,
        prompts=pair.prompts,
        comparisons=comparisons,
        seed=seed,
        resamples=resamples,
    )
    seeds = len(pair.before)
    these = None if found.p is None else Claim(found.low, found.high, found.p, found.smallest_p)
    new = None if these is None or components is None or seeds < 2 else _new_seeds(found, these, components, seeds)
    effect = found.detectable
    if effect is not None and new is not None and components is not None:
        effect = max(effect, minimum_detectable_effect(components, seeds, found.n, LEVEL / comparisons, "new seeds"))
    return ArmDifference(
        value=found.value,
        these_seeds=these,
        new_seeds=new,
        seeds=seeds,
        n=found.n,
        detectable=effect,
        comparisons=comparisons,
        components=components,
        seed_spread=seed_part.spread,
        others_spread=seed_part.others_spread,
        uneven=seed_part.uneven,
        true_level=found.true_level,
    )


def _new_seeds(found: PairedDifference, these: Claim, components: VarianceComponents, seeds: int) -> Claim:
    """The claim about new seeds, which holds only if that about these seeds does."""
    p = max(these.p, crossed_p_value(found.value, components, seeds, found.n))
    if these.low is None or these.high is None:
        return Claim(None, None, p, these.smallest_p)
    reach = margin_of_error(components, seeds, found.n, LEVEL / 2)
    return Claim(min(these.low, found.value - reach), max(these.high, found.value + reach), p, these.smallest_p)


def _quantile(freedom: float, tail: float) -> float:
    """Student's quantile of `tail`: below 0 for tails under a half."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, tail))
