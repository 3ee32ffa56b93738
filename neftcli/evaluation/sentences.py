"""The sentences of an evaluation's report, each generated from the numbers that it states."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from neftcli.evaluation.number_format import format_amount, format_interval, format_p
from neftcli.events import Comparison, EvaluatedModel, MetricRow, VerdictId
from neftcli.metrics.registry import (
    WIN_RATE,
    WIN_RATE_LENGTH_CONTROLLED,
    is_descriptive,
    is_tested,
    is_win_rate,
    label,
)
from neftcli.statistics.multiple import count_testable
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, SKEWNESS_THRESHOLD
from neftcli.wording import choose, count_noun

NOT_CLAIMED = (VerdictId.NOT_TESTED, VerdictId.NOT_SIGNIFICANT)
"""Verdicts that claim no difference."""
MAX_METRICS = 3


def conclusion(
    models: Sequence[EvaluatedModel],
    metrics: Sequence[MetricRow],
    comparisons: Sequence[Comparison],
    changed: Collection[str] | None,
) -> Iterator[str]:
    """State the result against each other model, in the metrics of which one direction is better.

    Args:
        models: The evaluated model first.
        metrics: Rows of the table.
        comparisons: The first model compared with each other model.
        changed: Options in which the run and its baseline differ; None unless both are runs.
    """
    comparisons = [comparison for comparison in comparisons if is_tested(comparison.metric)]
    if comparisons and all(comparison.p_adjusted is None for comparison in comparisons):
        most = max(comparison.n for comparison in comparisons)
        few = count_noun(most, "prompt is", "prompts are")
        yield f"Nothing is tested: {few} too few, a test needs {MIN_PROMPTS}."
        return
    rated = {row.metric for row in metrics if row.direction != "none"}
    for other in models[1:]:
        compared = [
            comparison for comparison in comparisons if comparison.against == other.role and comparison.metric in rated
        ]
        if other.role == "baseline" and changed is not None:
            yield from _compare_two_runs(models[0], other, compared, changed)
        else:
            yield from _compare_two_models(other, compared)
        untested = [
            f"{label(comparison.metric)} ({comparison.n})" for comparison in compared if comparison.p_adjusted is None
        ]
        if untested:
            yield f"Not tested against {other.name}, with fewer than {MIN_PROMPTS} prompts: {', '.join(untested)}."


def _compare_two_models(other: EvaluatedModel, compared: Sequence[Comparison]) -> Iterator[str]:
    """State which metrics are better or worse; the claim is about these two models."""
    parts = []
    for verdict in (VerdictId.BETTER, VerdictId.WORSE):
        metrics = [
            f"{label(comparison.metric)} ({_numbers(comparison)})"
            for comparison in compared
            if comparison.verdict == verdict
        ]
        if metrics:
            parts.append(f"{verdict} in {', '.join(metrics)}")
    if not_significant := _not_significant(compared):
        parts.append(f"not significant in {not_significant}")
    if parts:
        yield f"Against {other.role} {other.name}: {'; '.join(parts)}."


def _compare_two_runs(
    main: EvaluatedModel, other: EvaluatedModel, compared: Sequence[Comparison], changed: Collection[str]
) -> Iterator[str]:
    """State which metrics are lower or higher; one run of each supports no claim about the recipes."""
    different = [
        f"{comparison.verdict} {label(comparison.metric)} ({_numbers(comparison)})"
        for comparison in compared
        if comparison.verdict in (VerdictId.LOWER, VerdictId.HIGHER)
    ]
    if different:
        yield f"These two runs differ: {main.name} has {', '.join(different)} than {other.name}."
    if not changed:
        yield "Both runs have the same recipe: a difference shows what training twice changes."
    elif set(changed) == {"training.seed"}:
        yield f"Only training.seed differs ({main.seed} and {other.seed}): a difference shows what the seed changes."
    elif different:
        yield _explain_one_run_each(changed)
    if not_significant := _not_significant(compared):
        yield f"Not significant between {main.name} and {other.name}: {not_significant}."


def _explain_one_run_each(changed: Collection[str]) -> str:
    """State which cause of a difference one run each can't show."""
    only_noise = all(path.startswith("neftune.") or path == "training.seed" for path in changed)
    cause = "recipe"
    if only_noise:
        cause = "alpha" if "neftune.alpha" in changed else "noise"
    return f"One run each can't show that the {cause} caused it: a different seed would also change them."


def _not_significant(compared: Sequence[Comparison]) -> str:
    """List the metrics that are not significant, with their confidence intervals."""
    parts = []
    for comparison in compared:
        if comparison.verdict == VerdictId.NOT_SIGNIFICANT:
            interval = format_interval(comparison.metric, comparison.low, comparison.high)
            parts.append(f"{label(comparison.metric)} ({interval}{format_p(comparison.p_adjusted)})")
    return ", ".join(parts)


def _numbers(comparison: Comparison) -> str:
    """Format a difference, its confidence interval and its p-value."""
    difference = format_amount(comparison.metric, comparison.difference, signed=True)
    interval = format_interval(comparison.metric, comparison.low, comparison.high)
    return f"{difference}, {interval}{format_p(comparison.p_adjusted)}"


def warn_of_skewness(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Warn of significant differences that are so skewed that p < 0.05 is more frequent than 5 % without an effect."""
    skewed = [
        f"{label(comparison.metric)} against {comparison.against} ({100 * comparison.true_level:.0f} %)"
        for comparison in comparisons
        if comparison.true_level is not None
        and comparison.true_level > SKEWNESS_THRESHOLD
        and comparison.verdict not in NOT_CLAIMED
    ]
    if skewed:
        yield (
            f"Skewed differences: {', '.join(skewed)}. About that share of comparisons without a true difference would "
            f"have p < {LEVEL:g}, not {100 * LEVEL:.0f} %."
        )


def explain_small_samples(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Explain a corrected p of 1 next to a confidence interval that excludes 0.

    The sign-flip test of n prompts that differ gives p >= 2^(1 - n). If that is `LEVEL` / m or more, Tarone's rule does
    not count the comparison, and its corrected p is 1. Metrics with a better direction and descriptive ones are
    corrected separately.
    """
    most, sufficient = 0, []
    for descriptive in (False, True):
        family = [
            (comparison, comparison.p, comparison.smallest_p)
            for comparison in comparisons
            if comparison.p is not None
            and comparison.smallest_p is not None
            and is_descriptive(comparison.metric) == descriptive
        ]
        m = count_testable([smallest for _, _, smallest in family])
        prompts = [
            comparison.n
            for comparison, p, smallest in family
            if p < LEVEL <= smallest * m and not is_win_rate(comparison.metric)
        ]
        if prompts:
            enough = MIN_PROMPTS
            while 2.0 ** (1 - enough) >= LEVEL / len(family):
                enough += 1
            most = max(most, *prompts)
            metrics = _some([label(metric) for metric in dict.fromkeys(own.metric for own, _, _ in family)])
            compared = count_noun(len(family), "comparison")
            need = choose(len(family), "needs", "need")
            sufficient.append(f"the {compared} in {metrics} {need} at least {enough} prompts that differ")
    if sufficient:
        yield (
            f"p is 1 for differences that can't be significant at this size ({count_noun(most, 'prompt')}), even if "
            f"their CI excludes 0. T{'; '.join(sufficient)[1:]}."
        )


def _some(names: Sequence[str]) -> str:
    """List names, the first three if there are more than four: "a and b", "a, b, c and 5 other metrics"."""
    shown = [*names]
    if len(names) > MAX_METRICS + 1:
        shown = [*names[:MAX_METRICS], f"{len(names) - MAX_METRICS} other metrics"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def warn_of_length_bias(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Warn if the interval of the raw win rate excludes 50 % and the one at equal lengths is not significant."""
    by_metric = {comparison.metric: comparison for comparison in comparisons}
    raw, controlled = by_metric.get(WIN_RATE), by_metric.get(WIN_RATE_LENGTH_CONTROLLED)
    if raw is None or raw.low is None or raw.high is None or (raw.low <= 0 <= raw.high):
        return
    if controlled is None or controlled.verdict in NOT_CLAIMED:
        yield (
            "The 95 % CI of the raw win rate excludes 50 %, but the win rate at equal lengths is not significant: the "
            "judge may prefer answers of a certain length."
        )


def describe_unreadable(bounds: tuple[float, float], pairs: int, left_out: int) -> str:
    """State the worst cases of a win rate that leaves out pairs without a readable verdict."""
    lost, won = (f"{100 * bound:.1f} %" for bound in bounds)
    return (
        f"{left_out} of {pairs} pairs had no readable verdict, or the server rejected the question; they are left out. "
        f"The win rate would be {lost} if all of them were lost, and {won} if all were won."
    )
