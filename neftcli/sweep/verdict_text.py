"""Sentences of a sweep's verdict, each generated from the numbers that it states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from neftcli.evaluation.number_format import format_amount, format_interval, format_p
from neftcli.events import ArmResult, Comparison, ScopeId, Significance, VerdictId
from neftcli.metrics.registry import Direction, label
from neftcli.statistics.crossed import ArmDifference
from neftcli.statistics.paired import LEVEL, SKEWNESS_THRESHOLD
from neftcli.statistics.planning import required_sizes


def capital(text: str) -> str:
    """Return the text with a capital first letter: "Held-out loss", "ROUGE-L"."""
    return text[:1].upper() + text[1:]


def findings(metric: str, better: Direction, arms: Sequence[ArmResult], not_compared: Mapping[str, str]) -> list[str]:
    """State for a metric which arms are better or worse, which differ for these seeds only, and which do not.

    Args:
        metric: Its id.
        better: Which values are better.
        arms: All arms with their comparisons.
        not_compared: Reason for each arm that could not be compared, by its name.
    """
    compared = []
    for arm in arms:
        comparison = arm.comparison(metric)
        if comparison is not None:
            compared.append((arm, comparison))
    lines = []
    for verdict in (VerdictId.BETTER, VerdictId.WORSE):
        shown = [f"{arm.name()} ({_numbers(own, own)})" for arm, own in compared if own.verdict == verdict]
        if shown:
            lines.append(f"{capital(verdict)} than alpha 0 in {label(metric)}, for new seeds: {'; '.join(shown)}.")
    if compared and not any(comparison.verdict == VerdictId.BETTER for _, comparison in compared):
        lines.append(f"No alpha is shown to be better than alpha 0 in {label(metric)} for new seeds.")
    for verdict in (VerdictId.LOWER, VerdictId.HIGHER):
        for arm, comparison in compared:
            if comparison.verdict == verdict:
                numbers = _numbers(comparison.these_seeds or comparison, comparison)
                seeds = _these(comparison.seeds)
                claim = f"{capital(verdict)} {label(metric)} with {arm.name()} for {seeds} ({numbers})"
                lines.append(f"{claim}; not shown for new seeds{_why_not(comparison)}.")
    same = [(arm, comparison) for arm, comparison in compared if comparison.verdict == VerdictId.NOT_SIGNIFICANT]
    if same:
        names = "; ".join(f"{arm.name()}{_excluded(comparison, better)}" for arm, comparison in same)
        lines.append(f"Not significant in {label(metric)}: {names}.")
    by_reason: dict[str, list[str]] = {}
    for name, reason in not_compared.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, arm_names in by_reason.items():
        lines.append(f"Not compared in {label(metric)}: {'; '.join(arm_names)} ({reason}).")
    if not compared and not not_compared:
        lines.append(f"Nothing could be compared in {label(metric)}: no arm has noise.")
    return lines


def recommended(metric: str, name: str, others: Sequence[str]) -> str:
    """Recommend an arm that is better than its baseline, as `others` are."""
    if not others:
        return f"Recommended: {name}."
    return (
        f"Recommended: {name}, the best in {label(metric)} of the arms that are better than alpha 0; whether it is "
        f"better than {' and '.join(others)} was not tested."
    )


def recommended_baseline(name: str, metric: str, verdicts: Sequence[VerdictId], *, settled: bool) -> str:
    """Recommend a baseline, with the reason.

    Args:
        name: Its name.
        metric: The first metric.
        verdicts: Those of the arms that were tested in it.
        settled: Early stopping excluded gains of interest for its arms.
    """
    if VerdictId.BETTER in verdicts:
        reason = (
            f": no arm that is better than its own alpha 0 has a better {label(metric)} without being worse in another "
            "metric"
        )
    elif all(verdict == VerdictId.WORSE for verdict in verdicts):
        reason = ": every alpha is worse"
    else:
        reason = "" if settled else ", unless more seeds show a gain"
    return f"Recommended: the baseline ({name}){reason}."


def no_recommendation() -> str:
    """State why one seed leads to no recommendation."""
    return "Nothing is recommended: one seed can't show how results vary between seeds; use two or more."


def nothing_in_common() -> str:
    """State why arms that can't be ranked lead to no recommendation."""
    return "Nothing is recommended: the arms to choose from have no seed, or no prompt, in common."


def but_worse(name: str, metrics: Sequence[str]) -> str:
    """State why an arm that is better in the first metric is not recommended."""
    return f"{capital(name)} is not recommended: it is worse in {', '.join(metrics)}."


def uneven(metric: str, differences: Mapping[str, ArmDifference]) -> list[str]:
    """Warn of arms that vary more between seeds than the others, against the assumption."""
    lines = []
    for name, difference in differences.items():
        if difference.uneven and difference.seed_spread is not None and difference.others_spread is not None:
            own, others = (
                format_amount(metric, spread) for spread in (difference.seed_spread, difference.others_spread)
            )
            lines.append(
                f"{capital(name)} varies more between seeds (standard deviation {own}) than the other arms of its "
                f"baseline ({others}); it is tested with its own variance, which needs more seeds."
            )
    return lines


def skewed(differences: Mapping[tuple[str, str], ArmDifference]) -> list[str]:
    """Warn of metrics whose differences are so skewed that p < 0.05 is more frequent than 5 % without a difference."""
    levels: dict[str, float] = {}
    for (_, metric), difference in differences.items():
        levels[metric] = max(levels.get(metric, 0.0), difference.true_level or 0.0)
    return [
        f"The differences in {label(metric)} are skewed over prompts: of comparisons for these seeds without a true "
        f"difference about {100 * level:.0f} % would have p < {LEVEL:g}, not {100 * LEVEL:.0f} %."
        for metric, level in levels.items()
        if level > SKEWNESS_THRESHOLD
    ]


def plan(metric: str, undecided: Sequence[ArmDifference], delta: float | None, *, documents: bool) -> list[str]:
    """State the minimum detectable effect of the undecided arms, and the sizes that would detect delta.

    Args:
        metric: Its id.
        undecided: Arms without a claim about new seeds.
        delta: Smallest effect of interest, or None.
        documents: The metric is of a benchmark's documents.
    """
    known = [difference for difference in undecided if difference.detectable is not None]
    if not known:
        return []
    widest = max(known, key=lambda difference: difference.detectable or 0.0)
    size = format_amount(metric, widest.detectable or 0.0)
    units = "documents" if documents else "prompts"
    if widest.seeds == 1:
        return [
            f"Minimum detectable effect: {size} in {label(metric)} for this one seed ({widest.n} {units}, power 80 %). "
            "A claim about other seeds needs at least two seeds, better three."
        ]
    lines = [
        f"Minimum detectable effect: {size} in {label(metric)} ({widest.seeds} seeds, {widest.n} {units}, power 80 %)."
    ]
    if delta is None:
        return lines
    effect = f"an effect of {format_amount(metric, delta)} (sweep.delta)"
    if widest.detectable is not None and widest.detectable <= delta:
        return [
            *lines,
            f"{capital(effect)} would have been found in 80 % of such sweeps or more.",
        ]
    sizes = [required_sizes(difference, delta) for difference in known]
    seeds = _largest([size.seeds for size in sizes])
    rows = _largest([size.prompts for size in sizes])
    ways = [f"about {seeds} seeds"] if seeds else []
    ways += [f"about {rows} {units} with these seeds"] if rows else []
    if ways:
        return [*lines, f"Detecting {effect} takes {' or '.join(ways)}."]
    return [
        *lines,
        f"Neither more seeds nor more {units} alone would detect {effect}.",
    ]


def verdict_scope(differences: Sequence[ArmDifference]) -> str:
    """State the population that the verdicts are about."""
    over_seeds = [difference for difference in differences if difference.new_seeds is not None]
    one_seed = [d for d in differences if d.new_seeds is None and d.these_seeds is not None]
    parts = []
    if over_seeds:
        parts.append(
            "Better and worse are claims about new seeds and new prompts, from "
            f"{_span(d.seeds for d in over_seeds)} seeds and {_span(d.n for d in over_seeds)} prompts."
        )
    if one_seed:
        parts.append(
            f"{'Arms with one seed are' if over_seeds else 'With one seed, arms are'} compared for the model of that "
            f"seed ({_span(d.n for d in one_seed)} prompts)."
        )
    if parts:
        parts.append("95 % CIs are of one comparison each; p is corrected for all of them (Holm).")
    return " ".join(parts) or "Nothing was compared."


def _numbers(claim: Comparison | Significance, comparison: Comparison) -> str:
    """Return a difference with the interval and p of a claim."""
    metric = comparison.metric
    interval = format_interval(metric, claim.low, claim.high)
    return f"{format_amount(metric, comparison.difference, signed=True)}, {interval}{format_p(claim.p_adjusted)}"


def _why_not(comparison: Comparison) -> str:
    """Return the numbers of the claim about new seeds that is not made."""
    if comparison.these_seeds is None:
        return ": one seed can't show it"
    interval = format_interval(comparison.metric, comparison.low, comparison.high)
    return f" ({interval}{format_p(comparison.p_adjusted)})"


def _excluded(comparison: Comparison, better: Direction) -> str:
    """Return the largest gain that the confidence interval leaves possible."""
    low, high = comparison.low, comparison.high
    if low is None or high is None or better == "none":
        return ""
    if low == high == 0:
        return " (no prompt differs)"
    gain = -low if better == "lower" else high
    scope = "" if comparison.scope == ScopeId.NEW_SEEDS else " for this seed"
    if gain <= 0:
        return f" (95 % CI excludes any gain{scope})"
    return f" (95 % CI excludes a gain over {format_amount(comparison.metric, gain)}{scope})"


def _these(seeds: int) -> str:
    return "this one seed" if seeds == 1 else f"these {seeds} seeds"


def _largest(numbers: Sequence[int | None]) -> int | None:
    """Return the largest number; None if one is unknown."""
    known = [number for number in numbers if number is not None]
    return max(known) if known and len(known) == len(numbers) else None


def _span(numbers: Iterable[int]) -> str:
    """Return the range of some numbers: "7", or "2 to 7"."""
    known = [*numbers]
    smallest, largest = min(known), max(known)
    return str(smallest) if smallest == largest else f"{smallest} to {largest}"
