"""Win rates of a sweep: the judge compares each cell's answers with those of alpha 0 with the same seed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.evaluation.cache import lock_results
from neftcli.evaluation.judge import AnswerPair, judge_pairs
from neftcli.events import Notice, Observer
from neftcli.metrics.registry import WIN_RATE, WIN_RATE_LENGTH_CONTROLLED
from neftcli.statistics.win_rates import length_controlled_scores
from neftcli.sweep.plan import Cell, baseline_of

if TYPE_CHECKING:
    from neftcli.recipe.schema import Judge

REPORT_INTERVAL = 10.0
"""Seconds between two notices about the judge's progress."""


def add_win_rates(
    cells: Sequence[Cell], evaluations: Mapping[str, dict[str, Any]], judge: Judge, folder: Path, observer: Observer
) -> None:
    """Add the win rates to the evaluations: a score for each row, raw and length-controlled; 0.5 for alpha 0.

    A verdict that can't be read counts as a tie; a notice reports between which bounds the win rate then is.

    Args:
        cells: The cells.
        evaluations: Evaluation of each cell by its key.
        judge: Settings of the judge.
        folder: Folder of the sweep, which keeps the judge's replies.
        observer: Receives the progress.

    Raises:
        JudgeError: The judge could not be asked; its replies so far are kept.
    """
    by_arm = {(cell.arm, cell.seed): evaluations[cell.key] for cell in cells if cell.key in evaluations}
    for (arm, seed), evaluation in by_arm.items():
        baseline = by_arm.get((baseline_of(arm), seed))
        if not arm.alpha:
            scores = controlled = [0.5] * len(evaluation["prompts"])
        elif baseline is not None:
            name = f"{arm.name()}, seed {seed}"
            scores, controlled = _judge_cell(name, evaluation, baseline, judge, folder, observer)
        else:
            continue
        for metric, values in ((WIN_RATE, scores), (WIN_RATE_LENGTH_CONTROLLED, controlled)):
            evaluation["metrics"][metric] = {"direction": "higher", "values": values, "weights": None}


def _judge_cell(
    name: str,
    evaluation: Mapping[str, Any],
    baseline: Mapping[str, Any],
    judge: Judge,
    folder: Path,
    observer: Observer,
) -> tuple[list[float], list[float]]:
    """Judge the answers of a cell against its baseline's, and return the raw and the length-controlled scores."""
    rows = zip(evaluation["prompts"], evaluation["answers"], baseline["answers"], evaluation["references"], strict=True)
    pairs = [AnswerPair(*row) for row in rows]
    with lock_results(folder / "judge", observer):
        progress = _JudgeProgress(f"judging {name}", observer)
        verdicts = judge_pairs(pairs, judge, folder / "judge" / "verdicts.jsonl", progress)
    scores = [0.5 if verdict.score is None else verdict.score for verdict in verdicts]
    unreadable = sum(verdict.score is None for verdict in verdicts)
    if unreadable:
        observer.notify(Notice(_describe_unreadable(name, scores, unreadable)))
    lengths = [len(pair.answer) - len(pair.opponent) for pair in pairs]
    return scores, length_controlled_scores(scores, lengths).tolist()


def _describe_unreadable(name: str, scores: Sequence[float], unreadable: int) -> str:
    """State the number of verdicts that count as ties, and the win rate if all of them were lost or won."""
    rate, share = sum(scores) / len(scores), unreadable / 2 / len(scores)
    ties = "counts as a tie" if unreadable == 1 else "count as ties"
    return (
        f"{name}: {unreadable} of {len(scores)} verdicts of the judge can't be read and {ties}; the win rate is "
        f"{rate - share:.1%} if all of them were lost, {rate + share:.1%} if all were won"
    )


class _JudgeProgress:
    """Reports the judge's progress from time to time."""

    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer = observer
        self._reported = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` questions are answered."""
        now = time.monotonic()
        if now - self._reported > REPORT_INTERVAL or done == total:
            self._reported = now
            self._observer.notify(Notice(f"{self._name}: {done} of {total} questions answered"))
