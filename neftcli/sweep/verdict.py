"""From the cells' numbers to the verdict: an arm is chosen on one half of the rows and judged on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neftcli.evaluation.statistics import Better, holm, verdict
from neftcli.events import ArmRow, Comparison, Estimated
from neftcli.sweep.plan import Arm, Cell, arms_of, baseline_of
from neftcli.sweep.statistics import ArmDifference, arm_difference, arm_estimate, needed

Values = NDArray[np.float64]
METRIC_NAMES = {
    "loss": "held-out loss",
    "accuracy": "token accuracy",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "win_rate": "win rate",
}
DESCRIBED = ("answer tokens", "2-gram repetition")
DIRECTIONS: dict[str, Better] = {"ROUGE-L": "higher"}  # asked for as a metric it decides, and more is better
UNDECIDED = "not distinguishable"
FEWEST = 6  # rows of a half with which a p value can be below 0.05


@dataclass(frozen=True)
class Verdict:
    """What a sweep found.

    Attributes:
        arms: A row each, in the order of the plan.
        chosen: The recommended arm.
        conclusion: What can be said, sentence by sentence.
        scope: What the verdicts are about.
    """

    arms: tuple[ArmRow, ...]
    chosen: Arm
    conclusion: tuple[str, ...]
    scope: str


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

    def _half(self, metric: str, *, choosing: bool) -> NDArray[np.bool_]:
        """Which of a metric's values are of the half asked for; a task has documents of its own, taken in turn."""
        known = self._any(metric)
        first = self._choosing
        if known is not None and known.get("of") == "documents":
            first = np.arange(len(known["values"])) % 2 == 0
        return first if choosing else ~first

    def values(self, metric: str, arm: Arm, *, choosing: bool) -> Values:
        """(seeds, rows of the half); NaN where a cell is missing or a row has no value."""
        half = self._half(metric, choosing=choosing)
        found = np.full((len(self.seeds), len(half)), np.nan)
        for place, seed in enumerate(self.seeds):
            content = (self._of[arm, seed] or {}).get("metrics", {}).get(metric)
            if content is not None:
                found[place] = [np.nan if number is None else number for number in content["values"]]
        return found[:, half]

    def weights(self, metric: str, *, choosing: bool) -> Values | None:
        """(rows of the half,), the same in all cells; None where the metric is a plain mean."""
        known = self._any(metric)
        if known is None or known["weights"] is None:
            return None
        numbers: Values = np.array([number or 0.0 for number in known["weights"]], dtype=float)
        return numbers[self._half(metric, choosing=choosing)]

    def per_seed(self, metric: str, arm: Arm, *, choosing: bool) -> Values:
        """(measured seeds,): the metric of each."""
        values, weights = self.values(metric, arm, choosing=choosing), self.weights(metric, choosing=choosing)
        known = values[~np.isnan(values).all(axis=1)]
        counts = np.where(np.isnan(known), 0.0, 1.0 if weights is None else weights).sum(axis=1)
        means: Values = np.nansum(known, axis=1) / counts
        return means

    def better(self, metric: str) -> Better:
        """The direction that is good."""
        known = self._any(metric)
        found: Better = known["better"] if known else "none"
        return DIRECTIONS.get(metric, found)

    def _any(self, metric: str) -> Mapping[str, Any] | None:
        """A metric as some cell has it."""
        cells = (cell["metrics"] for cell in self._of.values() if cell)
        return next((metrics[metric] for metrics in cells if metric in metrics), None)

    def measured_seeds(self, arm: Arm) -> int:
        """Seeds whose cell of this arm is measured."""
        return sum(self._of[arm, seed] is not None for seed in self.seeds)


def judge_sweep(numbers: Numbers, metrics: Sequence[str], dropped: Sequence[Arm]) -> Verdict:
    """The verdict on all arms.

    Args:
        numbers: What was measured.
        metrics: Names of the metrics that decide; the first chooses.
        dropped: Arms that racing gave no further seeds.
    """
    chosen = _best(numbers, metrics[0])
    noised = [arm for arm in numbers.arms if arm.alpha]
    compared = [(arm, one) for arm in noised for one in metrics if _rows(numbers, one, arm) >= FEWEST]
    found = {pair: _difference(numbers, *pair, len(compared)) for pair in compared}
    tested = [pair for pair in compared if found[pair].p is not None]
    adjusted = dict(zip(tested, holm([found[pair].p or 0.0 for pair in tested]), strict=True))
    rows = []
    for arm in numbers.arms:
        shown = [*metrics, *(name for name in DESCRIBED if name not in metrics)]
        values = {metric: estimate for metric in shown if (estimate := _estimate(numbers, metric, arm)) is not None}
        comparisons = [
            _comparison(metric, numbers.better(metric), found[arm, metric], adjusted.get((arm, metric)))
            for metric in metrics
            if (arm, metric) in found
        ]
        rows.append(
            ArmRow(arm.alpha, arm.label(), numbers.measured_seeds(arm), values, tuple(comparisons), arm in dropped)
        )
    first = {
        arm: next((one for one in row.comparisons if one.metric == metrics[0]), None)
        for arm, row in zip(numbers.arms, rows, strict=True)
    }
    recommended = _recommended(chosen, first)
    conclusion = _conclusion(numbers, metrics[0], chosen, recommended, first, found)
    return Verdict(tuple(rows), recommended, tuple(conclusion), _scope(numbers, list(found.values())))


def _rows(numbers: Numbers, metric: str, arm: Arm) -> int:
    both = numbers.values(metric, arm, choosing=False) + numbers.values(metric, baseline_of(arm), choosing=False)
    return int((~np.isnan(both)).any(axis=0).sum())


def _difference(numbers: Numbers, arm: Arm, metric: str, comparisons: int) -> ArmDifference:
    return arm_difference(
        numbers.values(metric, baseline_of(arm), choosing=False),
        numbers.values(metric, arm, choosing=False),
        numbers.weights(metric, choosing=False),
        comparisons=comparisons,
    )


def _estimate(numbers: Numbers, metric: str, arm: Arm) -> Estimated | None:
    values = numbers.values(metric, arm, choosing=False)
    if np.isnan(values).all():
        return None
    found = arm_estimate(values, numbers.weights(metric, choosing=False))
    return Estimated(found.value, found.low, found.high, found.n)


def _comparison(metric: str, better: Better, found: ArmDifference, p_adjusted: float | None) -> Comparison:
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


def _best(numbers: Numbers, metric: str) -> Arm:
    """The arm that is best on the half that chooses."""
    found = {arm: numbers.per_seed(metric, arm, choosing=True) for arm in numbers.arms}
    means = {arm: float(seeds.mean()) for arm, seeds in found.items() if seeds.size}
    if not means:
        return numbers.arms[0]
    sign = 1.0 if numbers.better(metric) == "lower" else -1.0
    return min(means, key=lambda arm: sign * means[arm])


def _recommended(chosen: Arm, first: Mapping[Arm, Comparison | None]) -> Arm:
    """The chosen arm if it is better than alpha 0 on the untouched half, else alpha 0."""
    comparison = first[chosen]
    return chosen if comparison is not None and comparison.verdict == "better" else replace(chosen, alpha=0.0)


def _conclusion(
    numbers: Numbers,
    metric: str,
    chosen: Arm,
    recommended: Arm,
    first: Mapping[Arm, Comparison | None],
    found: Mapping[tuple[Arm, str], ArmDifference],
) -> list[str]:
    said = {
        word: [arm.name() for arm, one in first.items() if one is not None and one.verdict == word]
        for word in ("better", "worse")
    }
    lines = []
    if said["better"]:
        lines.append(f"Better than no noise in {metric}: {', '.join(said['better'])}.")
    else:
        lines.append(f"Nothing here is better than no noise in {metric}.")
    if said["worse"]:
        lines.append(f"Worse: {', '.join(said['worse'])}.")
    if chosen.alpha and recommended == chosen:
        lines.append(f"Recommended: {chosen.name()}, chosen on the other half of the rows.")
    elif chosen.alpha:
        lines.append(
            f"{chosen.name()} was best on the half that chooses, and is not better on the untouched half. "
            "Recommended: the plain baseline (alpha 0), or more evidence."
        )
    else:
        lines.append("Recommended: the plain baseline (alpha 0).")
    open_ones = [found[arm, metric] for arm, one in first.items() if one is not None and one.verdict == UNDECIDED]
    lines += _more(open_ones)
    if metric == METRIC_NAMES["loss"]:
        lines.append(
            "The paper found its gains in answers and hardly in loss: --metric win_rate with --judge URL looks there."
        )
    return lines


def _more(undecided: Sequence[ArmDifference]) -> list[str]:
    """What could have been seen, and what would settle the largest undecided difference."""
    visible = [one.detectable for one in undecided if one.detectable is not None]
    if not visible:
        return []
    largest = max(undecided, key=lambda one: abs(one.value))
    lines = [f"This sweep could have seen a difference of {max(visible):.4g}."]
    if largest.value:
        more = needed(largest, abs(largest.value))
        ways = [f"{more.rows} rows" if more.rows else "", f"{more.seeds} seeds" if more.seeds else ""]
        if any(ways):
            either = " or ".join(way for way in ways if way)
            lines.append(f"To tell {abs(largest.value):.2g} from nothing, about {either} are needed.")
    return lines


def _scope(numbers: Numbers, differences: Sequence[ArmDifference]) -> str:
    rows = max((one.n for one in differences), default=0)
    seeds = len(numbers.seeds)
    if any(one.scope == "seeds and examples" for one in differences):
        return f"Verdicts are over seeds and examples: {seeds} seeds, {rows} rows that chose nothing."
    return (
        f"Verdicts are over examples, for these {seeds} seeds ({rows} rows that chose nothing): so few support "
        "no claim about others. Intervals are over seeds and examples, of one comparison each."
    )
