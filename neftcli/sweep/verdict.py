"""Judge the results of a sweep: which arms differ from the baseline, and which one is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from neftcli.events import ArmResult, Comparison, MetricValue, ScopeId, Significance, VerdictId
from neftcli.metrics.registry import (
    ANSWER_TOKENS,
    HELD_OUT_LOSS,
    REPETITION_2,
    WIN_RATE,
    WIN_RATE_LENGTH_CONTROLLED,
    label,
)
from neftcli.statistics.crossed import ArmDifference, Claim, compare_arms, estimate_arm
from neftcli.statistics.multiple import holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, RESAMPLES
from neftcli.sweep import verdict_text
from neftcli.sweep.early_stopping import Stopped, is_confirmed
from neftcli.sweep.plan import Arm, baseline_of
from neftcli.sweep.results import WIN_RATES, SweepResults
from neftcli.wording import count_noun

Differences: TypeAlias = Mapping[tuple[Arm, str], ArmDifference]
Compared: TypeAlias = Mapping[Arm, Mapping[str, Comparison]]

DESCRIBED = (WIN_RATE, ANSWER_TOKENS, REPETITION_2)


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
    """Judge all arms on all held-out rows; the correction for several arms pays for the choice between them.

    Args:
        results: Results of the cells.
        metrics: Ids of the metrics that decide; the first one chooses the recommended arm.
        dropped: Arms to which early stopping gave no further seeds.
        delta: Smallest effect of interest in the first metric, in its unit; None if it is unknown.
        stopped: Groups that early stopping ended.
        resamples: Sign patterns of a test, and bootstrap samples of an arm's own value.
        figures: Estimate each arm's own values. They decide nothing, and their bootstrap takes most of the time.
    """
    differences = _compare_family(results, metrics, resamples)
    compared = _correct(results, differences)
    shown = tuple(dict.fromkeys([*metrics, *DESCRIBED])) if figures else ()
    rows = tuple(_row(results, arm, shown, compared[arm], arm in dropped, resamples) for arm in results.arms)
    lines: list[str] = []
    for metric in metrics:
        reasons = _reasons_not_compared(results, metric, compared)
        lines += verdict_text.findings(metric, results.direction(metric), rows, reasons)
    stops, futile = _describe_stops(results, metrics[0], stopped, dropped, delta)
    advice, recommended = _advise(results, metrics, dropped, compared, futile)
    lines += [*stops, *advice]
    first = {arm: difference for (arm, metric), difference in differences.items() if metric == metrics[0]}
    lines += verdict_text.uneven(metrics[0], {arm.name(): difference for arm, difference in first.items()})
    named = {(arm.name(), metric): difference for (arm, metric), difference in differences.items()}
    lines += verdict_text.skewed(named)
    undecided = [
        difference
        for arm, difference in first.items()
        if not _is_decided(compared[arm][metrics[0]]) and baseline_of(arm) not in futile
    ]
    lines += verdict_text.plan(metrics[0], undecided, delta, documents=results.is_of_documents(metrics[0]))
    if differences and metrics[0] == HELD_OUT_LOSS and not {*metrics} & {*WIN_RATES}:
        lines.append(
            "The paper found its gains in the answers and hardly in the loss: "
            f"--metric {WIN_RATE_LENGTH_CONTROLLED} --judge URL tests them."
        )
    return Verdict(rows, recommended, tuple(lines), verdict_text.verdict_scope(list(differences.values())))


def _describe_stops(
    results: SweepResults, metric: str, stopped: Sequence[Stopped], dropped: Sequence[Arm], delta: float | None
) -> tuple[list[str], list[Arm]]:
    """Return a sentence for each early stop that saved cells, and the baselines that confirmed futility.

    A stop counts only if all results support it: more seeds than its look had may be evaluated.
    """
    lines, futile = [], []
    for stop in stopped:
        if results.evaluated_seeds(stop.baseline) >= stop.planned:
            continue
        if not is_confirmed(results, metric, stop, dropped, delta):
            look = f"Stopped early by a look after {stop.seeds} of {count_noun(stop.planned, 'seed')}"
            lines.append(f"{look}; the verdict uses all results.")
            continue
        lines.append(stop.sentence(metric))
        if stop.reason == "futility":
            futile.append(stop.baseline)
    return lines, futile


def _compare_family(results: SweepResults, metrics: Sequence[str], resamples: int) -> Differences:
    """Compare the family that is corrected together: every noised arm and metric with enough seeds and prompts.

    The minimum detectable effect depends on the size of the family; comparisons that could not be significant don't
    count.
    """
    family = [
        (arm, metric)
        for metric in metrics
        for arm in results.arms
        if arm.alpha and not _reason_not_compared(results, metric, arm)
    ]
    differences = _compare_pairs(results, family, len(family), resamples)
    claims = [difference.these_seeds for difference in differences.values()]
    counted = sum(claim is not None and claim.smallest_p < LEVEL for claim in claims)
    return differences if counted in (0, len(family)) else _compare_pairs(results, family, counted, resamples)


def _compare_pairs(
    results: SweepResults, family: Sequence[tuple[Arm, str]], comparisons: int, resamples: int
) -> Differences:
    """Compare each arm of a family with its own baseline."""
    groups: dict[tuple[str, Arm], list[Arm]] = {}
    for arm, metric in family:
        groups.setdefault((metric, baseline_of(arm)), []).append(arm)
    differences = {}
    for (metric, baseline), arms in groups.items():
        compared = compare_arms(
            results.values(metric, baseline),
            [results.values(metric, arm) for arm in arms],
            results.weights(metric, arms[0]),
            prompts=results.prompts(metric),
            comparisons=comparisons,
            resamples=resamples,
        )
        for arm, difference in zip(arms, compared, strict=True):
            differences[arm, metric] = difference
    return {pair: differences[pair] for pair in family}


def _reason_not_compared(results: SweepResults, metric: str, arm: Arm) -> str:
    """Return the reason why an arm can't be compared with its baseline; an empty string if it can."""
    (values, _), _ = results.shared(metric, [baseline_of(arm), arm])
    seeds, rows = values.shape
    if not seeds:
        return "no seed is finished both with noise and without"
    prompts = results.prompts(metric)
    if rows < MIN_PROMPTS or (prompts is not None and len(set(prompts)) < MIN_PROMPTS):
        return f"fewer than {MIN_PROMPTS} prompts have a value in every seed"
    return ""


def _reasons_not_compared(results: SweepResults, metric: str, compared: Compared) -> dict[str, str]:
    """Return the reason for each noised arm that was not compared in a metric, by its name."""
    arms = [arm for arm in results.arms if arm.alpha and metric not in compared[arm]]
    return {arm.name(): _reason_not_compared(results, metric, arm) for arm in arms}


def _correct(results: SweepResults, differences: Differences) -> Compared:
    """Return each arm's comparisons, with p corrected over all arms and metrics: for these seeds and for new ones."""
    these = {pair: difference.these_seeds for pair, difference in differences.items() if difference.these_seeds}
    new = {pair: difference.new_seeds for pair, difference in differences.items() if difference.new_seeds}
    p_these, p_new = _holm(these), _holm(new)
    compared: dict[Arm, dict[str, Comparison]] = {arm: {} for arm in results.arms}
    for pair, difference in differences.items():
        arm, metric = pair
        claim, p = these.get(pair), p_these.get(pair)
        verdict = name_direction(p, difference.value)
        scope, of_these_seeds = ScopeId.THESE_SEEDS, None
        if pair in new:
            own = these[pair]
            of_these_seeds = Significance(own.low, own.high, own.p, p_these[pair], verdict)
            claim, p, scope = new[pair], p_new[pair], ScopeId.NEW_SEEDS
            of_new_seeds = name_verdict(p, difference.value, results.direction(metric))
            if of_new_seeds != VerdictId.NOT_SIGNIFICANT:  # otherwise the verdict is the one for these seeds
                verdict = of_new_seeds
        compared[arm][metric] = Comparison(
            metric=metric,
            against=baseline_of(arm).id(),
            difference=difference.value,
            low=claim.low if claim else None,
            high=claim.high if claim else None,
            p=claim.p if claim else None,
            p_adjusted=p,
            n=difference.n,
            detectable=difference.detectable,
            verdict=verdict,
            scope=scope,
            seeds=difference.seeds,
            these_seeds=of_these_seeds,
        )
    return compared


def _holm(claims: Mapping[tuple[Arm, str], Claim]) -> dict[tuple[Arm, str], float]:
    """Return the corrected p of each claim."""
    p_values = [claim.p for claim in claims.values()]
    smallest = [claim.smallest_p for claim in claims.values()]
    return dict(zip(claims, holm_adjust(p_values, smallest), strict=True))


def _row(
    results: SweepResults,
    arm: Arm,
    metrics: Sequence[str],
    compared: Mapping[str, Comparison],
    dropped: bool,
    resamples: int,
) -> ArmResult:
    """Return the row of an arm, with its own values in some metrics."""
    values = {}
    for metric in metrics:
        [complete], _ = results.shared(metric, [arm])
        if complete.size:
            mean = estimate_arm(
                results.values(metric, arm),
                results.weights(metric, arm),
                prompts=results.prompts(metric),
                resamples=resamples,
            )
            values[metric] = MetricValue(mean.value, mean.low, mean.high, mean.n)
    return ArmResult(arm.id(), arm.alpha, results.evaluated_seeds(arm), values, tuple(compared.values()), dropped)


def _is_decided(comparison: Comparison) -> bool:
    """Return whether a claim about new seeds is made."""
    return comparison.verdict in (VerdictId.BETTER, VerdictId.WORSE)


def _best(results: SweepResults, metric: str, arms: Sequence[Arm]) -> Arm | None:
    """Return the best arm by the mean over the seeds and rows that all have; None if there are none."""
    if not arms:
        return None
    arrays, _ = results.shared(metric, arms)
    if not arrays[0].size:
        return None
    sign = 1.0 if results.direction(metric) == "lower" else -1.0
    # All have the same weights, whose sum does not change the order.
    badness = {arm: sign * float(values.sum()) for arm, values in zip(arms, arrays, strict=True)}
    return min(badness, key=badness.__getitem__)


def _advise(
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
    metric = metrics[0]
    lines: list[str] = []
    chosen: list[Arm] = []
    groups = results.groups(metric)
    for group in groups:
        tested = [arm for arm in group if metric in compared[arm]]
        sound = []
        for arm in tested:
            if compared[arm][metric].verdict == VerdictId.BETTER:
                worse = _worse_in(compared[arm])
                if worse:
                    lines.append(verdict_text.but_worse(arm.name(), worse))
                else:
                    sound.append(arm)
        sound = [arm for arm in sound if arm not in dropped] or sound
        baselines = [arm for arm in group if not arm.alpha]
        best = _best(results, metric, [*sound, *baselines])
        if not tested:
            continue
        if all(compared[arm][metric].scope == ScopeId.THESE_SEEDS for arm in tested):
            lines.append(verdict_text.no_recommendation())
            continue
        if best is None:
            lines.append(verdict_text.nothing_in_common())
            continue
        if best in sound:
            lines.append(verdict_text.recommended(metric, best.name(), [arm.name() for arm in sound if arm != best]))
        else:
            verdicts = [compared[arm][metric].verdict for arm in tested]
            lines.append(verdict_text.recommended_baseline(best.name(), metric, verdicts, settled=best in futile))
        chosen.append(best)
    if len(groups) > 1 and chosen:
        of_others = metric in WIN_RATES
        what = "against alpha 0 with the same options" if of_others else "over tokens, which are not the same"
        lines.append(
            f"{verdict_text.capital(label(metric))} is {what}: it can't choose between these, so there is no `best`."
        )
    return lines, chosen[0] if len(chosen) == 1 and len(groups) == 1 else None


def _worse_in(compared: Mapping[str, Comparison]) -> list[str]:
    """Return the labels of the metrics in which an arm is worse."""
    return [label(comparison.metric) for comparison in compared.values() if comparison.verdict == VerdictId.WORSE]
