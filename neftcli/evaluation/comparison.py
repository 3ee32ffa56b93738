"""Comparison of models on the same rows: values, differences and verdicts.

Every comparison is paired, row by row, and rows with the same prompt are summed before any test. Metrics of which one
direction is better are corrected together (Holm's method with Tarone's rule), and so are those that only describe. Of
the three win rates, which count the same pairs, only the length-controlled one is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neftcli.events import Comparison, MetricRow, MetricValue
from neftcli.metrics.registry import (
    METRICS_BY_ID,
    Direction,
    Judged,
    Metric,
    OverAllAnswers,
    PerRow,
    Transformed,
    is_tested,
    task_metric_id,
)
from neftcli.runs.schemas import CellMetric
from neftcli.statistics.multiple import holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, PairedDifference, bootstrap_estimate, paired_difference
from neftcli.statistics.win_rates import estimate_win_rate

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.metrics.registry import JudgeScores

RowValues = NDArray[np.float64]
"""(rows,), NaN if a row has no value."""


def _values(numbers: Iterable[float | None]) -> RowValues:
    return np.array([np.nan if number is None else float(number) for number in numbers])


@dataclass(frozen=True, eq=False)
class _PairedValues:
    """Values of two models in one metric, before their comparison is corrected.

    Attributes:
        metric: Id of the metric.
        better: Values that are better.
        against: Role of the other model.
        first: (rows,), the other model's values; NaN if a row has none.
        second: (rows,), the evaluated model's values.
        weights: (rows,); None for a mean over rows.
        prompts: (rows,), equal for rows that share a prompt; None if all differ.
        is_win_rate: True if the values are scores of pairs, and the other model's are halves.
        lengths: (rows,), for a win rate at equal lengths; None for other metrics.
        are_runs: True if both models are runs: with one run of each recipe, neither is called better or worse.
    """

    metric: str
    better: Direction
    against: str
    first: RowValues
    second: RowValues
    weights: RowValues | None = None
    prompts: Sequence[str] | None = None
    is_win_rate: bool = False
    lengths: RowValues | None = None
    are_runs: bool = False

    def difference(self, comparisons: int = 1) -> PairedDifference | None:
        """Estimate and test the difference on the rows that both models have.

        None if there are no such rows, or if lengths can't be controlled. A win rate over few prompts has no test of
        its own; its value is that of the plain difference.
        """
        rows = ~(np.isnan(self.first) | np.isnan(self.second))
        if not rows.any():
            return None
        prompts = _select(self.prompts, rows)
        if self.is_win_rate:
            lengths = None if self.lengths is None else self.lengths[rows]
            rate = estimate_win_rate(self.second[rows], lengths, prompts=prompts, comparisons=comparisons)
            if rate is not None or lengths is not None:
                return rate
        weights = None if self.weights is None else self.weights[rows]
        return paired_difference(self.first[rows], self.second[rows], weights, prompts=prompts, comparisons=comparisons)


def compare_models(
    results: Sequence[ModelResults], judged: JudgeScores | None, prompts: Sequence[str]
) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """Build the rows of the table, and compare the first model with each of the others.

    Args:
        results: Results of each model, the evaluated one first.
        judged: The judge's scores; None without a judge.
        prompts: (rows,), equal for rows that share a prompt.
    """
    rows: list[MetricRow] = []
    pairs: list[_PairedValues] = []
    for metric in METRICS_BY_ID.values():
        match metric.source:
            case PerRow():
                values, weights = zip(*(values_of_rows(metric.source, model) for model in results), strict=True)
                estimates = tuple(_estimate(v, w, prompts) for v, w in zip(values, weights, strict=True))
                for other, theirs in zip(results[1:], values[1:], strict=True):
                    if metric.source.weights is None or have_same_tokens(results[0], other):
                        role = other.target.role
                        pairs.append(
                            _PairedValues(metric.id, metric.direction, role, theirs, values[0], weights[0], prompts)
                        )
            case Transformed():
                source = next((row.values for row in rows if row.metric == metric.source.source), ())
                estimates = tuple(_transform(value, metric.source.function) for value in source)
            case OverAllAnswers():
                estimates = tuple(_compute_over_all(model, metric.source) for model in results)
            case Judged():
                own = None
                if judged is not None:
                    own, compared = _compare_judged(metric, metric.source, judged, prompts)
                    pairs += compared
                estimates = (own, *[None] * (len(results) - 1))
        if any(estimates):
            rows.append(MetricRow(metric.id, metric.unit, metric.direction, estimates))
    for row, compared in _compare_tasks(results):
        rows.append(row)
        pairs += compared
    rows.sort(key=lambda row: row.direction == "none")  # metrics that only describe come last
    runs = {other.target.role for other in results[1:] if are_both_runs(results[0], other)}
    pairs = [replace(pair, are_runs=pair.against in runs) for pair in pairs]
    return tuple(rows), tuple(_test(pairs))


def are_both_runs(first: ModelResults, second: ModelResults) -> bool:
    """Return whether both models are runs, whose difference with one seed each is not one of their recipes."""
    return first.target.run is not None and second.target.run is not None


def have_same_tokens(first: ModelResults, second: ModelResults) -> bool:
    """Return whether two models have the same tokens and labels for all rows; else their losses can't be compared."""
    return [_tokens(row) for row in first.rows] == [_tokens(row) for row in second.rows]


def _tokens(row: TokenRow | None) -> object:
    return None if row is None else (row.input_ids, row.labels)


def _select(prompts: Sequence[str] | None, rows: NDArray[np.bool_]) -> list[str] | None:
    """Return the prompts of some rows."""
    return None if prompts is None else [prompt for prompt, keep in zip(prompts, rows, strict=True) if keep]


def _estimate(values: RowValues, weights: RowValues | None, prompts: Sequence[str] | None) -> MetricValue | None:
    """Estimate the value of one model over the prompts that have one."""
    rows = ~np.isnan(values)
    if not rows.any():
        return None
    weights = None if weights is None else weights[rows]
    estimate = bootstrap_estimate(values[rows], weights, prompts=_select(prompts, rows))
    return MetricValue(estimate.value, estimate.low, estimate.high, estimate.n)


def values_of_rows(source: PerRow, results: ModelResults) -> tuple[RowValues, RowValues | None]:
    """Return a model's values (rows,) of a metric, and their weights; None for a plain mean."""
    weights = None if source.weights is None else _values(source.weights(results))
    return _values(source.values(results)), weights


def _transform(value: MetricValue | None, function: Callable[[float], float]) -> MetricValue | None:
    """Apply an increasing function to a value and the ends of its interval."""
    if value is None:
        return None
    low, high = (None if end is None else function(end) for end in (value.low, value.high))
    return MetricValue(function(value.value), low, high, value.n)


def _compute_over_all(results: ModelResults, source: OverAllAnswers) -> MetricValue | None:
    """Compute a metric of all answers together; it has no interval, because rows can't be resampled."""
    value = source.compute([answer.text for answer in results.answers])
    return None if value is None else MetricValue(value, None, None, len(results.answers))


def _compare_tasks(results: Sequence[ModelResults]) -> list[tuple[MetricRow, list[_PairedValues]]]:
    """Return the row of each benchmark task, with the values of the models that ran the same documents."""
    compared = []
    for index, ours in enumerate(results[0].tasks):
        of_models = [model.tasks[index] for model in results]
        metric = task_metric_id(ours.task, ours.metric)
        better: Direction = "higher" if ours.higher_is_better else "lower"
        estimates = tuple(
            _estimate(_values(task.per_example), None, None) or MetricValue(task.value, None, None, 0)
            for task in of_models
        )
        pairs = [
            _PairedValues(metric, better, other.target.role, _values(theirs.per_example), _values(ours.per_example))
            for other, theirs in zip(results[1:], of_models[1:], strict=True)
            if theirs.documents == ours.documents
        ]
        compared.append((MetricRow(metric, "", better, estimates), pairs))
    return compared


def task_metrics(results: ModelResults) -> dict[str, CellMetric]:
    """Return the benchmark tasks with a value for each document, by the id of the metric."""
    return {
        task_metric_id(task.task, task.metric): {
            "direction": "higher" if task.higher_is_better else "lower",
            "values": list(task.per_example),
            "weights": None,
            "of": "documents",
        }
        for task in results.tasks
        if task.per_example
    }


def _compare_judged(
    metric: Metric, source: Judged, judged: JudgeScores, prompts: Sequence[str]
) -> tuple[MetricValue | None, list[_PairedValues]]:
    """Estimate how often the evaluated model's answer won; the interval is that of a test against one half."""
    scores = _values(source.scores(judged))
    lengths = np.array(judged.lengths, dtype=float) if source.length_controlled else None
    halves = np.full(len(scores), 0.5)
    pair = _PairedValues(
        metric.id, metric.direction, judged.against, halves, scores, None, prompts, is_win_rate=True, lengths=lengths
    )
    difference = pair.difference()
    if difference is None:
        return None, []
    low, high = (None if end is None else 0.5 + end for end in (difference.low, difference.high))
    return MetricValue(0.5 + difference.value, low, high, difference.n), [pair]


def win_rate_bounds(judged: JudgeScores) -> tuple[float, float] | None:
    """Return the win rate if all unreadable pairs were lost, and if all were won; None if all or none can be read."""
    readable = [score for score in judged.scores if score is not None]
    unreadable = len(judged.scores) - len(readable)
    if not unreadable or not readable:
        return None
    return sum(readable) / len(judged.scores), (sum(readable) + unreadable) / len(judged.scores)


def _test(pairs: Sequence[_PairedValues]) -> list[Comparison]:
    """Test the differences; those in metrics with a better direction are corrected together, the others as well."""
    differences: dict[_PairedValues, PairedDifference] = {}
    for pair in pairs:
        difference = pair.difference()
        if difference is not None:
            differences[pair] = difference
    adjusted: dict[_PairedValues, float] = {}
    for descriptive in (False, True):
        tested = [
            pair
            for pair, difference in differences.items()
            if (pair.better == "none") == descriptive and difference.n >= MIN_PROMPTS and is_tested(pair.metric)
        ]
        testable = sum(differences[pair].smallest_p < LEVEL for pair in tested)
        for pair in tested:  # again, since the detectable effect depends on the number of comparisons
            differences[pair] = pair.difference(max(1, testable)) or differences[pair]
        tested_differences = [differences[pair] for pair in tested]
        p_values = [1.0 if difference.p is None else difference.p for difference in tested_differences]
        smallest = [difference.smallest_p for difference in tested_differences]
        adjusted.update(zip(tested, holm_adjust(p_values, smallest), strict=True))
    return [_comparison(pair, difference, adjusted.get(pair)) for pair, difference in differences.items()]


def _comparison(pair: _PairedValues, difference: PairedDifference, p_adjusted: float | None) -> Comparison:
    tested = p_adjusted is not None
    verdict = name_verdict(p_adjusted, difference.value, pair.better)
    if pair.are_runs:
        verdict = name_direction(p_adjusted, difference.value)
    return Comparison(
        metric=pair.metric,
        against=pair.against,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p=difference.p if tested else None,
        p_adjusted=p_adjusted,
        n=difference.n,
        detectable=difference.detectable if tested else None,
        verdict=verdict,
        true_level=difference.true_level if tested else None,
        smallest_p=difference.smallest_p if tested else None,
    )
