"""Format the values of metrics: for sentences, and for the tables of terminals, plain lines and verdict.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neftcli.evaluation.metrics import HELD_OUT_LOSS, is_share

if TYPE_CHECKING:
    from neftcli.events import MetricValue


def amount(metric: str, value: float, *, signed: bool = False) -> str:
    """Write a difference or an effect in a sentence: "+0.0123" nats, or "+3.1 points" of a share."""
    sign = "+" if signed else ""
    if is_share(metric):
        return f"{100 * value:{sign}.1f} points"
    return f"{value:{sign}.4f}" if round(value, 4) or not value else f"{value:{sign}.1g}"


def interval(metric: str, low: float | None, high: float | None) -> str:
    """Write a confidence interval in a sentence, before a p-value; an empty string if there is none."""
    if low is None or high is None:
        return ""
    return f"95 % CI {amount(metric, low, signed=True)} to {amount(metric, high, signed=True)}, "


def p_value(p: float | None) -> str:
    """Write a p-value in a sentence: "p = 0.003" or "p < 0.001"."""
    if p is None:
        return "no p-value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def number(metric: str, value: float | None, *, signed: bool = False) -> str:
    """Write a value or a difference in a table: "1.9608", "+3.1 %", "61.50"; a dash if there is none."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if is_share(metric):
        return f"{100 * value:{sign}.1f} %"
    if metric == HELD_OUT_LOSS:
        return f"{value:{sign}.4f}"
    return f"{value:{sign}.{1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def estimated(metric: str, estimate: MetricValue | None) -> str:
    """Write a model's or an arm's value in a table."""
    return number(metric, None if estimate is None else estimate.value)


def ends(metric: str, low: float | None, high: float | None, *, signed: bool = True) -> str:
    """Write a confidence interval in a table: "-0.0025 ... +0.0016"; a dash if there is none."""
    if low is None or high is None:
        return "-"
    return f"{number(metric, low, signed=signed)} ... {number(metric, high, signed=signed)}"


def p_number(p: float | None) -> str:
    """Write a p-value in a table: "0.003" or "< 0.001"; a dash if there is none."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
