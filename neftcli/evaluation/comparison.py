"""Compare the models' results on the same rows: values, differences and verdicts.

Every comparison is paired, row by row, and rows with the same prompt are summed before any test. The metrics that are
good in one direction are corrected together (Holm's correction with Tarone's), and those that only describe together
as well. Of the three win rates, which count the same pairs, only the length-controlled one is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neftcli.evaluation.metrics import (
    REGISTRY,
    Judged,
    Metric,
    OverAllAnswers,
    PerRow,
    Transformed,
    is_tested,
    task_metric_id,
)
from neftcli.events import Comparison, MetricRow, MetricValue
from neftcli.runs.schemas import CellMetric
from neftcli.statistics.multiple import Direction, holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS, PairedDifference, bootstrap_estimate, paired_difference
from neftcli.statistics.win_rates import estimate_win_rate

if TYPE_CHECKING:
    from neftcli.evaluation.measurement import ModelResults

Values = NDArray[np.float64]
"""(rows,), NaN if a row has no value."""


def _values(numbers: Iterable[float | None]) -> Values:
    return np.array([np.nan if number is None else float(number) for number in numbers])


@dataclass(frozen=True)
class JudgeScores:
    """The judge's scores of the evaluated model's answers against another's.

    Attributes:
        against: The other model's role.
        scores: 1 won, 0 lost, 0.5 tie; None if a verdict could not be parsed.
        matched: Pairs whose answers are about equally long.
        lengths: Characters of the evaluated model's answer less those of the other's.
        verdicts: The judge's verdicts in the two orders.
    """

    against: str
    scores: tuple[float | None, ...]
    matched: tuple[bool, ...]
    lengths: tuple[int, ...]
    verdicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _Question:
    """A comparison before its p-value is corrected.

    Attributes:
        name: The metric's id.
        better: Its good direction.
        against: The other model's role.
        first: The other model's values, (rows,); NaN if a row has none.
        second: The evaluated model's.
        weights: (rows,), or None for a mean over rows.
        prompts: (rows,), equal for rows that share a prompt; None if all differ.
        is_win_rate: The values are scores of pairs, and the other model's are halves.
        lengths: (rows,), for a win rate at equal lengths; None for any other.
        rated: A direction may be called better or worse, which one run each of two recipes does not support.
    """

    name: str
    better: Direction
    against: str
    first: Values
    second: Values
    weights: Values | None = None
    prompts: Sequence[str] | None = None
    is_win_rate: bool = False
    lengths: Values | None = None
    rated: bool = True

    def difference(self, comparisons: int = 1) -> PairedDifference | None:
        """Estimate and test it on the rows that both sides have; None if there are none, or no lengths to control.

        A win rate of few pairs gets no test of its own, and its value is that of the plain difference.
        """
        rows = ~(np.isnan(self.first) | np.isnan(self.second))
        if not rows.any():
            return None
        prompts = _kept(self.prompts, rows)
        if self.is_win_rate:
            lengths = None if self.lengths is None else self.lengths[rows]
            found = estimate_win_rate(self.second[rows], lengths, prompts=prompts, comparisons=comparisons)
            if found is not None or lengths is not None:
                return found
        weights = None if self.weights is None else self.weights[rows]
        return paired_difference(self.first[rows], self.second[rows], weights, prompts=prompts, comparisons=comparisons)


def compare_models(
    results: Sequence[ModelResults], judged: JudgeScores | None, prompts: Sequence[str]
) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """Build the rows of the table, and compare the first model with each of the others.

    Args:
        results: Results of each model, the evaluated one first.
        judged: The judge's scores, if there are any.
        prompts: (rows,), equal for rows that share a prompt.
    """
    rows: list[MetricRow] = []
    questions: list[_Question] = []
    for metric in REGISTRY.values():
        match metric.source:
            case PerRow():
                values, weights = zip(*(values_of_rows(metric.source, one) for one in results), strict=True)
                estimates = tuple(_estimated(v, w, prompts) for v, w in zip(values, weights, strict=True))
                questions += [
                    _Question(metric.id, metric.direction, other.target.role, theirs, values[0], weights[0], prompts)
                    for other, theirs in zip(results[1:], values[1:], strict=True)
                    if metric.source.weights is None or have_same_tokens(results[0], other)
                ]
            case Transformed():
                source = next((row.values for row in rows if row.metric == metric.source.source), ())
                estimates = tuple(_transformed(estimate, metric.source.function) for estimate in source)
            case OverAllAnswers():
                estimates = tuple(_of_all_answers(one, metric.source) for one in results)
            case Judged():
                own, asked = _win_rate(metric, metric.source, judged, prompts)
                estimates = (own, *[None] * (len(results) - 1))
                questions += asked
        if any(estimates):
            rows.append(MetricRow(metric.id, metric.unit, metric.direction, estimates))
    for row, asked in _task_rows(results):
        rows.append(row)
        questions += asked
    order = ("lower", "higher", "none")  # what is good or bad stands before what only describes
    rows.sort(key=lambda row: row.direction == order[-1])
    runs = {other.target.role for other in results[1:] if are_both_runs(results[0], other)}
    questions = [replace(question, rated=question.against not in runs) for question in questions]
    return tuple(rows), tuple(_answered(questions))


def are_both_runs(first: ModelResults, second: ModelResults) -> bool:
    """Return whether both are runs: with one seed of each, their difference can't be put down to their recipes."""
    return first.target.run is not None and second.target.run is not None


def have_same_tokens(first: ModelResults, second: ModelResults) -> bool:
    """Return whether two models read and are scored on the same tokens; else their losses can't be compared."""
    return [_tokens(row) for row in first.rows] == [_tokens(row) for row in second.rows]


def _tokens(row: object) -> object:
    return None if row is None else (row.input_ids, row.labels)  # type: ignore[attr-defined]


def _kept(prompts: Sequence[str] | None, rows: NDArray[np.bool_]) -> list[str] | None:
    """The prompts of some of the rows."""
    return None if prompts is None else [prompt for prompt, keep in zip(prompts, rows, strict=True) if keep]


def _estimated(values: Values, weights: Values | None, prompts: Sequence[str] | None) -> MetricValue | None:
    """A figure of one model, over the distinct prompts that have it."""
    rows = ~np.isnan(values)
    if not rows.any():
        return None
    counts, kept = None if weights is None else weights[rows], _kept(prompts, rows)
    found = bootstrap_estimate(values[rows], counts, prompts=kept)
    return MetricValue(found.value, found.low, found.high, found.n)


def values_of_rows(source: PerRow, results: ModelResults) -> tuple[Values, Values | None]:
    """Return a model's values (rows,) of a metric, and their weights, or None for a plain mean."""
    weights = None if source.weights is None else _values(source.weights(results))
    return _values(source.values(results)), weights


def _transformed(estimate: MetricValue | None, function: Callable[[float], float]) -> MetricValue | None:
    """An increasing function of a figure, and of the ends of its interval."""
    if estimate is None:
        return None
    low, high = (None if end is None else function(end) for end in (estimate.low, estimate.high))
    return MetricValue(function(estimate.value), low, high, estimate.n)


def _of_all_answers(results: ModelResults, source: OverAllAnswers) -> MetricValue | None:
    """A figure of all answers together; rows can't be resampled for an interval."""
    value = source.compute([answer.text for answer in results.answers])
    return None if value is None else MetricValue(value, None, None, len(results.answers))


def _task_rows(results: Sequence[ModelResults]) -> list[tuple[MetricRow, list[_Question]]]:
    rows = []
    for place, ours in enumerate(results[0].tasks):
        of_all = [one.tasks[place] for one in results]
        name = task_metric_id(ours.task, ours.metric)
        better: Direction = "higher" if ours.higher_is_better else "lower"
        estimates = tuple(
            _estimated(_values(one.per_example), None, None) or MetricValue(one.value, None, None, 0) for one in of_all
        )
        questions = [
            _Question(name, better, other.target.role, _values(theirs.per_example), _values(ours.per_example))
            for other, theirs in zip(results[1:], of_all[1:], strict=True)
            if theirs.documents == ours.documents
        ]
        rows.append((MetricRow(name, "", better, estimates), questions))
    return rows


def task_metrics(results: ModelResults) -> dict[str, CellMetric]:
    """Benchmark tasks with a value for each document: id to direction and values."""
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


def _win_rate(
    metric: Metric, source: Judged, judged: JudgeScores | None, prompts: Sequence[str]
) -> tuple[MetricValue | None, list[_Question]]:
    """Estimate how often the evaluated model's answer won; its interval is that of a test against one half."""
    if judged is None:
        return None, []
    scores = _values(source.scores(judged))
    lengths = np.array(judged.lengths, dtype=float) if source.length_controlled else None
    even = np.full(len(scores), 0.5)
    question = _Question(
        metric.id, metric.direction, judged.against, even, scores, None, prompts, is_win_rate=True, lengths=lengths
    )
    found = question.difference()
    if found is None:
        return None, []
    low, high = (None if end is None else 0.5 + end for end in (found.low, found.high))
    return MetricValue(0.5 + found.value, low, high, found.n), [question]


def win_rate_bounds(judged: JudgeScores) -> tuple[float, float] | None:
    """The win rate if every unreadable pair was lost, and if every one was won; None if all could be read, or none."""
    readable = [score for score in judged.scores if score is not None]
    unreadable = len(judged.scores) - len(readable)
    if not unreadable or not readable:
        return None
    return sum(readable) / len(judged.scores), (sum(readable) + unreadable) / len(judged.scores)


def _answered(questions: Sequence[_Question]) -> list[Comparison]:
    """The comparisons; those of a kind that can be tested at all are corrected together."""
    found = {question: difference for question in questions if (difference := question.difference()) is not None}
    adjusted: dict[_Question, float] = {}
    for describes in (False, True):
        tested = [
            question
            for question, difference in found.items()
            if (question.better == "none") == describes and difference.n >= MIN_PROMPTS and is_tested(question.name)
        ]
        family = sum(found[question].smallest_p < LEVEL for question in tested)
        for question in tested:
            found[question] = question.difference(max(1, family)) or found[question]
        differences = [found[question] for question in tested]
        p_values = [1.0 if one.p is None else one.p for one in differences]
        adjusted.update(zip(tested, holm_adjust(p_values, [one.smallest_p for one in differences]), strict=True))
    return [_comparison(question, difference, adjusted.get(question)) for question, difference in found.items()]


def _comparison(question: _Question, difference: PairedDifference, p_adjusted: float | None) -> Comparison:
    tested = p_adjusted is not None
    return Comparison(
        metric=question.name,
        against=question.against,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p=difference.p if tested else None,
        p_adjusted=p_adjusted,
        n=difference.n,
        detectable=difference.detectable if tested else None,
        verdict=name_verdict(p_adjusted, difference.value, question.better)
        if question.rated
        else name_direction(p_adjusted, difference.value),
        true_level=difference.true_level if tested else None,
        smallest_p=difference.smallest_p if tested else None,
    )
