"""Win rates of a sweep: each cell's answers against those of alpha 0 with the same seed, by the judge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.evaluation.cache import lock_results
from neftcli.evaluation.judge import AnswerPair, judge_pairs
from neftcli.evaluation.metrics import WIN_RATE, WIN_RATE_LENGTH_CONTROLLED
from neftcli.events import Notice, Observer
from neftcli.statistics.win_rates import length_controlled_scores
from neftcli.sweep.plan import Cell, baseline_of

if TYPE_CHECKING:
    from neftcli.recipe.schema import Judge

EVERY = 10.0  # seconds between two lines on how far the judge is


def add_win_rates(
    cells: Sequence[Cell], measured: Mapping[str, dict[str, Any]], judge: Judge, folder: Path, observer: Observer
) -> None:
    """Add the win rates to what was measured: a score a row, as judged and at equal lengths; for alpha 0 one half.

    A verdict that can't be read counts as a tie, and the notice says between which bounds the win rate then lies.

    Raises:
        JudgeError: The judge could not be asked; its replies so far are kept.
    """
    of = {(cell.arm, cell.seed): measured[cell.key] for cell in cells if cell.key in measured}
    for (arm, seed), content in of.items():
        baseline = of.get((baseline_of(arm), seed))
        scores = controlled = [0.5] * len(content["prompts"])
        if arm.alpha and baseline is None:
            continue
        if arm.alpha and baseline is not None:
            rows = zip(content["prompts"], content["answers"], baseline["answers"], content["references"], strict=True)
            pairs = [AnswerPair(*row) for row in rows]
            with lock_results(folder / "judge", observer):
                advance = _Advance(f"judging {arm.name()}, seed {seed}", observer)
                judged = judge_pairs(pairs, judge, folder / "judge" / "verdicts.jsonl", advance)
            scores = [0.5 if verdict.score is None else verdict.score for verdict in judged]
            if unreadable := sum(verdict.score is None for verdict in judged):
                observer.notify(Notice(_unreadable(f"{arm.name()}, seed {seed}", scores, unreadable)))
            lengths = [len(pair.answer) - len(pair.opponent) for pair in pairs]
            controlled = length_controlled_scores(scores, lengths).tolist()
        for name, values in ((WIN_RATE, scores), (WIN_RATE_LENGTH_CONTROLLED, controlled)):
            content["metrics"][name] = {"direction": "higher", "values": values, "weights": None}


def _unreadable(what: str, scores: Sequence[float], unreadable: int) -> str:
    """State how many verdicts count as ties, and the win rate if all of them were lost or won."""
    rate, share = sum(scores) / len(scores), unreadable / 2 / len(scores)
    return (
        f"{what}: {unreadable} of {len(scores)} verdicts of the judge can't be read and count as ties; the win rate is "
        f"{rate - share:.1%} if all of them were lost, {rate + share:.1%} if all were won"
    )


class _Advance:
    """Says now and then how far the judge is."""

    def __init__(self, what: str, observer: Observer) -> None:
        self._what, self._observer, self._last = what, observer, 0.0

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` questions are answered."""
        now = time.monotonic()
        if now - self._last > EVERY or done == total:
            self._last = now
            self._observer.notify(Notice(f"{self._what}: {done} of {total} questions answered"))
