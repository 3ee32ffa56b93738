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
    """Write a difference or an effect with two digits: "+0.012", or "+3.1 points" of a share."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2g} points" if is_share(metric) else f"{value:{sign}.2g}"


def confidence_interval(metric: str, low: float | None, high: float | None) -> str:
    """Write the ends of a difference's interval: "95 % CI -0.01 to +0.02"; an empty string if there is none."""
    if low is None or high is None:
        return ""
    return f"95 % CI {amount(metric, low, signed=True)} to {amount(metric, high, signed=True)}"


def probability(p: float) -> str:
    """Write a p-value: "0.012", or "0.001 or less"."""
    return "0.001 or less" if p <= 0.001 else f"{p:.2g}"
