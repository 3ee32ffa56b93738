"""The sentences of a sweep's verdict, each generated from the numbers it states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from neftcli.evaluation.metrics import label
from neftcli.evaluation.number_format import format_amount, format_interval, format_p
from neftcli.events import ArmResult, Comparison, Significance
from neftcli.statistics.crossed import ArmDifference
from neftcli.statistics.multiple import NOT_SIGNIFICANT, Direction
from neftcli.statistics.paired import LEVEL, SKEWNESS_THRESHOLD
from neftcli.statistics.planning import required_sizes


def capital(text: str) -> str:
    """The text with a capital letter first: "Held-out loss", "ROUGE-L"."""
    return text[:1].upper() + text[1:]


def findings(metric: str, better: Direction, arms: Sequence[ArmResult], not_compared: Mapping[str, str]) -> list[str]:
    """State for one metric which arms are better or worse, which differ for these seeds only, and which do not.

    Args:
        metric: Its id.
        better: Its good direction.
        arms: All arms with their comparisons.
        not_compared: Name of an arm that could not be compared to the reason.
    """
    compared = [(arm, one) for arm in arms for one in arm.comparisons if one.metric == metric]
    lines = []
    for word in ("better", "worse"):
        these = [f"{arm.name()} ({_numbers(one, one)})" for arm, one in compared if one.verdict == word]
        if these:
            lines.append(f"{capital(word)} than alpha 0 in {label(metric)}, for new seeds: {'; '.join(these)}.")
    if compared and not any(one.verdict == "better" for _, one in compared):
        lines.append(f"No alpha is shown to be better than alpha 0 in {label(metric)} for new seeds.")
    for word in ("lower", "higher"):
        for arm, one in compared:
            if one.verdict == word:
                numbers = _numbers(one.these_seeds or one, one)
                of_these = f"{capital(word)} {label(metric)} with {arm.name()} for {_these(one.seeds)} ({numbers})"
                lines.append(f"{of_these}; not shown for new seeds{_why_not(one)}.")
    same = [(arm, one) for arm, one in compared if one.verdict == NOT_SIGNIFICANT]
    if same:
        arms_text = "; ".join(f"{arm.name()}{_excluded(one, better)}" for arm, one in same)
        lines.append(f"Not significant in {label(metric)}: {arms_text}.")
    by_reason: dict[str, list[str]] = {}
    for name, reason in not_compared.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"Not compared in {label(metric)}: {'; '.join(names)} ({reason})." for reason, names in by_reason.items()]
    if not compared and not not_compared:
        lines.append(f"Nothing could be compared in {label(metric)}: no arm has noise.")
    return lines


def recommended(metric: str, name: str, others: Sequence[str]) -> str:
    """Recommend an arm that is better than its baseline; `others` are as well."""
    if not others:
        return f"Recommended: {name}."
    return (
        f"Recommended: {name}, the best in {label(metric)} of the arms that are better than alpha 0; whether it is "
        f"better than {' and '.join(others)} was not tested."
    )


def recommended_baseline(name: str, metric: str, verdicts: Sequence[str], *, settled: bool) -> str:
    """Recommend a baseline, and say why.

    Args:
        name: Its name.
        metric: The first metric.
        verdicts: Those of the arms that were tested in it.
        settled: Gains of interest are excluded for its arms.
    """
    if "better" in verdicts:
        reason = (
            f": no arm that is better than its own alpha 0 has a better {label(metric)} without being worse in another "
            "metric"
        )
    elif all(verdict == "worse" for verdict in verdicts):
        reason = ": every alpha is worse"
    else:
        reason = "" if settled else ", unless more seeds show a gain"
    return f"Recommended: the baseline ({name}){reason}."


def no_recommendation() -> str:
    """Say why one seed leads to no recommendation."""
    return "Nothing is recommended: one seed can't show what another seed would give; that takes two or more."


def nothing_in_common() -> str:
    """Say why arms that can't be ranked lead to no recommendation."""
    return "Nothing is recommended: the arms to choose from have no seed, or no prompt, in common."


def but_worse(name: str, metrics: Sequence[str]) -> str:
    """Say why an arm that is better in the first metric is not recommended."""
    return f"{capital(name)} is not recommended: it is worse in {', '.join(metrics)}."


def uneven(metric: str, found: Mapping[str, ArmDifference]) -> list[str]:
    """Warn of arms that vary more between seeds than the others, against the assumption."""
    lines = []
    for name, difference in found.items():
        if difference.uneven and difference.seed_spread is not None and difference.others_spread is not None:
            own, others = (
                format_amount(metric, spread) for spread in (difference.seed_spread, difference.others_spread)
            )
            lines.append(
                f"{capital(name)} varies more between seeds (standard deviation {own}) than the other arms of its "
                f"baseline ({others}); it is tested by its own spread, which takes more seeds."
            )
    return lines


def skewed(found: Mapping[tuple[str, str], ArmDifference]) -> list[str]:
    """Warn of metrics whose differences are so skewed that p < 0.05 is more frequent than 5 % without a difference."""
    levels: dict[str, float] = {}
    for (_, metric), one in found.items():
        levels[metric] = max(levels.get(metric, 0.0), one.true_level or 0.0)
    return [
        f"The differences in {label(metric)} are skewed over prompts: of comparisons for these seeds without a true "
        f"difference about {100 * level:.0f} % would have p < {LEVEL:g}, not {100 * LEVEL:.0f} %."
        for metric, level in levels.items()
        if level > SKEWNESS_THRESHOLD
    ]


def plan(metric: str, undecided: Sequence[ArmDifference], delta: float | None, *, documents: bool) -> list[str]:
    """State the minimum detectable effect of the undecided arms, and what would detect the smallest one of interest.

    Args:
        metric: Its id.
        undecided: Arms without a claim about new seeds.
        delta: Smallest effect of interest, or None.
        documents: The metric is of a benchmark's documents.
    """
    known = [one for one in undecided if one.detectable is not None]
    if not known:
        return []
    widest = max(known, key=lambda one: one.detectable or 0.0)
    size = format_amount(metric, widest.detectable or 0.0)
    what = "documents" if documents else "prompts"
    if widest.seeds == 1:
        return [
            f"Minimum detectable effect: {size} in {label(metric)} for this one seed ({widest.n} {what}, power 80 %). "
            "What other seeds would give takes at least two, better three."
        ]
    lines = [
        f"Minimum detectable effect: {size} in {label(metric)} ({widest.seeds} seeds, {widest.n} {what}, power 80 %)."
    ]
    if delta is None:
        return lines
    effect = f"an effect of {format_amount(metric, delta)} (sweep.delta)"
    if widest.detectable is not None and widest.detectable <= delta:
        return [
            *lines,
            f"{capital(effect)} would have been found in 80 % of such sweeps or more.",
        ]
    more = [required_sizes(one, delta) for one in known]
    seeds = _most([one.seeds for one in more])
    rows = _most([one.prompts for one in more])
    ways = [f"about {seeds} seeds"] if seeds else []
    ways += [f"about {rows} {what} with these seeds"] if rows else []
    if ways:
        return [*lines, f"To detect {effect} takes {' or '.join(ways)}."]
    return [
        *lines,
        f"Neither more seeds nor more {what} alone would detect {effect}.",
    ]


def scope(found: Sequence[ArmDifference]) -> str:
    """State what the verdicts are about."""
    wide = [one for one in found if one.new_seeds is not None]
    narrow = [one for one in found if one.new_seeds is None and one.these_seeds is not None]
    parts = []
    if wide:
        parts.append(
            "Better and worse are claims about new seeds and new prompts, from "
            f"{_span(one.seeds for one in wide)} seeds and {_span(one.n for one in wide)} prompts."
        )
    if narrow:
        parts.append(
            f"{'Arms with one seed are' if wide else 'With one seed, arms are'} compared for the model of that seed "
            f"({_span(one.n for one in narrow)} prompts)."
        )
    if parts:
        parts.append("95 % CIs are of one comparison each; p is corrected for all of them (Holm).")
    return " ".join(parts) or "Nothing was compared."


def _numbers(one: Comparison | Significance, of: Comparison) -> str:
    """A difference with the interval and p of one scope."""
    ends = format_interval(of.metric, one.low, one.high)
    return f"{format_amount(of.metric, of.difference, signed=True)}, {ends}{format_p(one.p_adjusted)}"


def _why_not(one: Comparison) -> str:
    """The numbers of the claim about new seeds that is not made."""
    if one.these_seeds is None:
        return ": one seed can't show it"
    return f" ({format_interval(one.metric, one.low, one.high)}{format_p(one.p_adjusted)})"


def _excluded(one: Comparison, better: Direction) -> str:
    """The largest gain that the confidence interval leaves possible."""
    if one.low is None or one.high is None or better == "none":
        return ""
    if one.low == one.high == 0:
        return " (no prompt differs)"
    gain = -one.low if better == "lower" else one.high
    over = "" if one.scope == "new seeds" else " for this seed"
    if gain <= 0:
        return f" (95 % CI excludes any gain{over})"
    return f" (95 % CI excludes a gain over {format_amount(one.metric, gain)}{over})"


def _these(seeds: int) -> str:
    return "this one seed" if seeds == 1 else f"these {seeds} seeds"


def _most(numbers: Sequence[int | None]) -> int | None:
    """The largest number; None if one is unknown."""
    known = [number for number in numbers if number is not None]
    return max(known) if known and len(known) == len(numbers) else None


def _span(numbers: Iterable[int]) -> str:
    """The numbers as one, or as a range: "2 to 7"."""
    few, *_, many = sorted([*numbers] * 2)
    return str(few) if few == many else f"{few} to {many}"
