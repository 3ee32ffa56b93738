"""From the cells' numbers to the verdict: which arms differ from the baseline, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from neftcli.evaluation.metrics import (
    ANSWER_TOKENS,
    HELD_OUT_LOSS,
    REPETITION_2,
    WIN_RATE,
    WIN_RATE_LENGTH_CONTROLLED,
    label,
)
from neftcli.events import ArmResult, Comparison, MetricValue, Significance
from neftcli.statistics.crossed import ArmDifference, compare_arms, estimate_arm
from neftcli.statistics.multiple import NOT_SIGNIFICANT, holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, RESAMPLES
from neftcli.sweep import verdict_text
from neftcli.sweep.early_stopping import Stopped, is_confirmed
from neftcli.sweep.plan import Arm, baseline_of
from neftcli.sweep.results import WIN_RATES, SweepResults

Differences: TypeAlias = Mapping[tuple[Arm, str], ArmDifference]
Compared: TypeAlias = Mapping[Arm, Mapping[str, Comparison]]

DESCRIBED = (WIN_RATE, ANSWER_TOKENS, REPETITION_2)
BASELINE = "alpha 0"


@dataclass(frozen=True)
class Verdict:
    """Findings of a sweep.

    Attributes:
        arms: A row each, in the order of the plan.
        recommended: The arm to take; None if nothing can be recommended, or no metric chooses between all arms.
        conclusion: The result, sentence by sentence.
        scope: Population that the verdicts are about.
    """

    arms: tuple[ArmResult, ...]
    recommended: Arm | None
    conclusion: tuple[str, ...]
    scope: str


def judge_sweep(
    results: SweepResults,
    metrics: Sequence[str],
    dropped: Sequence[Arm] = (),
    delta: float | None = None,
    stopped: Sequence[Stopped] = (),
    *,
    resamples: int = RESAMPLES,
    figures: bool = True,
) -> Verdict:
    """Judge all arms, on all held-out rows; the correction for several arms pays for the choice between them.

    Args:
        results: Measurements of the cells.
        metrics: Names of the metrics that decide; the first one chooses.
        dropped: Arms that got no further seeds.
        delta: Smallest effect of interest in the first metric, in its unit; None if it is not known.
        stopped: Baselines whose arms stopped early.
        resamples: Sign patterns of a test, and bootstrap samples of an arm's own figure.
        figures: Estimate each arm's own figures. They decide nothing, and their bootstrap intervals take most of the
            time.
    """
    found = _differences(results, metrics, resamples)
    compared = _compared(results, found)
    shown = tuple(dict.fromkeys([*metrics, *DESCRIBED])) if figures else ()
    rows = tuple(_row(results, arm, shown, compared[arm], arm in dropped, resamples) for arm in results.arms)
    lines = [
        line
        for metric in metrics
        for line in verdict_text.findings(metric, results.direction(metric), rows, _reasons(results, metric, compared))
    ]
    # A stop counts if it saved cells and all that is measured supports it.
    saved = [stop for stop in stopped if results.measured_seeds(stop.baseline) < stop.planned]
    confirmed = [stop for stop in saved if is_confirmed(results, metrics[0], stop, dropped, delta)]
    lines += [
        stop.sentence(metrics[0])
        if stop in confirmed
        else f"Stopped early by a look after {stop.seeds} of {stop.planned} seeds; the verdict uses all that is "
        "measured."
        for stop in saved
    ]
    futile = [stop.baseline for stop in confirmed if stop.reason == "futility"]
    said, recommended = _advice(results, metrics, dropped, compared, futile)
    lines += said
    of_first = {arm.name(): one for (arm, metric), one in found.items() if metric == metrics[0]}
    lines += verdict_text.uneven(metrics[0], of_first)
    lines += verdict_text.skewed({(arm.name(), metric): one for (arm, metric), one in found.items()})
    undecided = [
        one
        for (arm, metric), one in found.items()
        if metric == metrics[0] and not _is_decided(compared[arm][metric]) and baseline_of(arm) not in futile
    ]
    lines += verdict_text.plan(metrics[0], undecided, delta, documents=results.is_of_documents(metrics[0]))
    if found and metrics[0] == HELD_OUT_LOSS and not {*metrics} & {*WIN_RATES}:
        lines.append(
            "The paper found its gains in the answers and hardly in the loss: "
            f"--metric {WIN_RATE_LENGTH_CONTROLLED} --judge URL tests them."
        )
    return Verdict(rows, recommended, tuple(lines), verdict_text.scope(list(found.values())))


def _differences(results: SweepResults, metrics: Sequence[str], resamples: int) -> dict[tuple[Arm, str], ArmDifference]:
    """The family that is corrected together: every noised arm and metric with enough seeds and prompts.

    What is detectable depends on the size of the family, in which those that could not be significant do not count.
    """
    family = [
        (arm, metric) for metric in metrics for arm in results.arms if arm.alpha and not _lack(results, metric, arm)
    ]
    found = _compare_all(results, family, len(family), resamples)
    counted = sum(one.these_seeds is not None and one.these_seeds.smallest_p < LEVEL for one in found.values())
    return found if counted in (0, len(family)) else _compare_all(results, family, counted, resamples)


def _compare_all(
    results: SweepResults, family: Sequence[tuple[Arm, str]], comparisons: int, resamples: int
) -> dict[tuple[Arm, str], ArmDifference]:
    """The comparisons of a family, each arm with its own baseline."""
    groups: dict[tuple[str, Arm], list[Arm]] = {}
    for arm, metric in family:
        groups.setdefault((metric, baseline_of(arm)), []).append(arm)
    found = {}
    for (metric, baseline), arms in groups.items():
        differences = compare_arms(
            results.values(metric, baseline),
            [results.values(metric, arm) for arm in arms],
            results.weights(metric, arms[0]),
            prompts=results.prompts(metric),
            comparisons=comparisons,
            resamples=resamples,
        )
        found.update({(arm, metric): one for arm, one in zip(arms, differences, strict=True)})
    return {pair: found[pair] for pair in family}


def _lack(results: SweepResults, metric: str, arm: Arm) -> str:
    """The reason why an arm can't be compared with its baseline; an empty string if it can."""
    (values, _), _ = results.shared(metric, [baseline_of(arm), arm])
    seeds, rows = values.shape
    if not seeds:
        return "no seed is done both with noise and without"
    prompts = results.prompts(metric)
    if rows < MIN_PROMPTS or (prompts is not None and len(set(prompts)) < MIN_PROMPTS):
        return f"fewer than {MIN_PROMPTS} prompts have a value in every seed"
    return ""


def _reasons(results: SweepResults, metric: str, compared: Compared) -> dict[str, str]:
    """The name of each noised arm that was not compared in a metric, and why."""
    return {
        arm.name(): _lack(results, metric, arm) for arm in results.arms if arm.alpha and metric not in compared[arm]
    }


def _compared(results: SweepResults, found: Differences) -> Compared:
    """Each arm's comparisons, with p corrected over all arms and metrics: for these seeds, and for new ones."""
    these = {pair: one.these_seeds for pair, one in found.items() if one.these_seeds is not None}
    new = {pair: one.new_seeds for pair, one in found.items() if one.new_seeds is not None}
    of_these, of_new = (
        dict(
            zip(
                claims,
                holm_adjust([one.p for one in claims.values()], [one.smallest_p for one in claims.values()]),
                strict=True,
            )
        )
        for claims in (these, new)
    )
    compared: dict[Arm, dict[str, Comparison]] = {arm: {} for arm in results.arms}
    for (arm, metric), one in found.items():
        pair = arm, metric
        claim, p = (new.get(pair), of_new.get(pair)) if pair in new else (these.get(pair), of_these.get(pair))
        seeds = None
        if pair in new:
            narrow = these[pair]
            seeds = Significance(
                narrow.low, narrow.high, narrow.p, of_these[pair], name_direction(of_these[pair], one.value)
            )
        word = name_verdict(p, one.value, results.direction(metric)) if seeds else name_direction(p, one.value)
        if seeds and word == NOT_SIGNIFICANT:
            word = seeds.verdict  # lower or higher for these seeds, or not significant either
        compared[arm][metric] = Comparison(
            metric=metric,
            against=BASELINE,
            difference=one.value,
            low=claim.low if claim else None,
            high=claim.high if claim else None,
            p=claim.p if claim else None,
            p_adjusted=p,
            n=one.n,
            detectable=one.detectable,
            verdict=word,
            scope="new seeds" if seeds else "these seeds",
            seeds=one.seeds,
            these_seeds=seeds,
        )
    return compared


def _row(
    results: SweepResults,
    arm: Arm,
    metrics: Sequence[str],
    compared: Mapping[str, Comparison],
    dropped: bool,
    resamples: int,
) -> ArmResult:
    """An arm's row, with its own figures in some metrics."""
    values = {}
    for metric in metrics:
        [shown], _ = results.shared(metric, [arm])
        if shown.size:
            figure = estimate_arm(
                results.values(metric, arm),
                results.weights(metric, arm),
                prompts=results.prompts(metric),
                resamples=resamples,
            )
            values[metric] = MetricValue(figure.value, figure.low, figure.high, figure.n)
    return ArmResult(arm.alpha, arm.label(), results.measured_seeds(arm), values, tuple(compared.values()), dropped)


def _is_decided(one: Comparison) -> bool:
    """Return whether a claim about new seeds is made."""
    return one.verdict in ("better", "worse")


def _best(results: SweepResults, metric: str, arms: Sequence[Arm]) -> Arm | None:
    """The best of some arms by the mean over the seeds and rows that all have; None if there are none."""
    if not arms:
        return None
    arrays, _ = results.shared(metric, arms)
    if not arrays[0].size:
        return None
    sign = 1.0 if results.direction(metric) == "lower" else -1.0
    # All have the same weights, whose sum does not change the order.
    badness = {arm: sign * float(values.sum()) for arm, values in zip(arms, arrays, strict=True)}
    return min(badness, key=badness.__getitem__)


def _advice(
    results: SweepResults,
    metrics: Sequence[str],
    dropped: Sequence[Arm],
    compared: Compared,
    futile: Sequence[Arm],
) -> tuple[list[str], Arm | None]:
    """State the recommendation and its reason, and return the arm if there is a single one.

    An arm is recommended if it is better than its baseline over new seeds, worse in no metric, and the best of such
    arms and of all baselines in the first metric. Arms that were dropped count only if no other arm qualifies.
    Otherwise the best baseline is recommended, if a claim about new seeds could have been made.
    """
    metric, lines, chosen = metrics[0], [], []
    groups = results.groups(metric)
    for group in groups:
        tested = [arm for arm in group if metric in compared[arm]]
        better = [arm for arm in tested if compared[arm][metric].verdict == "better"]
        sound = [arm for arm in better if not _worse_in(compared[arm])]
        sound = [arm for arm in sound if arm not in dropped] or sound
        baselines = [arm for arm in group if not arm.alpha]
        lines += [verdict_text.but_worse(arm.name(), worse) for arm in better if (worse := _worse_in(compared[arm]))]
        best = _best(results, metric, [*sound, *baselines])
        if not tested:
            continue
        if all(compared[arm][metric].scope == "these seeds" for arm in tested):
            lines.append(verdict_text.no_recommendation())
            continue
        if best is None:
            lines.append(verdict_text.nothing_in_common())
            continue
        if best in sound:
            lines.append(verdict_text.recommended(metric, best.name(), [arm.name() for arm in sound if arm != best]))
        else:
            words = [compared[arm][metric].verdict for arm in tested]
            lines.append(verdict_text.recommended_baseline(best.name(), metric, words, settled=best in futile))
        chosen.append(best)
    if len(groups) > 1 and chosen:
        of_others = metric in WIN_RATES
        what = "against alpha 0 with the same options" if of_others else "over tokens, which are not the same"
        lines.append(
            f"{verdict_text.capital(label(metric))} is {what}: it can't choose between these, and best points nowhere."
        )
    return lines, chosen[0] if len(chosen) == 1 and len(groups) == 1 else None


def _worse_in(compared: Mapping[str, Comparison]) -> list[str]:
    return [label(one.metric) for one in compared.values() if one.verdict == "worse"]
