"""The registry of metrics: one entry for each, from which everything else looks up what it needs.

An id is what files, JSON events, recipes and code use; a label is what tables and sentences print. To add a metric, add
an entry to `ENTRIES` and a row to the table in docs/evaluation.md, which a test compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Direction: TypeAlias = Literal["lower", "higher", "none"]
"""Values of a metric that are better; none if the metric only describes."""

HELD_OUT_LOSS = "held_out_loss"
ANSWER_TOKENS = "answer_tokens"
REPETITION_2 = "repetition_2"
WIN_RATE = "win_rate"
WIN_RATE_MATCHED = "win_rate_matched"
WIN_RATE_LENGTH_CONTROLLED = "win_rate_length_controlled"

TASK_SHARES = ("/acc", "/acc_norm", "/exact_match")


class RowResults(Protocol):
    """Results of a model, row by row, as `evaluation/measurement.py` has them."""

    @property
    def losses(self) -> Sequence[Any]:
        """(rows,), the loss of each row; None if it has none."""

    @property
    def answers(self) -> Sequence[Any]:
        """(rows,), the answer to each row; empty if none were generated."""

    @property
    def metrics(self) -> Sequence[Any]:
        """(rows,), the metrics of each answer."""


@dataclass(frozen=True)
class JudgeScores:
    """The judge's scores of the evaluated model's answers against another model's.

    Attributes:
        against: Role of the other model.
        scores: (rows,), 1 won, 0 lost, 0.5 tie; None if a verdict could not be read.
        matched: (rows,), True if both answers have about the same length.
        lengths: (rows,), characters of the evaluated model's answer minus those of the other's.
        verdicts: (rows,), the judge's verdicts in the two orders.
    """

    against: str
    scores: tuple[float | None, ...]
    matched: tuple[bool, ...]
    lengths: tuple[int, ...]
    verdicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PerRow:
    """A metric with a value for each row, averaged over rows or, with weights, summed and divided by their sum.

    Attributes:
        values: (rows,), None if a row has no value.
        weights: (rows,), such as each row's tokens with loss; None for a plain mean.
        of_answers: The values are of generated answers; False if they are of losses.
    """

    values: Callable[[RowResults], list[float | None]]
    weights: Callable[[RowResults], list[float | None]] | None = None
    of_answers: bool = True


@dataclass(frozen=True, slots=True)
class OverAllAnswers:
    """A metric of all answers together, without a confidence interval or a test.

    Attributes:
        compute: From the answers' texts to the value; None if there is none.
    """

    compute: Callable[[Sequence[str]], float | None]


@dataclass(frozen=True, slots=True)
class Transformed:
    """An increasing function of another metric and of the ends of its interval; not tested a second time.

    Attributes:
        source: The other metric's id.
        function: The function.
    """

    source: str
    function: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A win rate, from the judge's scores of pairs of answers.

    Attributes:
        scores: (pairs,), 1 won, 0.5 tie, 0 lost; None if a pair does not count.
        length_controlled: Estimate it at equal lengths of the two answers.
        is_tested: False if it describes the pairs that another win rate tests.
    """

    scores: Callable[[JudgeScores], Sequence[float | None]]
    length_controlled: bool = False
    is_tested: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
        id: Its identifier in code, files, JSON and recipes.
        label: Its name in tables and sentences.
        unit: Id of its unit; empty if it has none.
        direction: Values that are better: lower or higher; none if it only describes.
        definition: The definition that docs/evaluation.md gives, in Markdown.
        source: The computation of its values.
        is_share: It is between 0 and 1, and shown in per cent.
        sweep_direction: Values that are better if a sweep decides by it, or if it selects the weights of a run; None if
            it can do neither.
        needs_reference: It compares an answer with the reference answer.
        heading: Label of a narrow column; the label if empty.
    """

    id: str
    label: str
    unit: str
    direction: Direction
    definition: str
    source: PerRow | OverAllAnswers | Transformed | Judged
    is_share: bool = False
    sweep_direction: Direction | None = None
    needs_reference: bool = False
    heading: str = ""


def _of_losses(attribute: str) -> Callable[[RowResults], list[float | None]]:
    return lambda results: [None if loss is None else getattr(loss, attribute) for loss in results.losses]


def _of_answers(attribute: str) -> Callable[[RowResults], list[float | None]]:
    return lambda results: [getattr(answer, attribute) for answer in results.answers]


def _of_answer_metrics(attribute: str) -> Callable[[RowResults], list[float | None]]:
    return lambda results: [getattr(metrics, attribute) for metrics in results.metrics]


def _distinct(n: int) -> Callable[[Sequence[str]], float | None]:
    def compute(answers: Sequence[str]) -> float | None:
        from neftcli.metrics.answer_metrics import distinct_n  # imports regex

        return distinct_n(answers, n)

    return compute


def _matched_scores(judged: JudgeScores) -> list[float | None]:
    return [score if matched else None for score, matched in zip(judged.scores, judged.matched, strict=True)]


ENTRIES = (
    Metric(
        HELD_OUT_LOSS,
        "held-out loss",
        "nats_per_token",
        "lower",
        "negative log-likelihood of the answers' tokens in nats, summed over tokens, divided by tokens",
        PerRow(_of_losses("negative_log_likelihood"), _of_losses("tokens"), of_answers=False),
        sweep_direction="lower",
    ),
    Metric(
        "perplexity",
        "perplexity",
        "",
        "lower",
        "exp(held-out loss); not tested a second time",
        Transformed(HELD_OUT_LOSS, math.exp),
    ),
    Metric(
        "token_accuracy",
        "token accuracy",
        "",
        "higher",
        "share of those tokens to which the model gives the highest probability",
        PerRow(_of_losses("correct"), _of_losses("tokens"), of_answers=False),
        is_share=True,
        sweep_direction="higher",
    ),
    Metric(
        "exact_match",
        "exact match",
        "",
        "higher",
        "share of answers that equal the reference except for case, white space and punctuation around it; only rows "
        "whose reference has at most five words",
        PerRow(_of_answer_metrics("exact_match")),
        is_share=True,
        sweep_direction="higher",
        needs_reference=True,
    ),
    Metric(
        WIN_RATE,
        "win rate",
        "",
        "higher",
        "share of pairs in which the judge preferred this model, a tie counting one half; not tested",
        Judged(lambda judged: judged.scores),
        is_share=True,
    ),
    Metric(
        WIN_RATE_MATCHED,
        "win rate, matched",
        "",
        "higher",
        "the same over pairs whose answers' lengths differ by a factor of 1.25 at most; not tested",
        Judged(_matched_scores),
        is_share=True,
    ),
    Metric(
        WIN_RATE_LENGTH_CONTROLLED,
        "win rate, length-controlled",
        "",
        "higher",
        "the win rate that the judge would give to answers of equal length, from all pairs "
        "([below](#win-rates-and-length)); the one that is tested",
        Judged(lambda judged: judged.scores, length_controlled=True, is_tested=True),
        is_share=True,
        sweep_direction="higher",
    ),
    Metric(
        ANSWER_TOKENS,
        "answer tokens",
        "",
        "none",
        "length of an answer in tokens, without its stop token",
        PerRow(_of_answers("tokens")),
        heading="tokens",
    ),
    Metric(
        "answer_characters",
        "answer characters",
        "",
        "none",
        "length of an answer in Unicode characters",
        PerRow(_of_answer_metrics("characters")),
    ),
    Metric(
        "truncated_answers",
        "truncated answers",
        "",
        "none",
        "share of answers that `max_new_tokens` ended",
        PerRow(_of_answers("truncated")),
        is_share=True,
    ),
    Metric(
        REPETITION_2,
        "2-gram repetition",
        "",
        "none",
        "1 - distinct / all 2-grams of an answer (Li et al. 2022, arXiv 2210.15097)",
        PerRow(_of_answer_metrics("repetition_2")),
        is_share=True,
        heading="repetition",
    ),
    Metric(
        "log_diversity",
        "log-diversity",
        "",
        "none",
        "-log(max(1 - D, e^-20)), D the product of (1 - repetition of n-grams), n = 2, 3, 4 (Kirchenbauer et al. 2023, "
        "arXiv 2306.04634, whose measure the NEFTune paper reports)",
        PerRow(_of_answer_metrics("log_diversity")),
    ),
    Metric(
        "distinct_1",
        "distinct-1",
        "",
        "none",
        "distinct over all words of all answers (Li et al. 2016, arXiv 1510.03055)",
        OverAllAnswers(_distinct(1)),
    ),
    Metric(
        "distinct_2",
        "distinct-2",
        "",
        "none",
        "distinct over all 2-grams of all answers",
        OverAllAnswers(_distinct(2)),
    ),
    Metric(
        "rouge_l",
        "ROUGE-L",
        "",
        "none",
        "F1 of the longest common subsequence with the reference by `rouge-score`, mean over rows",
        PerRow(_of_answer_metrics("rouge_l")),
        sweep_direction="higher",
        needs_reference=True,
    ),
    Metric(
        "bleu",
        "BLEU",
        "",
        "none",
        "sentence BLEU by `sacrebleu`, mean over rows",
        PerRow(_of_answer_metrics("bleu")),
        needs_reference=True,
    ),
    Metric(
        "chrf",
        "chrF",
        "",
        "none",
        "sentence chrF by `sacrebleu`, mean over rows",
        PerRow(_of_answer_metrics("chrf")),
        needs_reference=True,
    ),
)

METRICS_BY_ID: dict[str, Metric] = {metric.id: metric for metric in ENTRIES}
"""All metrics but those of benchmark tasks, by id, in the order of the table."""
SWEEP_METRICS = (*(metric.id for metric in ENTRIES if metric.sweep_direction is not None), "tasks")
"""Values of `sweep.metrics`; "tasks" stands for the metrics of all benchmark tasks."""
ANSWER_METRICS = tuple(
    metric.id
    for metric in ENTRIES
    if isinstance(metric.source, OverAllAnswers) or (isinstance(metric.source, PerRow) and metric.source.of_answers)
)
"""Values of `evaluation.during`: the metrics that are computed from answers alone."""
BEST_METRICS = (
    HELD_OUT_LOSS,
    *(metric for metric in ANSWER_METRICS if METRICS_BY_ID[metric].sweep_direction is not None),
)
"""Values of `training.best_metric`."""


def task_metric_id(task: str, metric: str) -> str:
    """Return the id of a benchmark task's metric, such as "arc_easy/acc"."""
    return f"{task}/{metric}"


def label(metric_id: str) -> str:
    """Return a metric's name for people; a benchmark task's is its id."""
    metric = METRICS_BY_ID.get(metric_id)
    return metric_id if metric is None else metric.label


def heading(metric_id: str) -> str:
    """Return a metric's name for a narrow column."""
    metric = METRICS_BY_ID.get(metric_id)
    return metric_id if metric is None else metric.heading or metric.label


def unit(metric_id: str) -> str:
    """Return a metric's unit for people; an empty string if it has none."""
    metric = METRICS_BY_ID.get(metric_id)
    return "" if metric is None else metric.unit.replace("_", " ")


def is_better(metric_id: str, value: float, other: float) -> bool:
    """Return whether a value of one of `BEST_METRICS` is better than another one."""
    return value < other if comparative_word(metric_id) == "lower" else value > other


def comparative_word(metric_id: str) -> str:
    """Return the word for a better value of one of `BEST_METRICS`: lower or higher."""
    metric = METRICS_BY_ID.get(metric_id)
    return "lower" if metric is not None and metric.sweep_direction == "lower" else "higher"


def superlative(metric_id: str) -> str:
    """Return the best value of one of `BEST_METRICS` in words: "lowest held-out loss"."""
    return f"{'lowest' if comparative_word(metric_id) == 'lower' else 'highest'} {label(metric_id)}"


def is_share(metric_id: str) -> bool:
    """Return whether a metric is shown in per cent: the registry's shares, and accuracies of benchmark tasks."""
    metric = METRICS_BY_ID.get(metric_id)
    return metric_id.endswith(TASK_SHARES) if metric is None else metric.is_share


def is_tested(metric_id: str) -> bool:
    """Return whether differences in a metric are tested."""
    metric = METRICS_BY_ID.get(metric_id)
    return metric is None or not isinstance(metric.source, Judged) or metric.source.is_tested


def is_win_rate(metric_id: str) -> bool:
    """Return whether a metric is a win rate, which compares two models by a judge's verdicts."""
    return metric_id in METRICS_BY_ID and isinstance(METRICS_BY_ID[metric_id].source, Judged)


def is_descriptive(metric_id: str) -> bool:
    """Return whether neither direction of a metric is better; benchmark tasks always have one that is."""
    return metric_id in METRICS_BY_ID and METRICS_BY_ID[metric_id].direction == "none"
