"""Comparison of models: from results to the table.

Oracles: sums by hand, `neftcli.statistics` on the same numbers, families counted here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neftcli.data.tokens import TokenRow
from neftcli.evaluation.comparison import compare_models, have_same_tokens, win_rate_bounds
from neftcli.evaluation.generation import Answer
from neftcli.evaluation.loss import RowLoss
from neftcli.evaluation.measurement import ModelResults
from neftcli.evaluation.report import judge_remarks
from neftcli.evaluation.tasks import TaskResult
from neftcli.events import Comparison, MetricRow
from neftcli.metrics.answer_metrics import measure_answer
from neftcli.metrics.registry import JudgeScores
from neftcli.statistics.multiple import holm_adjust
from neftcli.statistics.paired import bootstrap_estimate, paired_difference
from neftcli.statistics.win_rates import estimate_win_rate

N = 40
PROMPTS = [f"prompt {row}" for row in range(N)]
WORDS = ("blue", "green", "red", "sky", "sea", "sun", "wind", "rain", "snow", "leaf", "tree", "root", "stone")


def results(role: str, seed: int, shift: float = 0.0) -> ModelResults:
    """Draw a model's results; every fourth example has no answer to score."""
    generator = np.random.default_rng(seed)
    scored = [place % 4 != 3 for place in range(N)]
    tokens = [3 + place % 5 for place in range(N)]
    rows = tuple(
        TokenRow([place] * (count + 1), [-100] + [place] * count, False, True, f"row {place}") if has else None
        for place, (count, has) in enumerate(zip(tokens, scored, strict=True))
    )
    losses = tuple(
        RowLoss(f"row {place}", float(count * (2 + shift + generator.normal(0, 0.3))), count, min(count, place % 3))
        if has
        else None
        for place, (count, has) in enumerate(zip(tokens, scored, strict=True))
    )
    texts = [" ".join(generator.choice(WORDS, size=int(generator.integers(1, 12)))) for _ in range(N)]
    answers = tuple(Answer(text, len(text.split()), place % 7 == 0) for place, text in enumerate(texts))
    references = [f"{WORDS[place % 9]} sky" if has else None for place, has in enumerate(scored)]
    metrics = tuple(measure_answer(text, reference) for text, reference in zip(texts, references, strict=True))
    target: Any = SimpleNamespace(role=role, run=None if role == "base" else role)
    return ModelResults(target, rows, losses, answers, metrics)


RUN, BASELINE, BASE = results("run", 0), results("baseline", 1, 0.4), results("base", 2, 1.0)


def row(rows: tuple[MetricRow, ...], metric: str) -> MetricRow:
    [found] = [row for row in rows if row.metric == metric]
    return found


def find_comparison(comparisons: tuple[Comparison, ...], metric: str, against: str) -> Comparison:
    [found] = [each for each in comparisons if (each.metric, each.against) == (metric, against)]
    return found


def test_compare_models_loss_weighted_by_tokens() -> None:
    rows, comparisons = compare_models([RUN, BASELINE], None, PROMPTS)
    ours, theirs = ([loss for loss in side.losses if loss] for side in (RUN, BASELINE))
    tokens = [loss.tokens for loss in ours]
    nats = [[loss.negative_log_likelihood for loss in side] for side in (ours, theirs)]
    shown = row(rows, "held_out_loss").values[0]
    assert shown is not None
    assert shown.value == pytest.approx(sum(nats[0]) / sum(tokens))
    assert shown.n == len(ours) == 30
    found = find_comparison(comparisons, "held_out_loss", "baseline")
    asked = sum(each.detectable is not None for each in comparisons if row(rows, each.metric).direction != "none")
    expected = paired_difference(nats[1], nats[0], tokens, comparisons=asked)
    assert (found.difference, found.low, found.high, found.p, found.detectable) == (
        expected.value,
        expected.low,
        expected.high,
        expected.p,
        expected.detectable,
    )
    assert found.verdict == "lower"  # compared with a run: one run each can't show that it is better


def test_compare_models_perplexity_is_not_tested() -> None:
    rows, comparisons = compare_models([RUN, BASELINE], None, PROMPTS)
    loss, perplexity = row(rows, "held_out_loss").values[1], row(rows, "perplexity").values[1]
    assert loss is not None
    assert perplexity is not None
    assert [perplexity.value, perplexity.low, perplexity.high] == [
        math.exp(loss.value),
        math.exp(loss.low or 0),
        math.exp(loss.high or 0),
    ]
    assert "perplexity" not in {each.metric for each in comparisons}


def test_compare_models_two_families_of_corrections() -> None:
    rows, comparisons = compare_models([RUN, BASELINE, BASE], None, PROMPTS)
    describes = {each.metric for each in rows if each.direction == "none"}
    for kind in (True, False):
        family = [each for each in comparisons if (each.metric in describes) == kind]
        assert {each.against for each in family} == {"baseline", "base"}
        p_values = [each.p for each in family if each.p is not None]
        smallest = [0.0 if each.detectable is not None else 1.0 for each in family]
        assert [each.p_adjusted for each in family] == holm_adjust(p_values, smallest)


def test_compare_models_words_for_models_and_runs() -> None:
    rows, comparisons = compare_models([RUN, BASELINE, BASE], None, PROMPTS)
    describes = {each.metric for each in rows if each.direction == "none"}
    for each in comparisons:
        rated = each.against == "base" and each.metric not in describes
        assert each.verdict in {"not_significant", *(("better", "worse") if rated else ("lower", "higher"))}
    assert find_comparison(comparisons, "held_out_loss", "base").verdict == "better"
    model = replace(BASELINE, target=SimpleNamespace(role="baseline", run=None))  # type: ignore[arg-type]
    _, with_model = compare_models([RUN, model], None, PROMPTS)
    assert find_comparison(with_model, "held_out_loss", "baseline").verdict == "better"


def test_compare_models_rows_of_one_prompt() -> None:
    """With three rows per prompt, n is the number of prompts, and interval and p are those of `paired_difference`."""
    prompts = [f"prompt {row // 3}" for row in range(N)]
    rows, comparisons = compare_models([RUN, BASELINE], None, prompts)
    loss = [[each and each.negative_log_likelihood for each in side.losses] for side in (BASELINE, RUN)]
    kept = [row for row in range(N) if loss[0][row] is not None]
    tokens = [each.tokens for each in RUN.losses if each]
    expected = paired_difference(
        *([side[row] for row in kept] for side in loss), tokens, prompts=[prompts[row] for row in kept]
    )
    found = find_comparison(comparisons, "held_out_loss", "baseline")
    assert found.n == expected.n == 13
    assert (found.difference, found.low, found.high, found.p) == (
        expected.value,
        expected.low,
        expected.high,
        expected.p,
    )
    assert found.true_level == expected.true_level
    shown = row(rows, "held_out_loss").values[0]
    apart = row(compare_models([RUN, BASELINE], None, PROMPTS)[0], "held_out_loss").values[0]
    assert shown is not None
    assert apart is not None
    assert (shown.n, apart.n, shown.value) == (13, 30, apart.value)
    assert shown.low != apart.low


def test_compare_models_lower_overlap_is_not_worse() -> None:
    """Answers that share nothing with the references are lower, never worse."""
    empty = replace(RUN, metrics=tuple(replace(each, rouge_l=each.rouge_l and 0.0) for each in RUN.metrics))
    full = replace(BASELINE, metrics=tuple(replace(each, rouge_l=1.0) for each in BASELINE.metrics))
    _, comparisons = compare_models([empty, full], None, PROMPTS)
    assert find_comparison(comparisons, "rouge_l", "baseline").verdict == "lower"


def test_compare_models_equal_results() -> None:
    _, comparisons = compare_models([RUN, replace(RUN, target=BASELINE.target)], None, PROMPTS)
    assert {each.verdict for each in comparisons} == {"not_significant"}
    assert {each.difference for each in comparisons} == {0.0}


def test_compare_models_losses_of_different_tokens() -> None:
    """Even if only the labels differ."""
    other = replace(BASELINE, rows=tuple(each and replace(each, labels=each.input_ids) for each in BASELINE.rows))
    assert have_same_tokens(RUN, BASELINE)
    assert not have_same_tokens(RUN, other)
    rows, comparisons = compare_models([RUN, other], None, PROMPTS)
    assert not {each.metric for each in comparisons} & {"held_out_loss", "token_accuracy"}
    assert row(rows, "held_out_loss").values[1] is not None


def test_compare_models_without_answers() -> None:
    bare = [replace(side, answers=(), metrics=()) for side in (RUN, BASELINE)]
    rows, _ = compare_models(bare, None, PROMPTS)
    assert [each.metric for each in rows] == ["held_out_loss", "perplexity", "token_accuracy"]


def test_compare_models_skips_pairs_without_a_value() -> None:
    """Repetition needs two words, so a pair with a one-word answer doesn't count."""
    _, comparisons = compare_models([RUN, BASELINE], None, PROMPTS)
    both = sum(
        ours.repetition_2 is not None and theirs.repetition_2 is not None
        for ours, theirs in zip(RUN.metrics, BASELINE.metrics, strict=True)
    )
    assert 0 < both < N
    assert find_comparison(comparisons, "repetition_2", "baseline").n == both


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (6, 5), (8, 6)])
def test_compare_models_too_few_examples(rows: int, n: int) -> None:
    """Five pairs can't give a p below 2 / 2^5."""
    few = [
        replace(side, rows=side.rows[:rows], losses=side.losses[:rows], answers=(), metrics=()) for side in (RUN, BASE)
    ]
    _, comparisons = compare_models(few, None, PROMPTS[:rows])
    found = find_comparison(comparisons, "held_out_loss", "base")
    assert found.n == n
    assert (found.p is None, found.p_adjusted is None, found.verdict == "not_tested") == (n < 6,) * 3
    assert found.difference < 0


def test_compare_models_untestable_metrics_are_not_corrected_for() -> None:
    """Four more short references leave the p-values of the other metrics unchanged."""

    def with_short_references(count: int) -> list[ModelResults]:
        return [
            replace(
                side,
                metrics=tuple(
                    replace(each, exact_match=1.0 if place < count else None) for place, each in enumerate(side.metrics)
                ),
            )
            for side in (RUN, BASELINE)
        ]

    none, few = (compare_models(with_short_references(count), None, PROMPTS)[1] for count in (0, 4))
    assert find_comparison(few, "exact_match", "baseline").p_adjusted is None
    assert [each for each in few if each.metric != "exact_match"] == list(none)


def test_compare_models_win_rates() -> None:
    scores = tuple([1.0] * 20 + [0.5] * 6 + [0.0] * 10 + [None] * 4)
    matched = tuple(place % 2 == 0 for place in range(N))
    lengths = tuple(7 * place % 13 - 4 for place in range(N))
    judged = JudgeScores("baseline", scores, matched, lengths, tuple([("answer", "answer")] * N))
    rows, comparisons = compare_models([RUN, BASELINE, BASE], judged, PROMPTS)
    shown = row(rows, "win_rate").values
    assert shown[0] is not None
    assert (shown[0].value, shown[0].n, shown[1:]) == (pytest.approx(23 / 36), 36, (None, None))
    found = find_comparison(comparisons, "win_rate", "baseline")
    assert found.difference == pytest.approx(23 / 36 - 0.5)
    assert [shown[0].low, shown[0].high] == [0.5 + (found.low or 0), 0.5 + (found.high or 0)]
    half = [score for score, like in zip(scores, matched, strict=True) if like and score is not None]
    like_length = find_comparison(comparisons, "win_rate_matched", "baseline")
    assert (like_length.n, like_length.difference) == (18, pytest.approx(float(np.mean(half)) - 0.5))
    expected = estimate_win_rate(scores[:36], lengths[:36])
    controlled = find_comparison(comparisons, "win_rate_length_controlled", "baseline")
    assert expected is not None
    assert (controlled.difference, controlled.low, controlled.p) == (expected.value, expected.low, expected.p)
    for each in (found, like_length):  # the same pairs, counted in other ways: described, and never tested
        assert (each.p, each.p_adjusted, each.detectable, each.verdict) == (None, None, None, "not_tested")
        assert each.low is not None
    describes = {each.metric for each in rows if each.direction == "none"}
    family = [each for each in comparisons if each.metric not in describes and each.p is not None]
    assert {"win_rate_length_controlled"} == {each.metric for each in family if "win_rate" in each.metric}
    smallest = [0.0 if each.detectable is not None else 1.0 for each in family]
    assert [each.p_adjusted for each in family] == holm_adjust([each.p or 0.0 for each in family], smallest)


@pytest.mark.parametrize(
    ("verdicts", "lengths", "expected"),
    [
        ((("answer", "answer"),) * 3, (1, 2, 3), []),
        ((("answer", "opponent"), *(("answer", "answer"),) * 2), (1, 2, 3), ["depended on the order in 1 of 3 pairs"]),
        ((("answer", "answer"),) * 3, (4, 4, 4), ["All pairs differ in length by the same"]),
        ((("answer", "answer"),) * 3, (0, 0, 0), []),
    ],
)
def test_judge_remarks(verdicts: tuple[tuple[str, str], ...], lengths: tuple[int, ...], expected: list[str]) -> None:
    scores = tuple(1.0 if first == second else 0.5 for first, second in verdicts)
    found = list(judge_remarks(JudgeScores("base", scores, (True,) * 3, lengths, verdicts)))
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("scores", "bounds"),
    [((1.0, 0.5, None, None), (0.375, 0.875)), ((1.0, 0.0), None), ((None, None), None), ((0.0, None), (0.0, 0.5))],
)
def test_win_rate_bounds(scores: tuple[float | None, ...], bounds: tuple[float, float] | None) -> None:
    n = len(scores)
    assert win_rate_bounds(JudgeScores("base", scores, (True,) * n, (0,) * n, (("tie", "tie"),) * n)) == bounds


def test_compare_models_tasks_are_paired_by_document() -> None:
    hits = [tuple(float(value) for value in np.random.default_rng(seed).integers(0, 2, 30)) for seed in range(2)]
    tasks = [TaskResult("arc", "acc", sum(each) / 30, True, each, "same") for each in hits]
    both = [replace(side, tasks=(task,)) for side, task in zip((RUN, BASELINE), tasks, strict=True)]
    rows, comparisons = compare_models(both, None, PROMPTS)
    shown = row(rows, "arc/acc").values[0]
    expected = bootstrap_estimate(hits[0])
    assert shown is not None
    assert (shown.value, shown.low, shown.high) == (expected.value, expected.low, expected.high)
    assert find_comparison(comparisons, "arc/acc", "baseline").n == 30
    both[1] = replace(both[1], tasks=(replace(tasks[1], documents="other"),))
    assert "arc/acc" not in {each.metric for each in compare_models(both, None, PROMPTS)[1]}


def test_compare_models_task_without_values_per_document() -> None:
    task = TaskResult("perplexing", "word_perplexity", 12.5, False, (), "same")
    rows, comparisons = compare_models([replace(side, tasks=(task,)) for side in (RUN, BASELINE)], None, PROMPTS)
    shown = row(rows, "perplexing/word_perplexity").values[0]
    assert shown is not None
    assert (shown.value, shown.low) == (12.5, None)
    assert "perplexing/word_perplexity" not in {each.metric for each in comparisons}
