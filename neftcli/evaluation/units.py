"""How a metric's values are written."""

from __future__ import annotations

SHARES = (
    *("token accuracy", "exact match", "win rate", "win rate, matched", "win rate, length-controlled"),
    *("cut at the limit", "2-gram repetition"),
)


def is_share(metric: str) -> bool:
    """Return whether a metric is shown in per cent: our own shares, and accuracies of benchmark tasks."""
    return metric in SHARES or metric.endswith((" acc", " acc_norm", " exact_match"))


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
