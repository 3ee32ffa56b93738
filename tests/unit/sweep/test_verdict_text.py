"""The sentences of a sweep's verdict.

Oracle: a checker that knows every sentence and recomputes its claims, over 200 drawn sweeps: grids, missing cells,
one seed, dropped arms, and stops for success and futility.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from neftcli.metrics.registry import HELD_OUT_LOSS
from neftcli.sweep.early_stopping import Decision, decide
from neftcli.sweep.plan import Arm, Cell
from neftcli.sweep.results import SweepResults
from neftcli.sweep.verdict import judge_sweep
from tests.unit.sweep.planted import RATES, ROWS, plan, planted_results, shift
from tests.unit.sweep.verdict_checker import NO_COMMON, check_sentences

NOISE = "sweep.grid=['training.learning_rate=1e-5,5e-5', 'neftune.noise=uniform,gaussian']"
METRICS = {HELD_OUT_LOSS: "lower", "exact_match": "higher"}
COMMON = {"none", "these seeds", "not significant", "Recommended", "paper"}
FIXED = COMMON | {"better", "worse", "Nothing is recommended", "MDE", "delta"}
EARLY = COMMON | {"stop for success", "stop for futility"}
"""Kinds of sentences that the draws must reach: without and with early stopping."""


def draw_sweep(number: int) -> tuple[list[Cell], dict[str, dict[str, Any]], float, Decision]:
    """Draw cells, their results, delta, and the early decision; two of ten situations are grids."""
    draw = np.random.default_rng(number)
    early, gridded = number % 4 == 3, number % 10 in (1, 3)
    seeds = int(draw.integers(6, 8)) if early else int(draw.integers(1, 5))
    grid = [RATES if number % 20 < 10 else NOISE] if gridded else []
    cells = plan("sweep.alphas=[5, 10]", f"sweep.seeds={seeds}", *grid)
    sizes, signs = [0, 0, 0.003, 0.03], [-1, -1, 1] if early else [-1, 1]
    gaps = {alpha: float(draw.choice(sizes) * draw.choice(signs)) for alpha in (0.0, 5.0, 10.0)}
    spread = float(draw.choice([0, 0.002, 0.01]))
    content = planted_results(cells, gaps, seed_spread=spread, number=number, prompts=int(draw.choice([30, ROWS])))
    wild, tail = draw.random() < 0.2, draw.random() < 0.1
    heavy = np.exp(2 * draw.normal(size=ROWS))
    for cell in cells:
        if wild and cell.arm.alpha == 10:
            shift(content, cell, (-1) ** cell.seed * 0.1)
        if tail and cell.arm.alpha:
            loss = content[cell.key]["metrics"][HELD_OUT_LOSS]
            loss["values"] = (np.array(loss["values"]) + heavy).tolist()
        share = 0.5 + float(draw.choice([0.2, -0.3])) * (cell.arm.alpha == 5.0)
        right = (draw.random(ROWS) < share).astype(float).tolist()
        content[cell.key]["metrics"]["exact_match"] = {"direction": "higher", "values": right, "weights": None}
        if not early and draw.random() < 0.08:
            del content[cell.key]
    delta = float(draw.choice([0.005, 0.05]))
    if not early:
        return cells, content, delta, Decision()
    # Like a sweep, which trains no arm after it was dropped or stopped.
    decision = decide(SweepResults(cells, content), HELD_OUT_LOSS, delta, done=seeds - 1)
    beyond = int(draw.random() < 0.3)  # a round trained one seed more than the look used
    last = {stop.baseline: stop.seeds + beyond for stop in decision.stopped}
    until = {dropped.arm: dropped.seeds for dropped in decision.dropped}
    kept = {}
    for cell in cells:
        end = last.get(replace(cell.arm, alpha=0.0), seeds)
        end = last.get(Arm(0.0, tuple(pair for pair in cell.arm.grid if "neftune" not in pair[0])), end)
        if cell.seed < min(end, until.get(cell.arm, seeds)):
            kept[cell.key] = content[cell.key]
    return cells, kept, delta, decision


@pytest.mark.parametrize(
    ("first", "step", "reached"),
    [
        (3, 16, EARLY),
        pytest.param(0, 4, FIXED, marks=pytest.mark.slow),
        pytest.param(1, 4, FIXED, marks=pytest.mark.slow),
        pytest.param(2, 4, FIXED, marks=pytest.mark.slow),
        pytest.param(3, 4, EARLY, marks=pytest.mark.slow),
    ],
)
def test_judge_sweep_sentences_in_drawn_situations(first: int, step: int, reached: set[str]) -> None:
    """All 200 situations, some of them in the quick tests; every fourth, from 3 on, has early stopping."""
    kinds: Counter[str] = Counter()
    for number in range(first, 200, step):
        cells, content, delta, decision = draw_sweep(number)
        if not content:
            continue
        results, dropped = SweepResults(cells, content), {drop.arm: drop.seeds for drop in decision.dropped}
        verdict = judge_sweep(results, list(METRICS), list(dropped), delta, decision.stopped)
        try:
            kinds += check_sentences(verdict, results, METRICS, delta=delta, stopped=decision.stopped, dropped=dropped)
        except AssertionError as error:
            raise AssertionError(f"situation {number}: {error}") from error
    assert reached <= set(kinds), reached - set(kinds)
    assert kinds.total() > 800 / step


@pytest.mark.parametrize(
    "line",
    [
        "Alpha 5 is the best.",
        "Recommended: alpha 10.",
        "Stopped early, after 3 of 8 seeds: for every arm left, a gain over 0.005 in held-out loss is excluded (95 %).",
        "Not compared in held-out loss: alpha 5 (no seed is finished both with noise and without).",
    ],
)
def test_check_sentences_rejects_an_unsupported_line(line: str) -> None:
    cells = plan("sweep.alphas=[5]")
    results = SweepResults(cells, planted_results(cells, {0: 0, 5: -0.1}))
    verdict = judge_sweep(results, [HELD_OUT_LOSS])
    check_sentences(verdict, results, {HELD_OUT_LOSS: "lower"})
    for place in (0, len(verdict.conclusion)):
        conclusion = (*verdict.conclusion[:place], line, *verdict.conclusion[place:])
        with pytest.raises((AssertionError, ValueError)):
            check_sentences(replace(verdict, conclusion=conclusion), results, {HELD_OUT_LOSS: "lower"})


def test_judge_sweep_arms_without_a_common_seed_are_not_ranked() -> None:
    """Each arm has its own alpha 0 for two seeds, and the two points of the grid share none."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=4", RATES)
    content = planted_results(cells, {0: 0, 5: -0.1})
    kept = {cell.key: content[cell.key] for cell in cells if (cell.seed < 2) == (cell.arm.grid[0][1] == 1e-5)}
    results = SweepResults(cells, kept)
    verdict = judge_sweep(results, [HELD_OUT_LOSS])
    assert verdict.recommended is None
    assert NO_COMMON in verdict.conclusion
    check_sentences(verdict, results, {HELD_OUT_LOSS: "lower"})
