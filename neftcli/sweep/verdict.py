"""From the cells' numbers to the verdict: an arm is chosen on one half of the rows and judged on the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neftcli.evaluation.comparison import FEWEST, LOSS, WIN_RATE
from neftcli.evaluation.statistics import Better, holm, verdict
from neftcli.events import ArmRow, Comparison, Estimated
from neftcli.sweep.plan import Arm, Cell, arms_of, baseline_of
from neftcli.sweep.statistics import ArmDifference, arm_difference, arm_estimate, complete, needed

Values: TypeAlias = NDArray[np.float64]
Differences: TypeAlias = Mapping[tuple[Arm, str], ArmDifference]
Compared: TypeAlias = Mapping[Arm, Mapping[str, Comparison]]

METRIC_NAMES = {
    "loss": LOSS,
    "accuracy": "token accuracy",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "win_rate": WIN_RATE,
}
DESCRIBED = ("answer tokens", "2-gram repetition")
DIRECTIONS: dict[str, Better] = {"ROUGE-L": "higher"}  # asked for as a metric it decides, and more is better
UNDECIDED = "not distinguishable"


@dataclass(frozen=True)
class Verdict:
    """What a sweep found.

    Attributes:
        arms: A row each, in the order of the plan.
        recommended: The arm to take; None where nothing was compared, or no metric chooses between all arms.
        conclusion: What can be said, sentence by sentence.
        scope: What the verdicts are about.
    """

    arms: tuple[ArmRow, ...]
    recommended: Arm | None
    conclusion: tuple[str, ...]
    scope: str


@dataclass(frozen=True)
class Choice:
    """What the first metric says of a group of arms, on the half that chooses.

    Attributes:
        best: The best of all; None where no seed, or no row, has them all.
        plain: The best of those without noise.
        seeds: The seeds that all have, by which it was chosen.
    """

    best: Arm | None
    plain: Arm | None
    seeds: int


class Numbers:
    """The cells' numbers by metric, arm and seed.

    Args:
        cells: The plan.
        measured: Key of a cell to what was measured of it, as in its `evaluation/cell.json`.
        choosing: For each row whether it is of the half that chooses.
    """

    def __init__(
        self, cells: Sequence[Cell], measured: Mapping[str, Mapping[str, Any]], choosing: Sequence[bool]
    ) -> None:
        self.arms = arms_of(cells)
        self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self._of = {(cell.arm, cell.seed): measured.get(cell.key) for cell in cells}
        self._choosing = np.array(choosing, dtype=bool)

    def groups(self, metric: str) -> list[list[Arm]]:
        """The measured arms in groups within which the metric can choose.

        A win rate is against the arm's own alpha 0; a mean over tokens is one of other things where tokens are others.
        """
        groups: dict[object, list[Arm]] = {}
        for arm in self.arms:
            if known := self._any(metric, [arm]):
                key = baseline_of(arm).grid if metric == WIN_RATE else tuple(known["weights"] or ())
                groups.setdefault(key, []).append(arm)
        return list(groups.values())

    def values(self, metric: str, arm: Arm, *, choosing: bool) -> Values:
        """(seeds, rows of the half); NaN where a cell is missing or a row has no value."""
        half = self._half(metric, choosing=choosing)
        found = np.full((len(self.seeds), len(half)), np.nan)
        for place, seed in enumerate(self.seeds):
            content = (self._of[arm, seed] or {}).get("metrics", {}).get(metric)
            if content is not None:
                found[place] = [np.nan if number is None else number for number in content["values"]]
        return found[:, half]

    def weights(self, metric: str, arm: Arm, *, choosing: bool) -> Values | None:
        """(rows of the half,), the arm's own in all its cells; None where the metric is a plain mean."""
        known = self._any(metric, [arm])
        if known is None or known["weights"] is None:
            return None
        numbers: Values = np.array([number or 0.0 for number in known["weights"]], dtype=float)
        return numbers[self._half(metric, choosing=choosing)]

    def shared(self, metric: str, arms: Sequence[Arm], *, choosing: bool) -> tuple[list[Values], Values | None]:
        """The arms' values and the weights, of the seeds and rows of the half that all of them have; maybe none."""
        columns = [self.values(metric, arm, choosing=choosing) for arm in arms]
        return complete(columns, self.weights(metric, arms[0], choosing=choosing))

    def per_seed(self, metric: str, arm: Arm, *, choosing: bool) -> tuple[float | None, ...]:
        """The metric of each seed, by the rows that the seed has; None where a cell is missing."""
        found: list[float | None] = []
        weights = self.weights(metric, arm, choosing=choosing)
        for values in self.values(metric, arm, choosing=choosing):
            there = ~np.isnan(values)
            total = there.sum() if weights is None else weights[there].sum()
            found.append(float(values[there].sum() / total) if total else None)
        return tuple(found)

    def better(self, metric: str) -> Better:
        """The direction that is good."""
        known = self._any(metric)
        found: Better = known["better"] if known else "none"
        return DIRECTIONS.get(metric, found)

    def is_of_documents(self, metric: str) -> bool:
        """Whether it is of a benchmark's documents and not of the held-out rows."""
        return (self._any(metric) or {}).get("of") == "documents"

    def measured_seeds(self, arm: Arm) -> int:
        """Seeds whose cell of this arm is measured."""
        return sum(self._of[arm, seed] is not None for seed in self.seeds)

    def _half(self, metric: str, *, choosing: bool) -> NDArray[np.bool_]:
        """Which of a metric's values are of the half asked for; a task has documents of its own, taken in turn."""
        known, first = self._any(metric), self._choosing
        if known is not None and self.is_of_documents(metric):
            first = np.arange(len(known["values"])) % 2 == 0
        return first if choosing else ~first

    def _any(self, metric: str, arms: Sequence[Arm] | None = None) -> Mapping[str, Any] | None:
        """A metric as some cell of the arms, or of all, has it."""
        cells = (cell["metrics"] for (arm, _), cell in self._of.items() if cell and (arms is None or arm in arms))
        return next((metrics[metric] for metrics in cells if metric in metrics), None)


def judge_sweep(numbers: Numbers, metrics: Sequence[str], dropped: Sequence[Arm]) -> Verdict:
    """The verdict on all arms.

    Args:
        numbers: What was measured.
        metrics: Names of the metrics that decide; the first chooses.
        dropped: Arms that racing gave no further seeds.
    """
    found = _differences(numbers, metrics)
    adjusted = dict(zip(found, holm([one.p or 0.0 for one in found.values()]), strict=True))
    compared = {
        arm: {
            metric: _comparison(metric, numbers.better(metric), found[arm, metric], adjusted[arm, metric])
            for metric in metrics
            if (arm, metric) in found
        }
        for arm in numbers.arms
    }
    rows = []
    for arm in numbers.arms:
        shown = dict.fromkeys([*metrics, *DESCRIBED])
        values = {metric: estimate for metric in shown if (estimate := _estimate(numbers, metric, arm)) is not None}
        comparisons = tuple(compared[arm].values())
        seeds = numbers.measured_seeds(arm)
        rows.append(ArmRow(arm.alpha, arm.label(), seeds, values, comparisons, arm in dropped))
    lines = [_summary(numbers, metric, compared) for metric in metrics]
    said, recommended = _advice(numbers, metrics, dropped, compared)
    lines += [*said, *_more(numbers, metrics[0], compared, found)]
    if found and metrics[0] == LOSS and WIN_RATE not in metrics:
        lines.append(
            "The paper found its gains in answers and hardly in loss: --metric win_rate with --judge URL looks there."
        )
    return Verdict(tuple(rows), recommended, tuple(lines), _scope(found))


def _differences(numbers: Numbers, metrics: Sequence[str]) -> dict[tuple[Arm, str], ArmDifference]:
    """The family that is corrected together: every noised arm and metric with enough seeds and rows."""
    family = {}
    for arm in (arm for arm in numbers.arms if arm.alpha):
        for metric in metrics:
            arrays, weights = numbers.shared(metric, [baseline_of(arm), arm], choosing=False)
            if not _lacks(arrays[0]):
                family[arm, metric] = (arrays[0], arrays[1], weights)
    return {pair: arm_difference(*arrays, comparisons=len(family)) for pair, arrays in family.items()}


def _lacks(values: Values) -> str:
    """What a pair's complete values (seeds, rows) lack to be compared, in words; an empty string where nothing."""
    seeds, rows = values.shape
    if not seeds:
        return "no seed is done both with noise and without"
    if rows < FEWEST:
        return f"fewer than {FEWEST} rows of the half that judges have a value in every seed"
    return ""


def _estimate(numbers: Numbers, metric: str, arm: Arm) -> Estimated | None:
    [values], weights = numbers.shared(metric, [arm], choosing=False)
    if not values.size:
        return None
    found = arm_estimate(values, weights)
    return Estimated(found.value, found.low, found.high, found.n)


def _comparison(metric: str, better: Better, found: ArmDifference, p_adjusted: float) -> Comparison:
    return Comparison(
        metric=metric,
        against="alpha 0",
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        p_adjusted=p_adjusted,
        n=found.n,
        detectable=found.detectable,
        verdict=verdict(p_adjusted, found.value, better),
    )


def _choice(numbers: Numbers, metric: str, arms: Sequence[Arm]) -> Choice:
    """Of arms that have values at all, by the mean over the seeds and rows of the choosing half that all have."""
    measured = [arm for arm in arms if not np.isnan(numbers.values(metric, arm, choosing=True)).all()]
    if not measured:
        return Choice(None, None, 0)
    arrays, _ = numbers.shared(metric, measured, choosing=True)
    seeds = len(arrays[0])
    if not arrays[0].size:
        return Choice(None, None, seeds)
    sign = 1.0 if numbers.better(metric) == "lower" else -1.0
    # All have the same weights, whose sum does not change the order.
    badness = {arm: sign * float(values.sum()) for arm, values in zip(measured, arrays, strict=True)}
    plain = [arm for arm in measured if not arm.alpha]
    return Choice(min(badness, key=badness.__getitem__), min(plain, key=badness.__getitem__) if plain else None, seeds)


def _recommended(choice: Choice, metric: str, group: Sequence[Arm], compared: Compared) -> Arm | None:
    """The best arm if it is better than alpha 0 on the untouched half, and worse in no metric; else the best alpha 0.

    None where nothing was compared, or nothing chosen.
    """
    if choice.best is None or not any(metric in compared[arm] for arm in group):
        return None
    return choice.plain if _against(choice.best, metric, compared) else choice.best


def _against(arm: Arm, metric: str, compared: Compared) -> str:
    """What speaks against an arm that was best on the half that chooses, in words; an empty string if nothing does."""
    if metric not in compared[arm]:
        return "" if not arm.alpha else "could not be compared on the untouched half"
    if compared[arm][metric].verdict != "better":
        return "is not better on the untouched half"
    worse = [one.metric for one in compared[arm].values() if one.verdict == "worse"]
    return f"is worse in {', '.join(worse)}" if worse else ""


def _advice(
    numbers: Numbers, metrics: Sequence[str], dropped: Sequence[Arm], compared: Compared
) -> tuple[list[str], Arm | None]:
    """What to take and why, and the arm where it is one."""
    metric, lines = metrics[0], []
    groups = numbers.groups(metric)
    racing = [[arm for arm in group if arm not in dropped] for group in groups]
    choices = [_choice(numbers, metric, group) for group in racing]
    found = [_recommended(choice, metric, group, compared) for choice, group in zip(choices, groups, strict=True)]
    for choice, recommended in zip(choices, found, strict=True):
        if recommended is None or choice.best is None:
            continue
        if recommended == choice.best and recommended.alpha:
            lines.append(f"Recommended: {recommended.name()}, chosen on the other half of the rows.")
        elif recommended == choice.best:
            lines.append(f"Recommended: the plain baseline ({recommended.name()}).")
        else:
            lines.append(
                f"{choice.best.name()} was best on the half that chooses, and "
                f"{_against(choice.best, metric, compared)}. "
                f"Recommended: the plain baseline ({recommended.name()}), or more evidence."
            )
    if not any(metric in of for of in compared.values()):
        lines.append("So nothing is recommended.")
    elif not any(found):
        lines.append("No seed and row has all arms, so nothing is chosen or recommended.")
    elif len(groups) > 1:
        what = "against alpha 0 with the same options" if metric == WIN_RATE else "over tokens, which are not the same"
        lines.append(f"{metric.capitalize()} is {what}: it chooses nothing between these, and best points nowhere.")
    seeds = {numbers.measured_seeds(arm) for group in racing for arm in group} - {0}
    if any(found) and len(seeds) > 1:
        by = " and ".join(
            sorted({f"{choice.seeds} of {len(numbers.seeds)} seeds" for choice in choices if choice.best})
        )
        lines.append(f"Chosen by the {by} that all arms have; the values shown are over each arm's own.")
    return lines, found[0] if len(found) == 1 else None


def _summary(numbers: Numbers, metric: str, compared: Compared) -> str:
    """Which arms differ from no noise in a metric, and which were not compared."""
    noised = [arm for arm in numbers.arms if arm.alpha]
    lacking: dict[str, list[str]] = {}
    for arm in (arm for arm in noised if metric not in compared[arm]):
        arrays, _ = numbers.shared(metric, [baseline_of(arm), arm], choosing=False)
        lacking.setdefault(_lacks(arrays[0]), []).append(arm.name())
    if sum(map(len, lacking.values())) == len(noised):
        return f"Nothing could be compared in {metric} yet: {'; '.join(lacking) or 'no arm has noise'}."

    def those(word: str) -> str:
        return ", ".join(
            arm.name() for arm in noised if metric in compared[arm] and compared[arm][metric].verdict == word
        )

    parts = [
        f"Better than no noise in {metric}: {those('better')}."
        if those("better")
        else f"Nothing here is better than no noise in {metric}."
    ]
    if those("worse"):
        parts.append(f"Worse: {those('worse')}.")
    parts += [f"Not compared: {', '.join(names)} ({reason})." for reason, names in lacking.items()]
    return " ".join(parts)


def _more(numbers: Numbers, metric: str, compared: Compared, found: Differences) -> list[str]:
    """What could have been seen, and what would settle the largest undecided difference."""
    undecided = [found[arm, metric] for arm, of in compared.items() if metric in of and of[metric].verdict == UNDECIDED]
    if not undecided:
        return []
    visible = [one.detectable for one in undecided if one.detectable is not None]
    if not visible:
        return ["What this sweep could have seen is not known: no difference varies, or too few rows differ."]
    narrow = [one.seeds for one in undecided if one.scope == "examples"]
    among = f" for {_these(*narrow)}" if narrow else ""
    lines = [f"This sweep could have seen a difference of {max(visible):.4g}{among}."]
    largest = max(undecided, key=lambda one: abs(one.value))
    if largest.value:
        lines += _needed(largest, "documents" if numbers.is_of_documents(metric) else "held-out rows")
    return lines


def _needed(difference: ArmDifference, rows: str) -> list[str]:
    """Rows in both halves, and seeds, that would tell a difference from nothing; each with its claim."""
    more = needed(difference, abs(difference.value))
    of_rows = f"about {2 * more.rows} {rows}, half of which judge" if more.rows else ""
    of_seeds = f"about {more.seeds} seeds" if more.seeds else ""
    if difference.scope == "examples":
        of_rows = of_rows and f"{of_rows}, for {_these(difference.seeds)}"
        of_seeds = of_seeds and f"for others too, {of_seeds}"
    ways = ("; " if difference.scope == "examples" else ", or ").join(filter(None, (of_rows, of_seeds)))
    return [f"To tell {abs(difference.value):.2g} from nothing takes {ways}."] if ways else []


def _scope(found: Differences) -> str:
    """What the verdicts are about; arms with too few seeds for a claim over seeds are named."""
    wide = [one for one in found.values() if one.scope == "seeds and examples"]
    narrow = {arm: one for (arm, _), one in found.items() if one.scope == "examples"}
    parts = []
    if wide:
        parts.append(
            f"Verdicts are over seeds and examples: {_span(one.seeds for one in wide)} seeds, "
            f"{_span(one.n for one in wide)} rows that chose nothing."
        )
    if narrow:
        whose = f"Those on {', '.join(arm.name() for arm in narrow)}" if wide else "Verdicts"
        few = [one for one in found.values() if one.scope == "examples"]
        seeds = {one.seeds for one in few}
        parts += [
            f"{whose} are over examples, for {_these(*seeds)} ({_span(one.n for one in few)} rows that chose nothing): "
            "so few support no claim about others.",
            f"Intervals are over {'examples' if seeds == {1} else 'seeds and examples'}"
            f"{', with one seed over examples' if 1 in seeds and len(seeds) > 1 else ''}, of one comparison each.",
        ]
    return " ".join(parts) or "There is no verdict yet."


def _these(*seeds: int) -> str:
    return "this one seed" if set(seeds) == {1} else f"these {_span(seeds)} seeds"


def _span(counts: Iterable[int]) -> str:
    """The counts as one number, or as a range: "2 to 7"."""
    few, *_, many = sorted([*counts] * 2)
    return str(few) if few == many else f"{few} to {many}"
