"""The sentences of an evaluation's report, each generated from the numbers it states."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from neftcli.evaluation.metrics import WIN_RATE, WIN_RATE_LENGTH_CONTROLLED, is_tested, label
from neftcli.evaluation.number_format import amount, interval, p_value
from neftcli.events import Comparison, EvaluatedModel, MetricRow
from neftcli.statistics.multiple import NOT_SIGNIFICANT
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, SKEWNESS_THRESHOLD


def conclusion(
    models: Sequence[EvaluatedModel],
    metrics: Sequence[MetricRow],
    comparisons: Sequence[Comparison],
    changed: Collection[str] | None,
) -> Iterator[str]:
    """State the result against each other model, in the metrics that are good in one direction.

    Args:
        models: The evaluated one first.
        metrics: What was measured.
        comparisons: Of the first model with each other one.
        changed: Options in which the run and its baseline differ; None unless both are runs.
    """
    comparisons = [one for one in comparisons if is_tested(one.metric)]
    if comparisons and all(one.p_adjusted is None for one in comparisons):
        most = max(one.n for one in comparisons)
        few = "1 prompt is" if most == 1 else f"{most} prompts are"
        yield f"Nothing is tested: {few} too few, a test needs {MIN_PROMPTS}."
        return
    rated = {row.metric for row in metrics if row.direction != "none"}
    for other in models[1:]:
        compared = [one for one in comparisons if one.against == other.role and one.metric in rated]
        runs = other.role == "baseline" and changed is not None
        yield from _of_two_runs(models[0], other, compared, changed or ()) if runs else _of_two_models(other, compared)
        if untested := [f"{label(one.metric)} ({one.n})" for one in compared if one.p_adjusted is None]:
            yield f"Not tested against {other.name}, with fewer than {MIN_PROMPTS} prompts: {', '.join(untested)}."


def _of_two_models(other: EvaluatedModel, compared: Sequence[Comparison]) -> Iterator[str]:
    """Better and worse are right here: the claim is about these two models."""
    parts = [
        f"{word} in {', '.join(f'{label(one.metric)} ({_numbers(one)})' for one in these)}"
        for word in ("better", "worse")
        if (these := [one for one in compared if one.verdict == word])
    ]
    if same := _not_significant(compared):
        parts.append(f"not significant in {same}")
    if parts:
        yield f"Against {other.role} {other.name}: {'; '.join(parts)}."


def _of_two_runs(
    main: EvaluatedModel, other: EvaluatedModel, compared: Sequence[Comparison], changed: Collection[str]
) -> Iterator[str]:
    """With one run each, a difference is one of these runs, and not of their recipes."""
    found = [
        f"{one.verdict} {label(one.metric)} ({_numbers(one)})" for one in compared if one.verdict in ("lower", "higher")
    ]
    if found:
        yield f"These two runs differ: {main.name} has {', '.join(found)} than {other.name}."
    if not changed:
        yield "Both have the same recipe: a difference is what training twice does."
    elif set(changed) == {"training.seed"}:
        yield f"Only training.seed differs ({main.seed} and {other.seed}): a difference is what a different seed does."
    elif found:
        yield _not_shown(changed)
    if same := _not_significant(compared):
        yield f"Not significant between {main.name} and {other.name}: {same}."


def _not_shown(changed: Collection[str]) -> str:
    """State what one run each can't show to be the cause of a difference."""
    noise = all(path.startswith("neftune.") or path == "training.seed" for path in changed)
    what = "alpha" if noise and "neftune.alpha" in changed else "noise" if noise else "recipe"
    return f"One run each can't show that the {what} caused it: a different seed would also change them."


def _not_significant(compared: Sequence[Comparison]) -> str:
    """The metrics that are not significant, with what their intervals leave possible."""
    return ", ".join(
        f"{label(one.metric)} ({interval(one.metric, one.low, one.high)}{p_value(one.p_adjusted)})"
        for one in compared
        if one.verdict == NOT_SIGNIFICANT
    )


def _numbers(one: Comparison) -> str:
    ends = interval(one.metric, one.low, one.high)
    return f"{amount(one.metric, one.difference, signed=True)}, {ends}{p_value(one.p_adjusted)}"


def warn_of_skewness(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Warn of significant differences whose skewness makes p < 0.05 more frequent than 5 % without a true one."""
    skewed = [
        f"{label(one.metric)} against {one.against} ({100 * one.true_level:.0f} %)"
        for one in comparisons
        if one.true_level is not None
        and one.true_level > SKEWNESS_THRESHOLD
        and one.verdict not in ("", NOT_SIGNIFICANT)
    ]
    if skewed:
        yield (
            f"Skewed differences: {', '.join(skewed)}. About that share of comparisons without a true difference would "
            f"have p < {LEVEL:g}, not {100 * LEVEL:.0f} %."
        )


def warn_of_length_bias(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Warn if the interval of the raw win rate excludes 50 % and the one at equal lengths is not significant."""
    by_metric = {one.metric: one for one in comparisons}
    raw, controlled = by_metric.get(WIN_RATE), by_metric.get(WIN_RATE_LENGTH_CONTROLLED)
    if raw is None or raw.low is None or raw.high is None or (raw.low <= 0 <= raw.high):
        return
    if controlled is None or controlled.verdict in ("", NOT_SIGNIFICANT):
        yield (
            "The 95 % CI of the raw win rate excludes 50 %, but the win rate at equal lengths is not significant: the "
            "judge may prefer answers of a certain length."
        )


def describe_unreadable(bounds: tuple[float, float], pairs: int, left_out: int) -> str:
    """State the worst cases of a win rate whose unreadable pairs are left out."""
    lost, won = (f"{100 * bound:.1f} %" for bound in bounds)
    return (
        f"{left_out} of {pairs} pairs had a verdict that could not be read or was refused, and are left out: the win "
        f"rate would be {lost} if all of them were lost, and {won} if all were won."
    )
