"""Metrics of a few answers as one number each, without intervals: to see how training proceeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neftcli.metrics.answer_metrics import AnswerMetrics, measure_answer
from neftcli.metrics.registry import METRICS_BY_ID, OverAllAnswers, PerRow


@dataclass(frozen=True, slots=True)
class _Measured:
    """Answers with their metrics, as the registry reads them."""

    answers: Sequence[Any]
    metrics: Sequence[AnswerMetrics]
    losses: Sequence[Any] = ()


def mean_answer_metrics(
    metric_ids: Sequence[str], answers: Sequence[Any], references: Sequence[str]
) -> dict[str, float | None]:
    """Compute metrics of answers: means over the answers that have a value, or values of all answers together.

    Args:
        metric_ids: Ids of `ANSWER_METRICS`.
        answers: Generated answers, with their `text`, `tokens` and `truncated`.
        references: The reference answer of each; empty if there is none.

    Returns:
        The value of each metric; None if no answer has one.
    """
    measured = [
        measure_answer(answer.text, reference or None) for answer, reference in zip(answers, references, strict=True)
    ]
    results: dict[str, float | None] = {}
    for metric_id in metric_ids:
        source = METRICS_BY_ID[metric_id].source
        if isinstance(source, OverAllAnswers):
            results[metric_id] = source.compute([answer.text for answer in answers])
        elif isinstance(source, PerRow):
            values = [value for value in source.values(_Measured(answers, measured)) if value is not None]
            results[metric_id] = math.fsum(values) / len(values) if values else None
    return results
