"""Races of arms over seeds.

Oracles: Student's bound from scipy where only seeds vary; the binomial distribution for simulated races, of which at
most 5 % may lose the arm that is truly best (one-sided 99 % bounds, fixed seeds); laws (direction, order, unit);
and `look` itself where a sweep's arms race.
"""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from neftcli.evaluation.comparison import LOSS, WIN_RATE
from neftcli.evaluation.statistics import LEVEL
from neftcli.sweep.plan import Arm
from neftcli.sweep.racing import Dropped, Left, leaving, look
from neftcli.sweep.verdict import Numbers
from tests.unit.sweep.test_statistics import arms, tokens_of
from tests.unit.sweep.test_verdict import CHOOSING, measured, plan, rate_of, shifted, with_win_rates

Floats = NDArray[np.float64]
RACES = 300
LOST = int(stats.binom.ppf(0.99, RACES, LEVEL))


def still_racing(values: Any, *arguments: Any, **settings: Any) -> list[int]:
    """The arms that go on after a look, in the order given."""
    gone = look(values, *arguments, **settings)
    return [arm for arm in values if arm not in gone]


def race(values: Floats, level: float = LEVEL) -> dict[int, int]:
    """Arms that left, and after how many seeds, of a race over all values (arms, seeds, examples), lower is better."""
    count, seeds, _ = values.shape
    racing, gone = list(range(count)), {}
    for after in range(2, seeds):
        kept = still_racing(
            {arm: values[arm, :after] for arm in racing}, None, "lower", looks=seeds - 2, arms=count, level=level
        )
        gone.update({arm: after for arm in racing if arm not in kept})
        racing = kept
    return gone


# The rule


def test_the_bounds_are_those_stated() -> None:
    """With four arms and six seeds, of seeds alone: 54, 6.3, 3.1 and 2.2 standard deviations, from Student's t."""
    assert LOST == 24
    baseline = arms(5, 30, 0)[0]
    gains = np.array([0.0, 1.0, 0.4, 0.8, 0.1])
    for seeds, stated in ((2, 54), (3, 6.3), (4, 3.1), (5, 2.2)):
        deviation = gains[:seeds].std(ddof=1)
        bound = stats.t.isf(LEVEL / (4 * 3), seeds - 1) * deviation / math.sqrt(seeds)
        assert bound / deviation == pytest.approx(stated, abs=0.5 if seeds == 2 else 0.05)
        for excess in (0.999, 1.001):
            worse = baseline[:seeds] + (gains[:seeds] - gains[:seeds].mean() + excess * bound)[:, None]
            values = {0: baseline[:seeds], 1: worse}
            found = look(values, None, "lower", looks=4, arms=4)
            assert list(found) == ([1] if excess > 1 else [])
            if excess > 1:
                assert found[1] == Dropped(0, pytest.approx(0.001 * bound, rel=1e-3))


def test_examples_count_as_much_as_seeds() -> None:
    """Seeds that train the same models: the bound is Student's over the examples."""
    baseline, arm = arms(1, 40, 0)
    difference = (arm - baseline)[0]
    bound = stats.t.isf(LEVEL / (4 * 3), 39) * stats.sem(difference)
    for excess in (0.999, 1.001):
        values = {0: baseline.repeat(3, 0), 1: (arm - difference.mean() + excess * bound).repeat(3, 0)}
        assert still_racing(values, None, "lower", looks=4, arms=4) == ([0] if excess > 1 else [0, 1])


def test_an_arm_is_measured_against_the_one_that_it_is_worse_than_by_most() -> None:
    values = {arm: arms(4, 30, 0)[0] + gap for arm, gap in enumerate((5.0, 9.0, 0.0, 3.0))}
    found = look(values, None, "lower", looks=4, arms=4)
    assert found == {1: Dropped(2, pytest.approx(9)), 3: Dropped(2, pytest.approx(3))}


def test_the_baseline_stays_and_some_arm_always_does() -> None:
    """The worst of all is kept if it is the baseline; alone, or after one seed, or with one example, nothing leaves."""
    values = {arm: arms(4, 30, 0)[0] - 5 * arm for arm in range(3)}
    assert still_racing(values, None, "lower", looks=4, arms=3) == [0, 2]
    assert still_racing(values, None, "higher", looks=4, arms=3) == [0]
    assert still_racing({2: values[2]}, None, "lower", looks=4, arms=3) == [2]
    assert still_racing({0: values[0]}, None, "lower", looks=4, arms=1) == [0]
    assert still_racing({arm: value[:1] for arm, value in values.items()}, None, "lower", looks=4, arms=3) == [0, 1, 2]
    few = {arm: value[:, :1] for arm, value in values.items()}
    assert still_racing(few, None, "lower", looks=4, arms=3) == [0, 1, 2]


def test_only_what_both_arms_have_is_compared() -> None:
    """A failed seed counts in no pair of its arm; an arm that failed in all, or has one seed left, is not judged."""
    values = arms(4, 30, 1, count=3, seed=0.1)
    values[1] += 4
    values[2] += 4
    values[1, 1] = np.nan
    values[2, 1:] = np.nan
    racing = dict(enumerate(values))
    assert still_racing(racing, None, "lower", looks=4, arms=3) == [0, 2]
    without = {arm: np.delete(value, 1, 0) for arm, value in racing.items()}
    assert look(racing, None, "lower", looks=4, arms=3) == look(without, None, "lower", looks=4, arms=3)
    values[2] = np.nan
    assert still_racing(dict(enumerate(values)), None, "lower", looks=4, arms=3) == [0, 2]


def test_arms_of_different_seeds_do_not_put_each_other_out_in_a_ring() -> None:
    """Each is worse than the next on the seeds that both have: the last one left stays."""
    seeds = np.full((3, 9, 20), np.nan)
    for one, other, where in ((0, 1, slice(0, 3)), (1, 2, slice(3, 6)), (2, 0, slice(6, 9))):
        seeds[one, where], seeds[other, where] = 5.0, 0.0
    kept = still_racing({1: seeds[0], 2: seeds[1], 3: seeds[2]}, None, "lower", looks=4, arms=4)
    assert len(kept) == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_direction_order_and_unit_change_nothing(weighted: bool) -> None:
    values = arms(5, 30, 2, count=4, seed=0.2) + np.array([1.0, 4.0, 0.0, 2.5])[:, None, None]
    weights = tokens_of(30) if weighted else None
    values = values * (1.0 if weights is None else weights)
    expected = still_racing(dict(enumerate(values)), weights, "lower", looks=4, arms=4)
    assert expected == [0, 2]
    assert still_racing(dict(enumerate(-values)), weights, "higher", looks=4, arms=4) == expected
    assert still_racing(dict(enumerate(1e-6 * values)), weights, "lower", looks=4, arms=4) == expected
    backwards = {arm: values[arm] for arm in (3, 2, 1, 0)}
    assert sorted(still_racing(backwards, weights, "lower", looks=4, arms=4)) == expected


def test_more_looks_or_more_arms_ask_for_more() -> None:
    values = {0: arms(4, 40, 3)[0], 1: arms(4, 40, 3)[1] + 2.5}
    bounds = [look(values, None, "lower", looks=looks, arms=k)[1].by for looks, k in ((1, 2), (2, 2), (2, 3))]
    assert bounds[0] > bounds[1] > bounds[2] > 0
    # The chance is shared by looks and arms alike.
    assert look(values, None, "lower", looks=2, arms=2) == look(values, None, "lower", looks=1, arms=3)


@pytest.mark.parametrize("looks_and_arms", [(0, 2), (2, 1)])
def test_a_race_that_can_not_be_is_refused(looks_and_arms: tuple[int, int]) -> None:
    looks, count = looks_and_arms
    with pytest.raises(ValueError, match="a race needs"):
        look(dict(enumerate(arms(3, 9, 0))), None, "lower", looks=looks, arms=count)
    with pytest.raises(ValueError, match="a race needs"):
        look({}, None, "lower", looks=2, arms=2)


# In a sweep


def test_the_arms_of_a_sweep_leave_by_the_half_that_chooses_with_what_they_are_worse_than() -> None:
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=4")
    numbers = Numbers(cells, measured(cells, {0: 0, 5: -0.1, 10: 5}), CHOOSING)
    values = {place: numbers.values(LOSS, arm, choosing=True)[:3] for place, arm in enumerate(numbers.arms)}
    weights = numbers.weights(LOSS, numbers.arms[0], choosing=True)
    expected = look(values, weights, "lower", looks=2, arms=3)
    assert list(expected) == [2]
    [left] = leaving(numbers, LOSS, [], after=3, seeds=4)
    assert left == Left(Arm(10.0), Arm(5.0), expected[2].by)
    assert leaving(numbers, LOSS, [Arm(10.0)], after=3, seeds=4) == []
    judging = measured(cells, {0: 0, 5: 0, 10: 5}, {0: 0, 5: 0, 10: 0})
    assert leaving(Numbers(cells, judging, CHOOSING), LOSS, [], after=3, seeds=4) == []


def test_a_point_of_a_grid_races_by_win_rate_within_itself_and_by_loss_with_all() -> None:
    """90 % against a ruined baseline puts no arm of the good point out; arms without noise never leave."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=5", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    good, ruined = (Arm(5.0, (("training.learning_rate", rate),)) for rate in (1e-5, 5e-5))
    content = with_win_rates(cells, {good: 0.5, ruined: 1.0})
    for cell in cells:
        shifted(content, cell, 5.0 if rate_of(cell.arm) == 5e-5 else 0.0)
    numbers = Numbers(cells, content, CHOOSING)
    assert leaving(numbers, WIN_RATE, [], after=4, seeds=5) == []
    assert [left.arm for left in leaving(numbers, LOSS, [], after=4, seeds=5)] == [ruined]


def test_a_race_before_anything_is_measured_drops_nothing() -> None:
    cells = plan("sweep.alphas=[5]")
    assert leaving(Numbers(cells, {}, []), LOSS, [], after=1, seeds=3) == []


# By simulation


@pytest.mark.parametrize(
    ("count", "gap", "parts"),
    [
        pytest.param(2, 0.0, {}, id="two-tied"),
        pytest.param(2, 0.0, {"seed": 0.0}, id="seeds-do-not-matter"),
        pytest.param(2, 0.0, {"seed": 1.0, "example": 0.1, "residual": 0.1}, id="only-seeds-matter"),
        pytest.param(4, 0.0, {}, id="four-tied"),
        pytest.param(4, 0.3, {}, id="four-near"),
        pytest.param(8, 0.0, {}, id="eight-tied"),
    ],
)
def test_the_best_arm_is_seldom_lost(count: int, gap: float, parts: dict[str, float]) -> None:
    """In at most 24 of 300 races (5 %, 99 % bound); where arms tie, the last stands for the best."""
    lost = 0
    for number in range(RACES):
        values = arms(5 if count == 8 else 8, 20, number, count=count, **parts)
        values[:-1] += gap
        lost += (count - 1) in race(values)
    assert lost <= LOST


def test_the_rule_is_not_idle() -> None:
    """Without the correction (level times looks and arms) the best of eight tied is lost far more often than 5 %."""
    lost = sum(7 in race(arms(8, 20, number, count=8), level=LEVEL * 6 * 7) for number in range(100))
    assert lost > stats.binom.ppf(0.99, 100, LEVEL)


def test_the_best_arm_is_seldom_lost_if_it_varies_most() -> None:
    """Three arms whose seeds hardly differ and a best one, as good, whose seeds differ much."""
    lost = 0
    for number in range(RACES):
        values = arms(8, 20, number, count=4, seed=0.1, residual=0.3)
        values[3] += np.random.default_rng((number, 1)).normal(0, 2, (8, 1))
        lost += 3 in race(values)
    assert lost <= LOST


def test_bad_arms_leave_after_few_seeds() -> None:
    """Four arms and eight seeds, 32 cells; two arms are worse by 8 standard deviations of a pair between seeds.

    Both leave after three seeds in nearly every race, which saves 10 cells in the mean (31 %); the good arm and the
    baseline, equal, stay. A gap of 1.5 deviations saves about 4.
    """
    deviation = math.sqrt(2 * (0.5**2 + 0.2**2 / 50))

    def saved(gap: float) -> tuple[float, int]:
        cells, wrong = [], 0
        for number in range(100):
            values = arms(8, 50, number, count=4, seed=0.5, example=0.2, residual=0.2)
            values[1] += gap * deviation
            values[3] += gap * deviation
            gone = race(values)
            cells.append(sum(8 - after for after in gone.values()))
            wrong += 2 in gone
        return float(np.mean(cells)), wrong

    many, wrong = saved(8.0)
    few, _ = saved(1.5)
    assert 9.5 <= many <= 10.5
    assert 3 <= few <= 5
    assert wrong <= 5
