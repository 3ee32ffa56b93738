"""Compare the models' results on the same rows: values, differences and verdicts.

Every comparison is paired, row by row, and rows with the same prompt are summed before any test. The metrics that are
good in one direction are corrected together (Holm's correction with Tarone's), and those that only describe together
as well. Of the three win rates, which count the same pairs, only the length-controlled one is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neftcli.evaluation.metrics import distinct_n
from neftcli.events import Comparison, MetricRow, MetricValue
from neftcli.runs.schemas import CellMetric
from neftcli.statistics.multiple import Better, adjust, direction, verdict
from neftcli.statistics.paired import FEWEST, LEVEL, PairedDifference, estimate, paired_difference
from neftcli.statistics.win_rates import win_rate

if TYPE_CHECKING:
    from neftcli.evaluation.measurement import Results

Values = NDArray[np.float64]
"""(rows,), NaN if a row has no value."""

LOSS, WIN_RATE, MATCHED_WIN_RATE = "held-out loss", "win rate", "win rate, matched"
CONTROLLED_WIN_RATE = "win rate, length-controlled"
"""The win rate that is tested, in evaluations and sweeps."""
DESCRIPTIVE_WIN_RATES = (WIN_RATE, MATCHED_WIN_RATE)
"""Win rates of the same pairs, counted in other ways: with an interval, without a test."""


@dataclass(frozen=True)
class Metric:
    """A number that every example has, of every model.

    Attributes:
        name: For people.
        unit: For people; empty if it has none.
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
        name: The metric.
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
    better: Better
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
            found = win_rate(self.second[rows], lengths, prompts=prompts, comparisons=comparisons)
            if found is not None or lengths is not None:
                return found
        weights = None if self.weights is None else self.weights[rows]
        return paired_difference(self.first[rows], self.second[rows], weights, prompts=prompts, comparisons=comparisons)


def compare(
    results: Sequence[Results], judged: Scores | None, prompts: Sequence[str]
) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """Build the rows of the table, and compare the first model with each of the others.

    Args:
        results: Results of each model, the evaluated one first.
        judged: The judge's scores, if there are any.
        prompts: (rows,), equal for rows that share a prompt.
    """
    rows: list[MetricRow] = []
    questions: list[_Question] = []
    for metric in METRICS:
        values = [metric.of(one) for one in results]
        weights = [metric.weights(one) for one in results] if metric.weights else [None] * len(results)
        estimates = tuple(_estimated(v, w, prompts) for v, w in zip(values, weights, strict=True))
        if any(estimates):
            rows.append(MetricRow(metric.name, metric.unit, metric.better, estimates))
            if metric.name == LOSS:
                rows.append(MetricRow("perplexity", "", "lower", tuple(map(_perplexity, estimates))))
        questions += [
            _Question(metric.name, metric.better, other.subject.role, theirs, values[0], weights[0], prompts)
            for other, theirs in zip(results[1:], values[1:], strict=True)
            if metric.weights is None or same_tokens(results[0], other)
        ]
    rows += _distinct_rows(results)
    for row, asked in (*_task_rows(results), *_win_rates(judged, prompts, len(results))):
        rows.append(row)
        questions += asked
    order = ("lower", "higher", "none")  # what is good or bad stands before what only describes
    rows.sort(key=lambda row: row.better == order[-1])
    runs = {other.subject.role for other in results[1:] if two_runs(results[0], other)}
    questions = [replace(question, rated=question.against not in runs) for question in questions]
    return tuple(rows), tuple(_answered(questions))


def two_runs(first: Results, second: Results) -> bool:
    """Return whether both are runs: with one seed of each, their difference can't be put down to their recipes."""
    return first.subject.run is not None and second.subject.run is not None


def same_tokens(first: Results, second: Results) -> bool:
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
    found = estimate(values[rows], counts, prompts=kept)
    return MetricValue(found.value, found.low, found.high, found.n)


def _perplexity(loss: MetricValue | None) -> MetricValue | None:
    """exp(loss), and its interval by the same function, which keeps order."""
    if loss is None:
        return None
    low, high = (None if bound is None else math.exp(bound) for bound in (loss.low, loss.high))
    return MetricValue(math.exp(loss.value), low, high, loss.n)


def _distinct_rows(results: Sequence[Results]) -> list[MetricRow]:
    """distinct-n of all answers together; it is of the whole, so examples can't be resampled for an interval."""
    rows = []
    for n in DISTINCT:
        values = [distinct_n([answer.text for answer in one.answers], n) for one in results]
        if any(value is not None for value in values):
            numbers = tuple(
                None if value is None else MetricValue(value, None, None, len(one.answers))
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
            _estimated(_values(one.per_example), None, None) or MetricValue(one.value, None, None, 0) for one in of_all
        )
        questions = [
            _Question(name, better, other.subject.role, _values(theirs.per_example), _values(ours.per_example))
            for other, theirs in zip(results[1:], of_all[1:], strict=True)
            if theirs.documents == ours.documents
        ]
        rows.append((MetricRow(name, "", better, estimates), questions))
    return rows


def task_metrics(results: Results) -> dict[str, CellMetric]:
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


def _win_rates(judged: Scores | None, prompts: Sequence[str], models: int) -> list[tuple[MetricRow, list[_Question]]]:
    """Compute how often the evaluated model's answer won: over all pairs, pairs of similar length, at equal lengths.

    The interval of each is that of a test against one half; only the length-controlled one is tested.
    """
    if judged is None:
        return []
    scores = _values(judged.scores)
    like = np.where(judged.matched, scores, np.nan)
    even = np.full(len(scores), 0.5)
    rows = []
    for name, chosen, lengths in (
        (WIN_RATE, scores, None),
        (MATCHED_WIN_RATE, like, None),
        (CONTROLLED_WIN_RATE, scores, np.array(judged.lengths, dtype=float)),
    ):
        question = _Question(
            name, "higher", judged.against, even, chosen, None, prompts, is_win_rate=True, lengths=lengths
        )
        if (found := question.difference()) is not None:
            low, high = (None if end is None else 0.5 + end for end in (found.low, found.high))
            estimated = MetricValue(0.5 + found.value, low, high, found.n)
            rows.append((MetricRow(name, "", "higher", (estimated, *[None] * (models - 1))), [question]))
    return rows


def win_rate_bounds(judged: Scores) -> tuple[float, float] | None:
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
            if (question.better == "none") == describes
            and difference.n >= FEWEST
            and question.name not in DESCRIPTIVE_WIN_RATES
        ]
        family = sum(found[question].smallest_p < LEVEL for question in tested)
        for question in tested:
            found[question] = question.difference(max(1, family)) or found[question]
        differences = [found[question] for question in tested]
        p_values = [1.0 if one.p is None else one.p for one in differences]
        adjusted.update(zip(tested, adjust(p_values, [one.smallest_p for one in differences]), strict=True))
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
        verdict=verdict(p_adjusted, difference.value, question.better)
        if question.rated
        else direction(p_adjusted, difference.value),
        true_level=difference.true_level if tested else None,
    )
