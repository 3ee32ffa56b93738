"""Formats of numbers, metric values and verdicts, for sentences and for tables: terminals, plain lines, verdict.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from neftcli.events import VerdictId
from neftcli.metrics.registry import HELD_OUT_LOSS, is_share

if TYPE_CHECKING:
    from neftcli.events import ArmResult, Comparison, EvaluationReport, MetricRow, MetricValue

MAX_EXTRA_DECIMALS = 4
SMALLEST_P = 0.001
"""Smallest p-value that is shown as a number."""


def format_amount(metric: str, value: float, *, signed: bool = False) -> str:
    """Format a difference or an effect for a sentence: "+0.0123" nats, or "+3.1 points" of a share."""
    sign = "+" if signed else ""
    if is_share(metric):
        return f"{100 * value:{sign}.1f} points"
    return f"{value:{sign}.4f}" if round(value, 4) or not value else f"{value:{sign}.1g}"


def format_interval(metric: str, low: float | None, high: float | None) -> str:
    """Format a confidence interval for a sentence, before a p-value; an empty string if there is none."""
    if low is None or high is None:
        return ""
    return f"95 % CI {format_amount(metric, low, signed=True)} to {format_amount(metric, high, signed=True)}, "


def format_p(p: float | None) -> str:
    """Format a p-value for a sentence: "p = 0.003" or "p < 0.001"."""
    if p is None:
        return "no p-value"
    return f"p < {SMALLEST_P}" if p < SMALLEST_P else f"p = {p:.3f}"


def format_verdict(verdict: VerdictId) -> str:
    """Return a verdict in words: "not significant"."""
    return verdict.replace("_", " ")


def table_number(metric: str, value: float | None, *, signed: bool = False, extra_decimals: int = 0) -> str:
    """Format a value or a difference for a table: "1.9608", "+3.1 %", "61.50"; a dash if there is none."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    decimals = _decimals(metric, value) + extra_decimals
    return f"{100 * value:{sign}.{decimals}f} %" if is_share(metric) else f"{value:{sign}.{decimals}f}"


def table_value(metric: str, value: MetricValue | None, extra_decimals: int = 0) -> str:
    """Format the value of a model or an arm for a table."""
    return table_number(metric, None if value is None else value.value, extra_decimals=extra_decimals)


def table_model_values(report: EvaluationReport, row: MetricRow) -> list[str]:
    """Format a metric of all models, with as many decimals as the shown differences need."""
    values = {model.role: value for model, value in zip(report.models, row.values, strict=True) if value is not None}
    own = row.values[0]
    compared = [
        (own.value, values[comparison.against].value, comparison.difference)
        for comparison in report.comparisons
        if own is not None and comparison.metric == row.metric and comparison.against in values
    ]
    extra = extra_decimals(row.metric, compared)
    return [table_value(row.metric, value, extra) for value in row.values]


def table_arm_values(metric: str, arms: Sequence[ArmResult]) -> list[str]:
    """Format a metric of all arms of a sweep, with as many decimals as the shown differences from alpha 0 need."""
    values = {arm.arm: arm.values[metric].value for arm in arms if metric in arm.values}
    compared = []
    for arm in arms:
        comparison = arm.comparison(metric)
        if comparison is not None and arm.arm in values and comparison.against in values:
            compared.append((values[arm.arm], values[comparison.against], comparison.difference))
    extra = extra_decimals(metric, compared)
    return [table_value(metric, arm.values.get(metric), extra) for arm in arms]


def table_interval(metric: str, low: float | None, high: float | None, *, signed: bool = True) -> str:
    """Format a confidence interval for a table: "-0.0025 ... +0.0016"; a dash if there is none."""
    if low is None or high is None:
        return "-"
    return f"{table_number(metric, low, signed=signed)} ... {table_number(metric, high, signed=signed)}"


def table_p(p: float | None) -> str:
    """Format a p-value for a table: "0.003" or "< 0.001"; a dash if there is none."""
    if p is None:
        return "-"
    return f"< {SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"


def table_comparison(comparison: Comparison) -> dict[str, str]:
    """Format the numbers of a comparison for a table, by their column."""
    metric = comparison.metric
    return {
        "difference": table_number(metric, comparison.difference, signed=True),
        "95 % CI": table_interval(metric, comparison.low, comparison.high),
        "p (Holm)": table_p(comparison.p_adjusted),
        "n": str(comparison.n),
        "MDE": table_number(metric, comparison.detectable),
    }


def table_arm_verdict(arm: ArmResult, metric: str) -> str:
    """Format the verdict on an arm in a metric, with its scope if it does not hold for new seeds."""
    comparison = arm.comparison(metric)
    if comparison is None:
        verdict = "not compared" if arm.alpha else "baseline"
    elif comparison.verdict in (VerdictId.LOWER, VerdictId.HIGHER):
        seeds = "this seed" if comparison.seeds == 1 else f"these {comparison.seeds} seeds"
        verdict = f"{comparison.verdict} for {seeds}"
    else:
        verdict = format_verdict(comparison.verdict)
    return f"{verdict} (dropped)" if arm.dropped else verdict


def extra_decimals(metric: str, compared: Iterable[tuple[float, float, float]]) -> int:
    """Return the decimals to add to values so that the differences of the shown values are the shown differences.

    10.8026 and 10.7786 differ by 0.0240, and by 0.0239 before rounding; with one more decimal both say 0.0239.

    Args:
        metric: Id of the metric.
        compared: Two values and the first one's difference from the second. Differences that are not those of the
            values, because they are over fewer rows, don't count.
    """
    scale = 100 if is_share(metric) else 1
    most = 0
    for first, second, difference in compared:
        shown_difference = round(scale * difference, _decimals(metric, difference))
        for extra in range(MAX_EXTRA_DECIMALS + 1):
            decimals = [_decimals(metric, value) + extra for value in (first, second)]
            difference_of_shown = round(scale * first, decimals[0]) - round(scale * second, decimals[1])
            coarsest = min(*decimals, _decimals(metric, difference))
            if abs(round(difference_of_shown, coarsest) - round(shown_difference, coarsest)) < 0.5 * 10**-coarsest:
                most = max(most, extra)
                break
    return most


def _decimals(metric: str, value: float) -> int:
    """Return the decimals of a value in a table; of a share in per cent."""
    if is_share(metric):
        return 1
    if metric == HELD_OUT_LOSS:
        return 4
    if abs(value) >= 100:
        return 1
    return 2 if abs(value) >= 1 else 3
