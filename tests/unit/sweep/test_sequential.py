"""Early stopping: the rules, their error rates, and that a resumed sweep decides the same.

Oracles: planted effects, the tests of `compare_arms` at the levels by hand, a vectorised copy of the statistics in
`benchmarks/sequential.py` (each is held against the other), and simulated sweeps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks import sequential as simulation
from neftcli.evaluation.comparison import LOSS
from neftcli.recipe.schema import Sweep
from neftcli.statistics.crossed import compare_arms, margin
from neftcli.sweep.plan import Arm, baseline_of
from neftcli.sweep.results import SweepResults
from neftcli.sweep.sequential import DROP, FUTILITY, SUCCESS, Decision, Dropped, Stopped, decide, look, stops_early
from tests.unit.sweep.test_verdict import measured, plan

ROWS = 24
ARMS = [Arm(0.0), Arm(5.0), Arm(10.0)]


def drawn(*gains: float, seeds: int = 4, spread: float = 0.0025, number: int = 0) -> dict[Arm, np.ndarray]:
    """Losses (seeds, rows) of alpha 0, 5 and 10, by the design of the simulation; lower by the gains."""
    generator = np.random.default_rng(number)
    [values] = simulation.draw(1, ROWS, seeds, gains, spread, "independent", generator)
    return dict(zip(ARMS, -values, strict=False))


def looked(values: dict[Arm, np.ndarray], **options: Any) -> Decision:
    return look(values, Arm(0.0), **{"better": "lower", "delta": 0.005, "comparisons": 2, "planned": 8, **options})


def test_look_success_names_the_better_arm_with_its_numbers() -> None:
    values = drawn(0.05, 0.03)
    found = looked(values)
    assert found.dropped == ()
    [stopped] = found.stopped
    differences = compare_arms(values[Arm(0.0)], [values[arm] for arm in ARMS[1:]], resamples=9_999)
    assert (stopped.reason, stopped.arm, stopped.seeds, stopped.planned) == ("success", Arm(5.0), 4, 8)
    assert stopped.gain == -differences[0].value
    assert stopped.p is not None
    assert stopped.p < SUCCESS / 2
    assert stopped.sentence(LOSS).startswith("Stopped early, after 4 of 8 seeds: alpha 5 is better than alpha 0 by 0.0")
    assert not any(found.is_needed(arm) for arm in ARMS)


def test_look_drops_an_arm_behind_the_leader_and_never_the_baseline() -> None:
    """Alpha 5 leads by what two looks can't confirm; alpha 10 and the baseline are behind, and one of them leaves."""
    values = drawn(0.012, -0.03, spread=0.005, number=3)
    found = looked(values, delta=0.001)
    [dropped] = found.dropped
    assert found.stopped == ()
    assert (dropped.arm, dropped.leader) == (Arm(10.0), Arm(5.0))
    [difference] = compare_arms(values[Arm(5.0)], [values[Arm(0.0)], values[Arm(10.0)]])[1:]
    assert difference.new_seeds is not None
    assert (dropped.by, dropped.p) == (difference.value, difference.new_seeds.p / 2)
    assert dropped.p < DROP
    assert [found.is_needed(arm) for arm in ARMS] == [True, True, False]
    assert "alpha 10 gets no further seeds: worse than alpha 5 by 0.0" in dropped.sentence(LOSS)


def test_look_all_arms_worse_than_the_baseline_ends_the_group() -> None:
    found = looked(drawn(-0.03, -0.04), delta=None)
    assert {one.arm for one in found.dropped} == {Arm(5.0), Arm(10.0)}
    [stopped] = found.stopped
    assert (stopped.reason, stopped.excluded) == ("futility", 0.0)
    assert stopped.sentence(LOSS).endswith("each was worse than the leading arm, at last alpha 0, in held-out loss.")


def test_look_futility_exactly_if_the_bound_of_every_arm_is_below_delta() -> None:
    values = drawn(0.0, 0.0)
    differences = compare_arms(values[Arm(0.0)], [values[arm] for arm in ARMS[1:]])
    bounds = [-one.value + margin(one.components, one.seeds, one.n, FUTILITY) for one in differences]  # type: ignore[arg-type]
    [stopped] = looked(values, delta=max(bounds) + 1e-9).stopped
    assert (stopped.reason, stopped.excluded) == ("futility", max(bounds) + 1e-9)
    assert looked(values, delta=max(bounds)).stopped == ()
    assert looked(values, delta=None) == Decision()


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e3])
def test_look_direction_and_unit(unit: float) -> None:
    for gains in ((0.05, 0.03), (0.012, -0.03), (-0.03, -0.04), (0.0, 0.0)):
        values = drawn(*gains, number=3)
        one = looked(values)
        two = looked({arm: -unit * array for arm, array in values.items()}, better="higher", delta=0.005 * unit)
        assert [each.arm for each in one.dropped] == [each.arm for each in two.dropped]
        assert [(each.reason, each.arm) for each in one.stopped] == [(each.reason, each.arm) for each in two.stopped]


def test_look_an_arm_whose_seeds_failed_is_not_judged_and_blocks_futility() -> None:
    values = drawn(0.0, 0.0)
    assert looked(values, delta=0.05).stopped
    values[Arm(10.0)][:2] = np.nan
    assert looked(values, delta=0.05) == Decision()
    values[Arm(5.0)] -= 0.1
    assert [one.arm for one in looked(values, delta=0.05).stopped] == [Arm(5.0)]
    values[Arm(0.0)][:2] = np.nan
    assert looked(values, delta=0.05) == Decision()


def test_decide_each_baseline_of_a_grid_for_itself() -> None:
    """At the first point alpha 5 is better by far; at the second one it is neither, and goes on."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    content = measured(cells, {0: 0, 5: 0}, seed_spread=0.02)
    first = cells[0].arm
    for cell in cells:
        if cell.arm.alpha and baseline_of(cell.arm) == first:
            metric = content[cell.key]["metrics"][LOSS]
            metric["values"] = [
                value - 2 * weight for value, weight in zip(metric["values"], metric["weights"], strict=True)
            ]
    found = decide(SweepResults(cells, content), LOSS, 0.001, done=4)
    assert [(one.reason, one.baseline, one.seeds) for one in found.stopped] == [("success", first, 3)]
    assert found.stopped[0].sentence(LOSS).startswith("Stopped early with learning_rate 1e-05, after 3 of 6 seeds: ")
    assert {baseline_of(cell.arm) for cell in cells if found.is_needed(cell.arm)} == {baseline_of(cells[-1].arm)}


def test_decide_depends_on_no_later_seed() -> None:
    """So a resumed sweep repeats what was decided, whatever was trained since, and adds to it only."""
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=6")
    content = measured(cells, {0: 0, 5: 0.0, 10: 0.04}, seed_spread=0.008, number=2)
    whole = [decide(SweepResults(cells, content), LOSS, 0.02, done=done) for done in range(7)]
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    for done, found in enumerate(whole):
        there = {cell.key: content[cell.key] for cell in cells if cell.seed in seeds[:done]}
        assert decide(SweepResults(cells, there), LOSS, 0.02, done=done) == found
        assert all(one.seeds <= done for one in (*found.dropped, *found.stopped))
    for earlier, later in pairwise(whole):
        assert later.dropped[: len(earlier.dropped)] == earlier.dropped
        assert later.stopped[: len(earlier.stopped)] == earlier.stopped
    assert whole[2] == Decision()
    assert whole[5] == whole[6]  # there is no look after the last seed
    assert len({found.dropped + found.stopped for found in whole}) == 3  # drops at one look, a stop at another


def test_decide_a_metric_without_a_good_direction_decides_nothing() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=6")
    results = SweepResults(cells, measured(cells, {0: 0, 5: -1.0}))
    assert decide(results, "answer tokens", 0.005, done=5) == Decision()


@pytest.mark.parametrize(
    ("setting", "seeds", "stops"),
    [("auto", 5, False), ("auto", 6, True), ("always", 3, False), ("always", 4, True), ("never", 12, False)],
)
def test_stops_early_by_setting_and_seeds(setting: Any, seeds: int, stops: bool) -> None:
    assert stops_early(Sweep(early_stopping=setting, seeds=seeds)) == stops


# The simulation, by which the levels were chosen.


@pytest.mark.parametrize("kind", ["independent", "together", "uneven"])
def test_simulated_margins_are_those_of_the_package(kind: str) -> None:
    seeds = 4
    values = simulation.draw(6, ROWS, seeds, (0.0, 0.003, 0.006), 0.0025, kind, np.random.default_rng(1))
    known = simulation.statistics(values)
    counted = np.ones((6, 4), bool)
    counted[:, 0] = False
    found = simulation.margins(known, np.zeros(6, np.intp), counted, np.full((6, 4), seeds), 0.02)
    for sweep, arms in enumerate(values):
        for arm, one in enumerate(compare_arms(arms[0], arms[1:], resamples=99), 1):
            assert one.components is not None
            assert known.gain[sweep, arm, 0, seeds - 1] == pytest.approx(one.value)
            assert found[sweep, arm] == pytest.approx(margin(one.components, seeds, ROWS, 0.02), rel=1e-9)


def test_simulated_rules_are_those_of_the_package() -> None:
    """Sweeps of four seeds have one look, so that what each arm was trained with tells what it decided.

    The package also asks the sign-flip test, so it may keep an arm that the simulation drops, but only if it is close.
    """
    same = []
    for effects in ((0.0, 0.0, 0.0), (0.02, 0.0, -0.01), (0.005, 0.0, 0.008)):
        values = simulation.draw(12, ROWS, 4, effects, 0.0025, "independent", np.random.default_rng(2))
        course = simulation.apply_rules(simulation.statistics(values), 4, 0.006, simulation.Rules())
        arms = [Arm(float(alpha)) for alpha in range(4)]
        for sweep, array in enumerate(values):
            given = dict(zip(arms, array[:, :3], strict=True))
            found = look(given, arms[0], better="higher", delta=0.006, comparisons=3, planned=4)
            needed = np.array([found.is_needed(arm) for arm in arms])
            inside = np.array([arm not in [one.arm for one in found.dropped] for arm in arms])
            assert (needed >= (course.trained[sweep] == 4)).all()
            same.append((needed == (course.trained[sweep] == 4)).all() and (inside == course.inside[sweep]).all())
    assert len(same) == 36
    assert np.mean(same) > 0.9


def test_simulated_sweeps_keep_their_error_rates_and_save_cells() -> None:
    """Eight seeds that vary by 0.0025, 24 prompts; limits are the aims plus two standard errors of 400 sweeps."""
    shares = {}
    for name in ("tied", "one by delta", "one by 0.02"):
        effects = simulation.EFFECTS[name]
        values = simulation.draw(400, ROWS, 8, effects, 0.0025, "independent", np.random.default_rng(3))
        known = simulation.statistics(values)
        course = simulation.apply_rules(known, 8, simulation.DELTA, simulation.Rules())
        shares[name] = simulation.summarise(known, effects, course, 8)
    assert all(one.false < 0.05 and one.worse < 0.05 for one in shares.values())
    assert shares["one by delta"].futile < 0.072
    assert shares["one by 0.02"].found > 0.99
    assert shares["one by 0.02"].lost == 0
    assert shares["one by 0.02"].saved > 0.4
    assert shares["tied"].saved > 0.25


def test_sentences_state_their_numbers() -> None:
    arm = Arm(5.0)
    dropped = Dropped(Arm(10.0), arm, 0.0123, 0.004, 3)
    assert dropped.sentence("win rate") == (
        "alpha 10 gets no further seeds: worse than alpha 5 by 1.2 points in win rate (one-sided p = 0.004, 3 seeds)"
    )
    futile = Stopped(Arm(0.0), "futility", 3, 8, excluded=0.005)
    assert (
        futile.sentence(LOSS)
        == "Stopped early, after 3 of 8 seeds: for every arm left, a gain over 0.0050 in held-out loss is excluded "
        "(95 %)."
    )
