"""Arms of a sweep compared over seeds and examples: intervals, p-values, and how much more would settle it.

All arms are trained with the same seeds and measured on the same examples, so that the differences within (seed,
example) are the data, and they are crossed, not nested:

    difference[s, i] = mean + seed[s] + example[i] + residual[s, i]

`seed` is how much more (or less) this seed gained from the arm than others do, `example` how much more this example
did. A claim about the seeds at hand leaves the seed part out. A claim over seeds and examples must hold against both
parts together: a test over seeds and a test over examples that both reject are not enough, because each takes the
other's part as fixed (simulated: wrong in 7 % with six seeds and 11 % with ten, where 5 % are allowed; Clark 1973,
"The Language-as-Fixed-Effect Fallacy", says it of speakers and words).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from neftcli.evaluation.statistics import (
    LEVEL,
    POWER,
    RESAMPLES,
    ROUNDING,
    Array,
    Estimate,
    estimate,
    paired_difference,
)

SEEDS_FOR_A_CLAIM = 6  # 2 / 2^6 < LEVEL <= 2 / 2^5

# More than these are not asked for: so many would not be trained or written.
MOST_ROWS = 10**8
MOST_SEEDS = 10**4

Scope: TypeAlias = Literal["examples", "seeds and examples"]


@dataclass(frozen=True, slots=True)
class Components:
    """The variances of one value's parts, in the squared unit of the figure; estimates below 0 are 0.

    Attributes:
        seed: Between seeds, the same for all examples; None with one seed, which can't show it.
        example: Between examples, the same for all seeds; with one seed the residual is in it.
        residual: What is left of a (seed, example); None with one seed.
    """

    seed: float | None
    example: float
    residual: float | None

    def of_seeds(self, seeds: int, rows: float) -> float:
        """The variance of the mean that more seeds make less: (seed + residual / rows) / seeds."""
        return ((self.seed or 0.0) + (self.residual or 0.0) / rows) / seeds

    def of_rows(self, rows: float) -> float:
        """The rest of it, which only more rows make less: example / rows."""
        return self.example / rows

    def unknown(self) -> bool:
        """Nothing varies, so that nothing can be said about what could be found."""
        return not (self.seed or self.example or self.residual)


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """An arm's figure minus the baseline's, on the same seeds and examples.

    Attributes:
        value: The difference, averaged over the seeds.
        low: Lower end of its 95 % interval over seeds and examples, with one seed over examples; None with fewer than
            two examples.
        high: Its upper end.
        p: Two-sided, not corrected for several comparisons, of a claim about the scope; None with fewer than two
            examples. With the scope "examples" it may be small although the interval, which covers other seeds too,
            holds 0.
        scope: "examples": what is found holds for more examples like these and the models of these seeds. "seeds and
            examples": for other seeds too.
        seeds: Seeds that both arms have.
        n: Examples that count.
        detectable: The smallest true difference within the scope that is found with probability `POWER` at `LEVEL` /
            comparisons; None where none could be found or nothing varies.
        comparisons: Of the family that is corrected together.
        components: What the difference's variance consists of; None with fewer than two examples.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    scope: Scope
    seeds: int
    n: int
    detectable: float | None
    comparisons: int
    components: Components | None


@dataclass(frozen=True, slots=True)
class Needed:
    """What would find a given true difference with probability `POWER`.

    Attributes:
        rows: Rows that suffice with the seeds at hand, within the difference's scope; None where no number does,
            because the seeds differ too much, or where the spread is unknown.
        seeds: Seeds that suffice, with the rows at hand, for a claim over seeds and examples; None where no number
            does, because the rows are too few, or where one seed alone can't tell how much seeds differ.
    """

    rows: int | None
    seeds: int | None


def seeds_for_a_claim(comparisons: int = 1) -> int:
    """The fewest seeds with which a claim over seeds can survive Holm's correction: 2 / 2^seeds < LEVEL / comparisons.

    That many, because no sign-flip test over seeds gives a p below 2 / 2^seeds. Six for one comparison, seven for two
    or three, eight for up to six.
    """
    return math.floor(math.log2(2 * comparisons / LEVEL)) + 1


def arm_estimate(
    values: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """An arm's figure, averaged over seeds, with its 95 % interval over seeds and examples.

    Args:
        values: (seeds, examples), NaN where there is none. A seed without any does not count, nor does an example
            that lacks one in a seed that counts.
        weights: (examples,), e.g. tokens; then the ratio of the sums is estimated, e.g. nats a token.
        seed: Of the resampling; the same input gives the same bits.
        resamples: Bootstrap samples.

    Raises:
        ValueError: No seed or example counts, a number is infinite, or the shapes or weights don't fit.
    """
    (sums,), counts = _compared([values], weights)
    mean = estimate(sums.mean(0), counts, seed=seed, resamples=resamples)
    if mean.low is None or mean.high is None:
        return mean
    ends = _widened(mean.value, mean.low, mean.high, variance_components(sums, counts), *sums.shape)
    return Estimate(mean.value, *ends, mean.n)


def arm_difference(
    baseline: npt.ArrayLike,
    arm: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    comparisons: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ArmDifference:
    """The arm's figure minus the baseline's.

    With fewer seeds than `seeds_for_a_claim(comparisons)` the claim is about these seeds: differences are averaged over
    them and p is that of `paired_difference` over examples. With as many or more it is over seeds and examples, and p
    the largest of three: that test; the same test over seeds, of each seed's figure; and `_crossed_p`, against both
    parts at once. The first two assume no distribution but leave out each other's part; the third does not, but takes
    the parts' means as normal.

    Args:
        baseline: (seeds, examples), of the arm compared with; NaN as in `arm_estimate`.
        arm: (seeds, examples), of the other, in the same order. What either arm lacks counts in neither.
        weights: (examples,), as in `arm_estimate`.
        comparisons: Of the family that is corrected together. It decides the scope and what is detectable by the
            strictest step of Holm's correction.
        seed: Of the resampling; the same input gives the same bits.
        resamples: Bootstrap samples, and sign patterns where not all of them are tried.

    Raises:
        ValueError: As in `arm_estimate`, or fewer than one comparison.
    """
    (before, after), counts = _compared([baseline, arm], weights)
    seeds, n = before.shape
    found = paired_difference(
        before.mean(0), after.mean(0), counts, comparisons=comparisons, seed=seed, resamples=resamples
    )
    scope: Scope = "examples" if seeds < seeds_for_a_claim(comparisons) else "seeds and examples"
    if found.low is None or found.high is None or found.p is None:
        return ArmDifference(found.value, None, None, None, scope, seeds, n, None, comparisons, None)
    components = variance_components(after - before, counts, size=max(np.abs(before).max(), np.abs(after).max()))
    low, high = _widened(found.value, found.low, found.high, components, seeds, n)
    p, detectable = found.p, found.detectable
    if scope == "seeds and examples":
        figures = [_per_seed(values, counts) for values in (before, after)]
        over_seeds = paired_difference(*figures, seed=seed, resamples=resamples).p or 0.0
        p = max(p, over_seeds, _crossed_p(found.value, components, seeds, n))
        if detectable is not None:
            detectable = _detectable(components, seeds, n, LEVEL / comparisons, scope)
    return ArmDifference(found.value, low, high, p, scope, seeds, n, detectable, comparisons, components)


def needed(difference: ArmDifference, target: float) -> Needed:
    """How many rows, or how many seeds, would find a true difference of `target` with probability `POWER`.

    The smallest counts for which what is detectable, computed from the components of the variance, is `target` or less:

        within "examples":   (t[1 - level / 2] + t[POWER]) sqrt((example + residual / seeds) / rows)
        over seeds as well:  margin(level / 2) + margin(1 - POWER), times 1 + 1 / (2 + 2 patterns)

    with level = `LEVEL` / comparisons, `margin` as below and `patterns` the sign patterns of the seeds that the level
    leaves room for. For scores of one size (a win rate) the step of the sign test is added as in `paired_difference`.
    Components are estimates: from three seeds, the count of seeds may be wrong several times over.

    Raises:
        ValueError: The target is not above 0.
    """
    if not target > 0:
        raise ValueError(f"the difference to find must be above 0, not {target}")
    parts, seeds, n = difference.components, difference.seeds, difference.n
    if parts is None or parts.unknown():
        return Needed(None, None)
    level = LEVEL / difference.comparisons
    step = 0.0
    if difference.scope == "examples" and difference.detectable is not None:
        step = max(0.0, difference.detectable - _detectable(parts, seeds, n, level, "examples"))

    def by_rows(rows: int) -> bool:
        return _detectable(parts, seeds, rows, level, difference.scope) + step * n / rows <= target

    def by_seeds(count: int) -> bool:
        return _detectable(parts, count, n, level, "seeds and examples") <= target

    fewest = seeds_for_a_claim(difference.comparisons)
    return Needed(
        _first(range(fewest, MOST_ROWS), by_rows),
        None if parts.seed is None else _first(range(fewest, MOST_SEEDS), by_seeds),
    )


def margin(components: Components, seeds: int, rows: int, tail: float) -> float:
    """How far the mean over seeds and examples lies above the truth at most, but for a chance `tail`.

    sqrt(t_s^2 (seed + residual / rows) / seeds + t_r^2 example / rows), t_s and t_r being Student's quantiles of
    1 - tail for seeds - 1 and rows - 1 degrees of freedom. For normal parts the chance is kept at every tail up to a
    half and with two seeds already, however large each part is (Banerjee 1960, "Approximate Confidence Interval for
    Linear Functions of Means of k Populations When the Population Variances Are Not Equal"): the normal tail beyond
    sqrt(x) is convex in x, so that the chance is largest where all variance lies in one part, and there it is exact.
    Satterthwaite's degrees of freedom, usual here, give 13 % instead of 5 % with two seeds (simulated).

    The residual stands in the seeds' part alone, not in both as there; in every mix of parts tried the chance is still
    kept (simulated, from 2 to 10 seeds and 10 to 200 rows). As no component is below 0, seeds that happen to agree by
    more than the residual allows are not taken for seeds that must.
    """
    from scipy.special import stdtrit

    seed_quantile = float(stdtrit(seeds - 1, tail)) if seeds > 1 else 0.0
    row_quantile = float(stdtrit(rows - 1, tail))
    return math.sqrt(seed_quantile**2 * components.of_seeds(seeds, rows) + row_quantile**2 * components.of_rows(rows))


def variance_components(values: Array, weights: Array | None = None, *, size: float | None = None) -> Components:
    """Two-way random-effects analysis of variance without replication, of complete values (seeds, examples).

    With mean squares MS of seeds, examples and residual (Searle, Casella and McCulloch 1992, "Variance Components"):
    seed = (MS_s - MS_r) / examples, example = (MS_e - MS_r) / seeds, residual = MS_r. With weights the values are
    those linearised: a seed's ratio, and the influence (d[s, i] - ratio[s] w[i]) / mean(w) of an example on it.

    Args:
        values: (seeds, examples), two examples or more.
        weights: (examples,), all above 0.
        size: Largest number that the values were computed from; what is only its rounding counts as 0.
    """
    seeds, n = values.shape
    scale = 1.0 if weights is None else float(weights.mean())
    ratios = _per_seed(values, weights)
    influence = (values - ratios[:, None] * (1.0 if weights is None else weights)) / scale  # (seeds, examples)
    examples = influence.mean(0)
    rounding = (ROUNDING * (float(np.abs(values).max()) if size is None else size) / scale) ** 2

    def mean_square(sum_of_squares: float, freedom: int) -> float:
        return sum_of_squares / freedom if sum_of_squares / freedom > seeds * n * rounding else 0.0

    of_examples = mean_square(seeds * float((examples**2).sum()), n - 1)
    if seeds == 1:
        return Components(None, of_examples, None)
    residual = mean_square(float(((influence - examples) ** 2).sum()), (seeds - 1) * (n - 1))
    of_seeds = mean_square(n * float(((ratios - ratios.mean()) ** 2).sum()), seeds - 1)
    return Components(max(0.0, (of_seeds - residual) / n), max(0.0, (of_examples - residual) / seeds), residual)


def complete(
    columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None = None
) -> tuple[list[Array], Array | None]:
    """The arms (seeds, examples) and the weights (examples,), of the seeds and examples that all have; maybe none.

    A seed without a value in some arm goes first, then every example that lacks a value in a seed left, or whose
    weight is 0.

    Raises:
        ValueError: The shapes or weights don't fit, or a number is infinite.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    counts = None if weights is None else np.asarray(weights, dtype=np.float64)
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 2 or len(set(shapes)) > 1 or (counts is not None and counts.shape != shapes[0][1:]):
        raise ValueError(f"arms must be (seeds, examples), all alike, and weights (examples,), not {shapes}")
    if np.isinf(arrays).any() or (counts is not None and not np.isfinite(counts).all()):
        raise ValueError("every number must be finite, or NaN where there is none")
    seeds = ~np.any([np.isnan(array).all(1) for array in arrays], axis=0)
    arrays = [array[seeds] for array in arrays]
    kept = ~np.isnan(arrays).any((0, 1))
    if counts is not None:
        if (counts < 0).any() or any(array[:, kept & (counts == 0)].any() for array in arrays):
            raise ValueError("weights must be 0 or more, and more than 0 where a value is not 0")
        kept &= counts > 0
        counts = counts[kept]
    return [np.compress(kept, array, axis=1) for array in arrays], counts


def _compared(columns: Sequence[npt.ArrayLike], weights: npt.ArrayLike | None) -> tuple[list[Array], Array | None]:
    """What is complete, and at least one number of each arm."""
    arrays, counts = complete(columns, weights)
    if not arrays[0].size:
        raise ValueError(f"no seeds or no examples to compare: {arrays[0].shape} are left")
    return arrays, counts


def _per_seed(values: Array, weights: Array | None) -> Array:
    """Each seed's figure: (seeds,)."""
    figures: Array = values.mean(1) if weights is None else values.sum(1) / weights.sum()
    return figures


def _widened(
    value: float, low: float, high: float, components: Components, seeds: int, rows: int
) -> tuple[float, float]:
    """An interval over examples, of values averaged over seeds, made one over seeds and examples.

    Squared distances from the value are added, as in `margin` (and in MOVER: Zou and Donner 2008): those of the
    interval given, less the share of its variance that is the residual's, and Student's for the seeds. Simulated
    coverage: 0.94 or more with two seeds or three, where resampling seeds and examples covers 0.50 and 0.74 if seeds
    alone matter.
    """
    from scipy.special import stdtrit

    if seeds == 1:
        return low, high
    variance = components.example + (components.residual or 0.0) / seeds
    share = components.example / variance if variance else 0.0
    of_seeds = float(stdtrit(seeds - 1, LEVEL / 2)) ** 2 * components.of_seeds(seeds, rows)
    below, above = (math.sqrt(share * (value - end) ** 2 + of_seeds) for end in (low, high))
    return value - below, value + above


def _crossed_p(value: float, components: Components, seeds: int, rows: int) -> float:
    """Two-sided p against both parts: the level whose `margin` just reaches the value.

    Not below 1e-9, which no test over seeds comes near.
    """
    from scipy.optimize import brentq

    def excess(exponent: float) -> float:
        return margin(components, seeds, rows, math.exp(exponent) / 2) - abs(value)

    if value == 0:
        return 1.0
    smallest = math.log(1e-9)
    return math.exp(brentq(excess, smallest, 0.0)) if excess(smallest) > 0 else 1e-9


def _detectable(components: Components, seeds: int, rows: int, level: float, scope: Scope) -> float:
    """The smallest true difference found with probability `POWER` at a level; the formulas are in `needed`.

    A sign-flip test over seeds has few patterns, and less power than Student's t. The factor
    1 + 1 / (2 + 2 patterns), patterns counting those on one side with a p below the level, makes up for it: simulated
    powers at the median of what is reported are 0.74 to 0.94, the lower where seeds alone matter.
    """
    if scope == "examples":
        parts = Components(None, components.example + (components.residual or 0.0) / seeds, None)
        return margin(parts, 1, rows, level / 2) + margin(parts, 1, rows, 1 - POWER)
    patterns = max(1, math.ceil(level * 2.0 ** (min(seeds, 60) - 1)) - 1)
    both = margin(components, seeds, rows, level / 2) + margin(components, seeds, rows, 1 - POWER)
    return both * (1 + 1 / (2 + 2 * patterns))


def _first(counts: range, enough: Callable[[int], bool]) -> int | None:
    """The smallest count that is enough; None if none is."""
    place = bisect.bisect_left(counts, True, key=enough)
    return counts[place] if place < len(counts) else None
