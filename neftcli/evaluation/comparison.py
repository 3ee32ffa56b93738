"""From what models did on the same examples to the table: values, differences, and the words for them.

Every comparison is paired, example by example. The comparisons that may say "better" or "worse" are corrected
together (Holm), and those that only describe, which say "higher" or "lower", together as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neftcli.evaluation.metrics import distinct_n
from neftcli.events import Comparison, Estimated, MetricRow
from neftcli.statistics.multiple import Better, adjust, verdict
from neftcli.statistics.paired import FEWEST, PairedDifference, estimate, paired_difference

if TYPE_CHECKING:
    from neftcli.evaluation.measure import Results

Values = NDArray[np.float64]
"""One number for each example; NaN where it has none."""

LOSS, WIN_RATE, MATCHED_WIN_RATE = "held-out loss", "win rate", "win rate, matched"


@dataclass(frozen=True)
class Metric:
    """A number that every example has, of every model.

    Attributes:
        name: For people.
        unit: For people; empty where it has none.
        better: lower, higher, or none where neither is good or bad in itself.
        of: The examples' values.
        weights: What the values are sums over (an example's tokens); the value is then the ratio of both sums.
    """

    name: str
    unit: str
    better: Better
    of: Callable[[Results], Values]
    weights: Callable[[Results], Values] | None = None


def _values(numbers: Iterable[float | None]) -> Values:
    return np.array([np.nan if number is None else float(number) for number in numbers])


def _of_loss(attribute: str) -> Callable[[Results], Values]:
    return lambda results: _values(None if loss is None else getattr(loss, attribute) for loss in results.losses)


def _of_answer(attribute: str) -> Callable[[Results], Values]:
    return lambda results: _values(getattr(answer, attribute) for answer in results.answers)


def _of_metrics(attribute: str) -> Callable[[Results], Values]:
    return lambda results: _values(getattr(metrics, attribute) for metrics in results.metrics)


METRICS = (
    Metric(LOSS, "nats a token", "lower", _of_loss("negative_log_likelihood"), _of_loss("tokens")),
    Metric("token accuracy", "", "higher", _of_loss("correct"), _of_loss("tokens")),
    Metric("exact match", "", "higher", _of_metrics("exact_match")),
    Metric("answer tokens", "", "none", _of_answer("tokens")),
    Metric("answer characters", "", "none", _of_metrics("characters")),
    Metric("cut at the limit", "", "none", _of_answer("cut")),
    Metric("2-gram repetition", "", "none", _of_metrics("repetition_2")),
    Metric("log-diversity", "", "none", _of_metrics("log_diversity")),
    Metric("ROUGE-L", "", "none", _of_metrics("rouge_l")),
    Metric("BLEU", "", "none", _of_metrics("bleu")),
    Metric("chrF", "", "none", _of_metrics("chrf")),
)
DISTINCT = (1, 2)


@dataclass(frozen=True)
class Scores:
    """The judge's scores of the evaluated model's answers against another's.

    Attributes:
        against: The other model's role.
        scores: 1 won, 0 lost, 0.5 tie; None where a verdict could not be parsed.
        matched: Pairs whose answers are about equally long.
        verdicts: What the judge said in the two orders.
    """

    against: str
    scores: tuple[float | None, ...]
    matched: tuple[bool, ...]
    verdicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Question:
    """One comparison before its p value is corrected."""

    name: str
    better: Better
    against: str
    first: Values
    second: Values
    weights: Values | None = None


def compare(results: Sequence[Results], judged: Scores | None) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """The rows of the table, and the first model against each of the others.

    Args:
        results: What each model did; the evaluated one first.
        judged: The judge's scores, if there are any.
    """
    rows: list[MetricRow] = []
    questions: list[_Question] = []
    for metric in METRICS:
        values = [metric.of(one) for one in results]
        weights = [metric.weights(one) for one in results] if metric.weights else [None] * len(results)
        estimates = tuple(_estimated(v, w) for v, w in zip(values, weights, strict=True))
        if any(estimates):
            rows.append(MetricRow(metric.name, metric.unit, metric.better, estimates))
            if metric.name == LOSS:
                rows.append(MetricRow("perplexity", "", "lower", tuple(map(_perplexity, estimates))))
        for other, theirs in zip(results[1:], values[1:], strict=True):
            if metric.weights is None or same_tokens(results[0], other):
                questions.append(
                    _Question(
                        metric.name,
                        metric.better,
                        other.subject.role,
                        theirs,
                        values[0],
                        weights[0],
                    )
                )
    rows += _distinct_rows(results)
    for row, asked in (*_task_rows(results), *_win_rates(judged, len(results))):
        rows.append(row)
        questions += asked
    order = ("lower", "higher", "none")  # what is good or bad stands before what only describes
    rows.sort(key=lambda row: row.better == order[-1])
    return tuple(rows), tuple(_answered(questions))


def same_tokens(first: Results, second: Results) -> bool:
    """Whether two models read the same tokens and are scored on the same; else their losses can't be compared."""
    return [_tokens(row) for row in first.rows] == [_tokens(row) for row in second.rows]


def _tokens(row: object) -> object:
    return None if row is None else (row.input_ids, row.labels)  # type: ignore[attr-defined]


def _estimated(values: Values, weights: Values | None) -> Estimated | None:
    kept = ~np.isnan(values)
    if not kept.any():
        return None
    found = estimate(values[kept], None if weights is None else weights[kept])
    return Estimated(found.value, found.low, found.high, found.n)


def _perplexity(loss: Estimated | None) -> Estimated | None:
    """exp(loss), and its interval by the same function, which keeps order."""
    if loss is None:
        return None
    low, high = (None if bound is None else math.exp(bound) for bound in (loss.low, loss.high))
    return Estimated(math.exp(loss.value), low, high, loss.n)


def _distinct_rows(results: Sequence[Results]) -> list[MetricRow]:
    """distinct-n of all answers together; it is of the whole, so examples can't be resampled for an interval."""
    rows = []
    for n in DISTINCT:
        values = [distinct_n([answer.text for answer in one.answers], n) for one in results]
        if any(value is not None for value in values):
            numbers = tuple(
                None if value is None else Estimated(value, None, None, len(one.answers))
                for value, one in zip(values, results, strict=True)
            )
            rows.append(MetricRow(f"distinct-{n}", "", "none", numbers))
    return rows


def _task_rows(results: Sequence[Results]) -> list[tuple[MetricRow, list[_Question]]]:
    rows = []
    for place, ours in enumerate(results[0].tasks):
        of_all = [one.tasks[place] for one in results]
        name = f"{ours.task} {ours.metric}"
        better: Better = "higher" if ours.higher_is_better else "lower"
        estimates = tuple(
            _estimated(_values(one.per_example), None) or Estimated(one.value, None, None, 0) for one in of_all
        )
        questions = [
            _Question(name, better, other.subject.role, _values(theirs.per_example), _values(ours.per_example))
            for other, theirs in zip(results[1:], of_all[1:], strict=True)
            if theirs.documents == ours.documents
        ]
        rows.append((MetricRow(name, "", better, estimates), questions))
    return rows


def task_metrics(results: Results) -> dict[str, dict[str, object]]:
    """Benchmark tasks with a value for each document: name to direction and values."""
    return {
        f"{task.task} {task.metric}": {
            "better": "higher" if task.higher_is_better else "lower",
            "values": list(task.per_example),
            "weights": None,
            "of": "documents",
        }
        for task in results.tasks
        if task.per_example
    }


def _win_rates(judged: Scores | None, models: int) -> list[tuple[MetricRow, list[_Question]]]:
    """How often the evaluated model's answer won, over all pairs and over those of like length."""
    if judged is None:
        return []
    scores = _values(judged.scores)
    like = np.where(judged.matched, scores, np.nan)
    even = np.full(len(scores), 0.5)
    return [
        (
            MetricRow(name, "", "higher", (found, *[None] * (models - 1))),
            [_Question(name, "higher", judged.against, even, chosen)],
        )
        for name, chosen in ((WIN_RATE, scores), (MATCHED_WIN_RATE, like))
        if (found := _estimated(chosen, None)) is not None
    ]


def _answered(questions: Sequence[_Question]) -> list[Comparison]:
    """The comparisons; those of a kind that can be decided at all are corrected together."""
    found = {place: _difference(question, 1) for place, question in enumerate(questions) if _pairs(question).any()}
    adjusted: dict[int, float] = {}
    for describes in (False, True):
        kind = [place for place in found if (questions[place].better == "none") == describes]
        decidable = [place for place in kind if found[place].n >= FEWEST]
        found.update({place: _difference(questions[place], len(decidable)) for place in decidable})
        p_values = [p for place in decidable if (p := found[place].p) is not None]
        adjusted.update(zip(decidable, adjust(p_values), strict=True))
    return [_comparison(questions[place], difference, adjusted.get(place)) for place, difference in found.items()]


def _comparison(question: _Question, difference: PairedDifference, p_adjusted: float | None) -> Comparison:
    return Comparison(
        metric=question.name,
        against=question.against,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p=None if p_adjusted is None else difference.p,
        p_adjusted=p_adjusted,
        n=difference.n,
        detectable=None if p_adjusted is None else difference.detectable,
        verdict=verdict(p_adjusted, difference.value, question.better),
    )


def _pairs(question: _Question) -> NDArray[np.bool_]:
    """Which examples have the metric on both sides."""
    return ~(np.isnan(question.first) | np.isnan(question.second))


def _difference(question: _Question, comparisons: int) -> PairedDifference:
    pairs = _pairs(question)
    weights = None if question.weights is None else question.weights[pairs]
    return paired_difference(question.first[pairs], question.second[pairs], weights, comparisons=comparisons)
