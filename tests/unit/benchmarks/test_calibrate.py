"""The simulation of `make calibrate`: what it judges is what it drew, and it counts what the verdicts say.

Oracles: the drawn numbers, planted effects far above or below what is detectable, and counts of the cells by hand.
"""

import numpy as np
import pytest

from benchmarks.calibrate import (
    GAINING,
    METRICS,
    Calibration,
    Rates,
    calibrate,
    comparisons,
    contents,
    count_evaluations,
    count_stopping,
    count_sweeps,
    is_false,
    is_wrong,
    judge,
    judge_stopping,
    plan,
    stopping_table,
    tables,
)
from benchmarks.situations import ALPHAS, Situation, draw, evaluations, other_sweeps, plain_sweeps
from neftcli.statistics import paired
from neftcli.sweep.plan import Arm
from neftcli.sweep.results import SweepResults

PLAIN = Situation(6, 24, 0.0025)


@pytest.fixture(autouse=True)
def restored_level_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation takes few resamples for the true level, in its own process; the other tests need all."""
    monkeypatch.setattr(paired, "LEVEL_RESAMPLES", paired.LEVEL_RESAMPLES)


@pytest.mark.parametrize("weighted", [False, True])
def test_contents_are_the_drawn_values_by_arm_and_seed(weighted: bool) -> None:
    situation = Situation(3, 24, 0.0025, "grouped", group=3, weighted=weighted)
    drawn = draw(situation, np.random.default_rng(0))
    results = SweepResults(plan(3), contents(situation, drawn))
    name = METRICS["loss"]
    assert (results.values(name, Arm(0.0)) == drawn.baseline).all()
    for alpha, values in zip(ALPHAS, drawn.arms, strict=True):
        assert (results.values(name, Arm(alpha)) == values).all()
    weights = results.weights(name, Arm(0.0))
    assert (weights is None) == (not weighted)
    assert len(set(results.prompts(name) or [])) == 8


def test_judge_recommends_a_large_planted_gain_and_counts_it_only_as_found() -> None:
    verdict = judge(PLAIN, draw(PLAIN, np.random.default_rng(1), 0.1))
    assert verdict.recommended == GAINING
    assert comparisons(verdict)[0].verdict == "better"
    assert not is_wrong(verdict, 0.1)
    assert is_wrong(verdict, 0.0)
    assert is_false(verdict, 0.0)
    assert not is_false(verdict, 0.1)


def test_judge_stopping_leaves_out_the_cells_that_the_looks_saved() -> None:
    verdict, decision, saved = judge_stopping(PLAIN, draw(PLAIN, np.random.default_rng(1), 0.1), 0.005)
    [stopped] = decision.stopped
    assert (stopped.reason, stopped.arm, stopped.seeds) == ("success", GAINING, 3)
    assert saved == 0.5
    assert [row.seeds for row in verdict.arms] == [3] * 4
    assert verdict.recommended == GAINING


def test_count_stopping_counts_a_gain_of_delta_that_is_excluded() -> None:
    """Delta is far above what is detectable: every sweep stops for futility, which is false if an arm gains delta."""
    assert count_stopping(PLAIN, 0.0, 1.0, 3, 0).excluded == 0
    true = count_stopping(PLAIN, 0.0, 1.0, 3, 0)
    assert (true.saved, true.excluded, true.found) == (0.5, 0, 0)
    false = count_stopping(PLAIN, 0.002, 0.001, 3, 0)
    assert false.excluded <= 1
    assert 0 <= false.covered <= 1


def test_count_sweeps_and_evaluations_find_all_of_a_large_effect() -> None:
    sweeps = count_sweeps(PLAIN, 0.1, 4, 0)
    assert (sweeps.found, sweeps.wrong) == (1, 0)
    assert count_sweeps(Situation(1, 24), 0.1, 4, 0).found == 1
    evaluation = count_evaluations(Situation(0, 24), 0.1, 4, 0)
    assert (evaluation.found, evaluation.these_false) == (1, 1)


def test_situations_are_named_once_and_cover_the_grid() -> None:
    every = [*plain_sweeps(), *other_sweeps(), *evaluations()]
    assert len(set(every)) == len(every)
    assert {situation.seeds for situation in plain_sweeps()} == {1, 2, 3, 6, 8}
    assert any(situation.lengths and situation.stops_early() for situation in other_sweeps())


def test_tables_have_a_row_for_each_situation() -> None:
    rates = Rates(0.01, 0.02, 0.03, 0.8, 0.95, 0.96, 0.005)
    counted = {situation: Calibration(rates, rates) for situation in [*plain_sweeps(), *other_sweeps(), *evaluations()]}
    lines = list(tables(counted, 400))
    assert lines[0].startswith(
        "400 draws of each plain sweep and evaluation without an effect (standard error of 5 %: 1.1"
    )
    assert "| 3, 0.0025 | " + " | ".join(["1.0 / 3.0 / 95.0 / 80.0 at 0.0050"] * 3) + " |" in lines
    for situation in other_sweeps():
        row = f"| {situation.name} | {situation.seeds} | {situation.rows} | {situation.seed_sd:g} |"
        assert sum(line.startswith(row) for line in lines) == 1


def test_calibrate_small_and_its_early_stopping_table() -> None:
    found = calibrate(PLAIN, 8, 0)
    assert found.planted is not None
    assert found.null_stopping is not None
    assert 0 < found.null.mde < 0.02
    assert 0 <= found.null_stopping.saved <= 0.5
    gains = (0.0, 0.005, 0.006, 0.02)
    table = list(
        stopping_table({(seeds, gain): (found.planted, found.null_stopping) for seeds in (6, 8, 12) for gain in gains})
    )
    assert table[0] == "| delta 0.005, seed sd 0.0025 | 6 seeds | 8 seeds | 12 seeds |"
