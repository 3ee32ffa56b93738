"""Early stopping: the rules, their error rates, and the same decisions in a resumed sweep.

Oracles: planted effects, the tests of `compare_arms` at the levels by hand, and sweeps simulated as `make calibrate`
does it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks.calibrate import count_stopping
from benchmarks.situations import Situation
from neftcli.metrics.registry import HELD_OUT_LOSS
from neftcli.recipe.schema import Sweep
from neftcli.statistics import paired
from neftcli.statistics.crossed import compare_arms, estimate_crossed_differences, margin_of_error
from neftcli.sweep.early_stopping import DROP, FUTILITY, SUCCESS, Decision, Dropped, Stopped, decide, look, stops_early
from neftcli.sweep.plan import Arm, baseline_of
from neftcli.sweep.results import SweepResults
from tests.unit.sweep.planted import plan, planted_results

ROWS = 24
ARMS = [Arm(0.0), Arm(5.0), Arm(10.0)]


def draw_losses(*gains: float, seeds: int = 4, spread: float = 0.0025, number: int = 0) -> dict[Arm, np.ndarray]:
    """Draw losses (seeds, rows) of alpha 0, 5 and 10, lower by the gains; `spread` is that between seeds."""
    generator = np.random.default_rng(number)
    arms = len(gains) + 1
    parts = spread * generator.standard_normal((arms, seeds, 1))
    parts = parts + 0.009 * generator.standard_normal((arms, seeds, ROWS))
    parts += 0.003 * generator.standard_normal((arms, 1, ROWS))
    values = parts / math.sqrt(2) - np.array([0.0, *gains])[:, None, None]
    return dict(zip(ARMS, values, strict=False))


def look_at(values: dict[Arm, np.ndarray], **options: Any) -> Decision:
    return look(values, Arm(0.0), **{"better": "lower", "delta": 0.005, "comparisons": 2, "planned": 8, **options})


def test_look_success() -> None:
    values = draw_losses(0.05, 0.03)
    found = look_at(values)
    assert found.dropped == ()
    [stopped] = found.stopped
    differences = compare_arms(values[Arm(0.0)], [values[arm] for arm in ARMS[1:]], resamples=9_999)
    assert (stopped.reason, stopped.arm, stopped.seeds, stopped.planned) == ("success", Arm(5.0), 4, 8)
    assert stopped.gain == pytest.approx(-differences[0].value)
    assert differences[0].new_seeds is not None
    assert differences[0].new_seeds.p < SUCCESS / 2
    assert stopped.sentence(HELD_OUT_LOSS).startswith(
        "Stopped early, after 4 of 8 seeds: alpha 5 is better than alpha 0 by 0.0"
    )
    assert not any(found.is_needed(arm) for arm in ARMS)


def test_look_drops_an_arm_but_never_the_baseline() -> None:
    """Alpha 5 leads without being significant; alpha 10 and the baseline are behind, and only alpha 10 is dropped."""
    values = draw_losses(0.012, -0.03, spread=0.005, number=3)
    found = look_at(values, delta=0.001)
    [dropped] = found.dropped
    assert found.stopped == ()
    assert (dropped.arm, dropped.leader) == (Arm(10.0), Arm(5.0))
    [difference] = compare_arms(values[Arm(5.0)], [values[Arm(0.0)], values[Arm(10.0)]])[1:]
    assert difference.new_seeds is not None
    assert dropped.by == pytest.approx(difference.value)
    assert dropped.p == difference.new_seeds.p / 2
    assert dropped.p < DROP
    assert [found.is_needed(arm) for arm in ARMS] == [True, True, False]
    assert "alpha 10 gets no further seeds: worse than alpha 5 by 0.0" in dropped.sentence(HELD_OUT_LOSS)


def test_look_all_arms_worse_than_the_baseline() -> None:
    found = look_at(draw_losses(-0.03, -0.04), delta=None)
    assert {one.arm for one in found.dropped} == {Arm(5.0), Arm(10.0)}
    [stopped] = found.stopped
    assert (stopped.reason, stopped.excluded) == ("futility", 0.0)
    assert stopped.sentence(HELD_OUT_LOSS).endswith(
        "each was worse than the leading arm, at last alpha 0, in held-out loss."
    )


def test_look_futility_if_every_bound_is_below_delta() -> None:
    values = draw_losses(0.0, 0.0)
    differences = estimate_crossed_differences(values[Arm(0.0)], [values[arm] for arm in ARMS[1:]])
    bounds = [-one.value + margin_of_error(one.components, one.seeds, one.n, FUTILITY) for one in differences]  # type: ignore[arg-type]
    [stopped] = look_at(values, delta=max(bounds) + 1e-9).stopped
    assert (stopped.reason, stopped.excluded) == ("futility", max(bounds) + 1e-9)
    assert look_at(values, delta=max(bounds)).stopped == ()
    assert look_at(values, delta=None) == Decision()


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e3])
def test_look_direction_and_unit(unit: float) -> None:
    for gains in ((0.05, 0.03), (0.012, -0.03), (-0.03, -0.04), (0.0, 0.0)):
        values = draw_losses(*gains, number=3)
        one = look_at(values)
        two = look_at({arm: -unit * array for arm, array in values.items()}, better="higher", delta=0.005 * unit)
        assert [each.arm for each in one.dropped] == [each.arm for each in two.dropped]
        assert [(each.reason, each.arm) for each in one.stopped] == [(each.reason, each.arm) for each in two.stopped]


def test_look_arm_with_failed_seeds() -> None:
    values = draw_losses(0.0, 0.0)
    assert look_at(values, delta=0.05).stopped
    values[Arm(10.0)][:2] = np.nan
    assert look_at(values, delta=0.05) == Decision()
    values[Arm(5.0)] -= 0.1
    assert [one.arm for one in look_at(values, delta=0.05).stopped] == [Arm(5.0)]
    values[Arm(0.0)][:2] = np.nan
    assert look_at(values, delta=0.05) == Decision()


def test_decide_each_baseline_of_a_grid_separately() -> None:
    """At the first point alpha 5 is far better; at the second one it is undecided and continues."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    content = planted_results(cells, {0: 0, 5: 0}, seed_spread=0.02)
    first = cells[0].arm
    for cell in cells:
        if cell.arm.alpha and baseline_of(cell.arm) == first:
            metric = content[cell.key]["metrics"][HELD_OUT_LOSS]
            metric["values"] = [
                value - 2 * weight for value, weight in zip(metric["values"], metric["weights"], strict=True)
            ]
    found = decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.001, done=4)
    assert [(one.reason, one.baseline, one.seeds) for one in found.stopped] == [("success", first, 3)]
    assert (
        found.stopped[0]
        .sentence(HELD_OUT_LOSS)
        .startswith("Stopped early with learning_rate 1e-05, after 3 of 6 seeds: ")
    )
    assert {baseline_of(cell.arm) for cell in cells if found.is_needed(cell.arm)} == {baseline_of(cells[-1].arm)}


def test_decide_independent_of_later_seeds() -> None:
    """A resumed sweep repeats earlier decisions, whatever was trained since, and only adds to them."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = planted_results(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    whole = [decide(SweepResults(cells, content), HELD_OUT_LOSS, 0.02, done=done) for done in range(7)]
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    for done, found in enumerate(whole):
        there = {cell.key: content[cell.key] for cell in cells if cell.seed in seeds[:done]}
        assert decide(SweepResults(cells, there), HELD_OUT_LOSS, 0.02, done=done) == found
        assert all(one.seeds <= done for one in (*found.dropped, *found.stopped))
    for earlier, later in pairwise(whole):
        assert later.dropped[: len(earlier.dropped)] == earlier.dropped
        assert later.stopped[: len(earlier.stopped)] == earlier.stopped
    assert whole[2] == Decision()
    assert whole[5] == whole[6]  # there is no look after the last seed
    assert len({found.dropped + found.stopped for found in whole}) == 3  # drops at one look, a stop at another


def test_decide_metric_without_a_direction() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6")
    results = SweepResults(cells, planted_results(cells, {0: 0, 5: -1.0}))
    assert decide(results, "answer_tokens", 0.005, done=5) == Decision()


@pytest.mark.parametrize(
    ("setting", "seeds", "stops"),
    [("auto", 5, False), ("auto", 6, True), ("always", 3, False), ("always", 4, True), ("never", 12, False)],
)
def test_stops_early_by_setting_and_seeds(setting: Any, seeds: int, stops: bool) -> None:
    assert stops_early(Sweep(early_stopping=setting, seeds=seeds)) == stops


def test_look_decides_by_the_p_values_of_compare_arms() -> None:
    """Looks skip sign-flip tests that can't change the decision; in drawn sweeps of every kind they decide the same."""
    reasons = []
    for number in range(60):
        gains = np.random.default_rng(number).uniform(-0.02, 0.03, 2)
        values = draw_losses(*gains, spread=0.004, number=number)
        found = look_at(values, delta=None)
        differences = compare_arms(values[ARMS[0]], [values[arm] for arm in ARMS[1:]])
        means = {ARMS[0]: 0.0, **{arm: -one.value for arm, one in zip(ARMS[1:], differences, strict=True)}}
        p_values = [one.new_seeds.p for one in differences if one.new_seeds]
        won = [arm for arm, p in zip(ARMS[1:], p_values, strict=True) if means[arm] > 0 and p < SUCCESS / 2]
        if won:
            assert [(one.reason, one.arm) for one in found.stopped] == [("success", max(won, key=means.__getitem__))]
            reasons.append("success")
            continue
        leader = max(means, key=means.__getitem__)
        others = [arm for arm in ARMS if arm != leader]
        against = compare_arms(values[leader], [values[arm] for arm in others])
        behind = [one.new_seeds.p / 2 < DROP and one.value > 0 for one in against if one.new_seeds]
        expected = [arm for arm, is_behind in zip(others, behind, strict=True) if is_behind and arm.alpha]
        assert [one.arm for one in found.dropped] == expected
        assert [one.reason for one in found.stopped] == (["futility"] if len(expected) == 2 else [])
        reasons.append(f"{len(expected)} dropped")
    assert {*reasons} == {"success", "0 dropped", "1 dropped", "2 dropped"}


@pytest.mark.slow
def test_decide_error_rates_of_simulated_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight seeds that vary by 0.0025, 24 prompts; of 60 sweeps at most 7 may be wrong (5 %, 99 % bound)."""
    monkeypatch.setattr(paired, "LEVEL_RESAMPLES", paired.LEVEL_RESAMPLES)  # the simulation lowers it
    situation, draws, delta = Situation(8, ROWS, 0.0025), 60, 0.005
    tied, just, clear = (count_stopping(situation, gain, delta, draws, 3) for gain in (0.0, delta, 0.02))
    assert all(one.false <= 7 / draws and one.wrong <= 7 / draws for one in (tied, just, clear))
    assert just.excluded <= 7 / draws
    assert clear.found == 1
    assert clear.dropped == 0
    assert clear.saved > 0.4
    assert tied.saved > 0.25


def test_dropped_and_stopped_sentences() -> None:
    arm = Arm(5.0)
    dropped = Dropped(Arm(10.0), arm, 0.0123, 0.004, 3)
    assert dropped.sentence("win_rate") == (
        "alpha 10 gets no further seeds: worse than alpha 5 by 1.2 points in win rate (one-sided p = 0.004, 3 seeds)"
    )
    futile = Stopped(Arm(0.0), "futility", 3, 8, excluded=0.005)
    assert (
        futile.sentence(HELD_OUT_LOSS)
        == "Stopped early, after 3 of 8 seeds: for every arm left, a gain over 0.0050 in held-out loss is excluded "
        "(95 %)."
    )
