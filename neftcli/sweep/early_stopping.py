"""Early stopping: after each seed from the third on, drop arms and stop groups that need no further seeds.

A group is a baseline (alpha 0) and the arms that are compared with it. After each seed, for the arms that are left:

1. Success: an arm is better than the baseline for new seeds, at p < SUCCESS / number of noised arms. The group stops.
2. Drop: an arm is worse than the leading arm, one-sided at DROP. It gets no further seeds; the baseline is never
   dropped.
3. Futility: for each noised arm that is left, the upper end of a one-sided interval of its gain over the baseline, at
   FUTILITY, is below delta, the smallest effect of interest. The group stops with the result "any gain over delta is
   excluded", which holds with 95 % over all looks.

All tests are those of the verdict (`compare_arms`: seeds and prompts crossed, the seeds' variance pooled over the arms
that are left). The verdict follows at the usual level of 5 %. Looking early costs little of it, because the level for
success is so strict (Haybittle 1971; Peto et al. 1976), and because a stop for futility or a drop only takes away
chances to be "better". `benchmarks/calibrate.py` simulates the error rates; docs/sweep.md shows them.

A gain below delta may be missed: that is what delta means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy.typing as npt

from neftcli.evaluation.number_format import format_amount
from neftcli.metrics.registry import Direction, label
from neftcli.statistics.crossed import (
    CrossedDifference,
    compare_arms,
    estimate_crossed_differences,
    margin_of_error,
    select_complete,
)
from neftcli.statistics.paired import MIN_PROMPTS, RESAMPLES
from neftcli.sweep.plan import baseline_of
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.recipe.schema import Sweep
    from neftcli.sweep.plan import Arm
    from neftcli.sweep.results import SweepResults

SUCCESS = 0.001
"""Two-sided level of "better" before the last seed, divided by the number of noised arms."""
DROP = 0.025
"""One-sided level of "worse than the leading arm"."""
FUTILITY = 0.015
"""One-sided level, at each look, of the interval that excludes gains over delta. A true gain of delta is then wrongly
excluded in at most 5 % of sweeps of up to 12 seeds (simulated; with 0.05 at each look in up to 14 %)."""
FIRST_LOOK = 3
"""Seeds before the first look: with two, Student's quantiles are so large that nothing is decided."""
FEWEST_SEEDS = 6
"""Seeds from which `sweep.early_stopping: auto` stops early: with fewer, little is saved."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An arm that gets no further seeds.

    Attributes:
        arm: The arm.
        leader: The leading arm, the best by the mean over the seeds so far.
        by: Difference from the leader in the metric's unit; above 0.
        p: One-sided p of this difference.
        seeds: Seeds after which it was dropped.
    """

    arm: Arm
    leader: Arm
    by: float
    p: float
    seeds: int

    def sentence(self, metric: str) -> str:
        """Return a sentence: "alpha 10 gets no further seeds: worse than alpha 5 by 0.012 in ..."."""
        why = f"worse than {self.leader.name()} by {format_amount(metric, self.by)} in {label(metric)}"
        seeds = count_noun(self.seeds, "seed")
        return f"{self.arm.name()} gets no further seeds: {why} (one-sided p = {self.p:.1g}, {seeds})"


@dataclass(frozen=True, slots=True)
class Stopped:
    """Reason why a baseline's group of arms ended before its last seed.

    Attributes:
        baseline: The arm without noise.
        reason: "success" or "futility".
        seeds: Seeds after which it stopped.
        planned: Seeds that were planned.
        arm: With success the arm that is better than the baseline, the leading one if there are several; else None.
        gain: Its gain in the metric's unit; None without it.
        excluded: With futility, gains over this are excluded for every arm that is left: delta, or 0 if all noised arms
            were dropped, the last of them because it was worse than the baseline. None with success.
    """

    baseline: Arm
    reason: Literal["success", "futility"]
    seeds: int
    planned: int
    arm: Arm | None = None
    gain: float | None = None
    excluded: float | None = None

    def sentence(self, metric: str) -> str:
        """Return a sentence for the log and the verdict."""
        options = f" with {self.baseline.label()}" if self.baseline.grid else ""
        when = f"Stopped early{options}, after {self.seeds} of {count_noun(self.planned, 'seed')}"
        if self.arm is not None and self.gain is not None:
            return (
                f"{when}: {self.arm.name()} is better than alpha 0 by {format_amount(metric, self.gain)} in "
                f"{label(metric)}, at the level for stopping early (p < {SUCCESS:g} after correction)."
            )
        if not self.excluded:
            return (
                f"{when}: no alpha is left, each was worse than the leading arm, at last alpha 0, in {label(metric)}."
            )
        return (
            f"{when}: for every arm left, a gain over {format_amount(metric, self.excluded)} in {label(metric)} is "
            "excluded (95 %)."
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Decisions of a look, or of all looks so far.

    Attributes:
        dropped: Arms that get no further seeds, in the order in which they were dropped.
        stopped: Groups that ended.
    """

    dropped: tuple[Dropped, ...] = ()
    stopped: tuple[Stopped, ...] = ()

    def is_needed(self, arm: Arm) -> bool:
        """Return whether an arm gets further seeds."""
        if baseline_of(arm) in [stopped.baseline for stopped in self.stopped]:
            return False
        return arm not in [dropped.arm for dropped in self.dropped]


def is_confirmed(
    results: SweepResults, metric: str, stop: Stopped, dropped: Sequence[Arm], delta: float | None
) -> bool:
    """Return whether all results support a stop that an earlier look decided.

    There may be more seeds than that look had: several are trained at a time, and earlier calls may have trained them.
    """
    arms = [arm for arm in results.arms if baseline_of(arm) == stop.baseline and arm not in dropped]
    if results.evaluated_seeds(stop.baseline) <= stop.seeds or len(arms) < 2:
        return True
    noised = [arm for arm in results.arms if arm.alpha]
    better = results.direction(metric)
    if better == "none":
        return False
    decision = look(
        {arm: results.values(metric, arm) for arm in arms},
        stop.baseline,
        results.weights(metric, stop.baseline),
        prompts=results.prompts(metric),
        better=better,
        delta=delta,
        comparisons=len(noised),
        planned=stop.planned,
    )
    return [other.reason for other in decision.stopped] == [stop.reason]


def stops_early(sweep: Sweep) -> bool:
    """Return whether a sweep stops early, by its settings."""
    if sweep.early_stopping == "auto":
        return sweep.seeds >= FEWEST_SEEDS
    return sweep.early_stopping == "always" and sweep.seeds > FIRST_LOOK


def decide(
    results: SweepResults, metric: str, delta: float | None, *, done: int, resamples: int = RESAMPLES
) -> Decision:
    """Apply the rules after each seed up to the last one that is done, from the first look on.

    A look uses the seeds up to it only, so the decisions depend on nothing but the cells' values: a resumed sweep
    repeats them, regardless of how many seeds it trains at a time.

    Args:
        results: Results of the sweep.
        metric: Id of the metric that decides.
        delta: Smallest effect of interest in its unit; None for no futility.
        done: Number of seeds, from the first one on, whose cells have ended.
        resamples: As in `look`.
    """
    better, planned = results.direction(metric), len(results.seeds)
    noised = [arm for arm in results.arms if arm.alpha]
    dropped: list[Dropped] = []
    stopped: list[Stopped] = []
    if better == "none":
        return Decision()
    for baseline in dict.fromkeys(map(baseline_of, noised)):
        values = {arm: results.values(metric, arm) for arm in results.arms if baseline_of(arm) == baseline}
        left = list(values)
        for seeds in range(FIRST_LOOK, min(done + 1, planned)):
            decision = look(
                {arm: values[arm][:seeds] for arm in left},
                baseline,
                results.weights(metric, baseline),
                prompts=results.prompts(metric),
                better=better,
                delta=delta,
                comparisons=len(noised),
                planned=planned,
                resamples=resamples,
            )
            dropped += decision.dropped
            stopped += decision.stopped
            left = [arm for arm in left if decision.is_needed(arm)]
            if not left:
                break
    return Decision(tuple(dropped), tuple(stopped))


def look(
    values: Mapping[Arm, npt.NDArray],  # type: ignore[type-arg]
    baseline: Arm,
    weights: npt.ArrayLike | None = None,
    *,
    prompts: Sequence[object] | None = None,
    better: Direction,
    delta: float | None,
    comparisons: int,
    planned: int,
    resamples: int = RESAMPLES,
) -> Decision:
    """Apply the rules once to a baseline's group.

    An arm with fewer than `FIRST_LOOK` seeds, or too few prompts, in common with the baseline (because cells failed) is
    neither tested nor dropped, and the group does not stop for futility while it is left.

    Args:
        values: (seeds so far, rows) of each arm that is left, with the baseline; NaN if there is no value.
        baseline: The arm without noise.
        weights: (rows,), or None, as in `compare_arms`.
        prompts: (rows,), or None, as in `compare_arms`.
        better: Which values are better.
        delta: Smallest effect of interest; None for no futility.
        comparisons: Number of noised arms in the sweep.
        planned: Seeds that are planned.
        resamples: Sign patterns of a test; more are drawn if the level for success needs them.

    Returns:
        The arms dropped now, and the group if it stops now.
    """
    sign = -1.0 if better == "lower" else 1.0
    seeds = len(values[baseline])
    tested = [arm for arm in values if arm != baseline and _is_enough(values[baseline], values[arm], weights, prompts)]
    if not tested:
        return Decision()
    columns = [values[arm] for arm in tested]
    differences = estimate_crossed_differences(values[baseline], columns, weights, prompts=prompts)
    by_arm = dict(zip(tested, differences, strict=True))
    gains = {baseline: 0.0, **{arm: sign * difference.value for arm, difference in by_arm.items()}}
    level = SUCCESS / comparisons
    enough = max(resamples, math.ceil(4 / level))  # patterns for a p below the level
    p_values = _p_values(values, baseline, by_arm, level, weights, prompts, enough)
    winners = [arm for arm, p in p_values.items() if gains[arm] > 0 and p < level]
    if winners:
        best = max(winners, key=gains.__getitem__)
        return Decision(stopped=(Stopped(baseline, "success", seeds, planned, best, gains[best]),))
    leader = max(gains, key=gains.__getitem__)
    others = [arm for arm in (baseline, *tested) if arm != leader]
    worse = _worse_than(leader, values, others, sign, weights, prompts, resamples)
    dropped = tuple(drop for drop in worse if drop.arm != baseline)
    left = [arm for arm in values if arm != baseline and arm not in [drop.arm for drop in dropped]]
    if not left:
        return Decision(dropped, (Stopped(baseline, "futility", seeds, planned, excluded=0.0),))
    if delta is not None and all(arm in by_arm and _largest_gain(by_arm[arm], sign) < delta for arm in left):
        return Decision(dropped, (Stopped(baseline, "futility", seeds, planned, excluded=delta),))
    return Decision(dropped)


def _worse_than(
    leader: Arm,
    values: Mapping[Arm, npt.NDArray],  # type: ignore[type-arg]
    others: Sequence[Arm],
    sign: float,
    weights: npt.ArrayLike | None,
    prompts: Sequence[object] | None,
    resamples: int,
) -> tuple[Dropped, ...]:
    """Return the arms that are significantly worse than the leader; the seeds' variance is pooled over all of them."""
    compared = [arm for arm in others if _is_enough(values[leader], values[arm], weights, prompts)]
    if not compared:
        return ()
    columns = [values[arm] for arm in compared]
    differences = estimate_crossed_differences(values[leader], columns, weights, prompts=prompts)
    by_arm = dict(zip(compared, differences, strict=True))
    p_values = _p_values(values, leader, by_arm, 2 * DROP, weights, prompts, resamples)
    return tuple(
        Dropped(arm, leader, -sign * by_arm[arm].value, p / 2, len(values[leader]))
        for arm, p in p_values.items()
        if sign * by_arm[arm].value < 0 and p / 2 < DROP
    )


def _p_values(
    values: Mapping[Arm, npt.NDArray],  # type: ignore[type-arg]
    reference: Arm,
    by_arm: Mapping[Arm, CrossedDifference],
    level: float,
    weights: npt.ArrayLike | None,
    prompts: Sequence[object] | None,
    resamples: int,
) -> dict[Arm, float]:
    """Return the p for new seeds, as in the verdict, of the arms for which it may be below the level.

    The sign-flip test takes most of the time and can only make p larger, so it runs only if an arm needs it.
    """
    candidates = [arm for arm, difference in by_arm.items() if difference.is_beyond(level)]
    if not candidates:
        return {}
    columns = [values[arm] for arm in by_arm]
    compared = compare_arms(values[reference], columns, weights, prompts=prompts, resamples=resamples)
    p_values = {}
    for arm, difference in zip(by_arm, compared, strict=True):
        if arm in candidates and difference.new_seeds is not None:
            p_values[arm] = difference.new_seeds.p
    return p_values


def _is_enough(
    first: npt.ArrayLike, second: npt.ArrayLike, weights: npt.ArrayLike | None, prompts: Sequence[object] | None
) -> bool:
    """Return whether two arms have enough seeds and prompts in common to be compared."""
    (values, _), _, kept = select_complete([first, second], weights, prompts)
    seeds, rows = values.shape
    return seeds >= FIRST_LOOK and (rows if kept is None else len(set(kept))) >= MIN_PROMPTS


def _largest_gain(difference: CrossedDifference, sign: float) -> float:
    """Return the upper end of the one-sided interval of an arm's gain; infinite without variance components."""
    if difference.components is None:
        return math.inf
    return sign * difference.value + margin_of_error(difference.components, difference.seeds, difference.n, FUTILITY)
