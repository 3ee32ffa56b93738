"""A race of arms: after each seed, those that can't be the best any more get no further seeds.

The rule is sound however often it is applied. An arm leaves when its difference from another arm still racing, on the
seeds and examples that both have, is worse by more than `margin`: Student's t over seeds and over examples together.
The chance of each such test is `level` / (looks (arms - 1)). The truly best arm can be lost to one of the arms - 1
others, at one of the looks, and in no other way; so by the union bound it is lost in a race with probability `level`
at most, whatever the gaps between the arms and however the tests depend on each other. If several arms are equally
good, that holds for each of them.

Assumed: within a pair, what the seeds and what the examples add to the difference is normal (for the examples, their
mean: many of them), and seeds are drawn alike. Nothing is assumed about one arm varying as much as another: a pooled
variance would make two seeds go further, but loses the best arm too often when it is the one that varies most.

What it means with few seeds: Student's quantiles are huge. With four arms and six seeds (four looks) an arm leaves
after two seeds if it is worse by 54 standard deviations of the pair's difference between seeds, after three by 6.3,
after four by 3.1, after five by 2.2. So two or three seeds only drop an arm that has gone wrong altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from neftcli.evaluation.statistics import LEVEL
from neftcli.sweep.statistics import complete, margin, variance_components

if TYPE_CHECKING:
    from neftcli.sweep.plan import Arm
    from neftcli.sweep.verdict import Numbers

BASELINE = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why an arm left.

    Attributes:
        worse_than: The arm that it is worse than by most.
        by: It is worse by at least this, with all the certainty that the race asks for.
    """

    worse_than: int
    by: float


@dataclass(frozen=True, slots=True)
class Left:
    """An arm that left.

    Attributes:
        arm: Which.
        worse_than: The arm that it is worse than by most.
        by: By at least this.
    """

    arm: Arm
    worse_than: Arm
    by: float


def leaving(numbers: Numbers, metric: str, gone: Sequence[Arm], *, after: int, seeds: int) -> list[Left]:
    """The arms that leave a sweep's race now, by the half of the rows that chooses; arms without noise never do.

    Only arms that the metric can choose among race with each other. The chance of losing a best one is shared by all
    races, as each counts the arms of all.

    Args:
        numbers: What was measured.
        metric: The metric that chooses.
        gone: Arms that left before.
        after: Seeds so far.
        seeds: Seeds that the race is over.
    """
    found = []
    for group in numbers.groups(metric):
        # The race never drops its first arm.
        racing = sorted((arm for arm in group if arm not in gone), key=lambda arm: arm.alpha != 0)
        if racing:
            dropped = look(
                {place: numbers.values(metric, arm, choosing=True)[:after] for place, arm in enumerate(racing)},
                numbers.weights(metric, racing[0], choosing=True),
                "lower" if numbers.better(metric) == "lower" else "higher",
                looks=max(1, seeds - 2),
                arms=len(numbers.arms),
            )
            found += [Left(racing[place], racing[why.worse_than], why.by) for place, why in dropped.items()]
    return [left for left in found if left.arm.alpha]


def look(
    values: Mapping[int, npt.ArrayLike],
    weights: npt.ArrayLike | None,
    better: Literal["lower", "higher"],
    *,
    looks: int,
    arms: int,
    level: float = LEVEL,
) -> dict[int, Dropped]:
    """Which of the arms still racing leave now.

    Args:
        values: (seeds so far, examples) of each arm still racing; a seed that failed is a row of NaN.
        weights: (examples,), or None, as in `arm_difference`.
        better: The direction that is good.
        looks: How often a race is looked at in all, fixed before it begins. After one seed nothing can be decided and
            after the last nothing be saved, so that a race over S seeds has S - 2 looks.
        arms: Arms that the race began with.
        level: The chance that the truly best arm leaves in the race.

    Returns:
        The arms that leave, and why. The arm `BASELINE` never leaves, and some arm always stays.

    Raises:
        ValueError: No arms, fewer than one look, more arms racing than began, or what `complete` refuses.
    """
    if looks < 1 or not values or arms < len(values):
        raise ValueError(f"a race needs a look and an arm, and no more arms than began: {looks}, {len(values)}, {arms}")
    arrays = {arm: np.asarray(value, dtype=np.float64) for arm, value in values.items()}
    dropped: dict[int, Dropped] = {}
    for arm, value in arrays.items():
        # Those that leave are no yardstick, lest arms of different seeds put each other out in a ring.
        others = [other for other in arrays if other != arm and other not in dropped]
        if arm == BASELINE or not others:
            continue
        tail = level / (looks * (arms - 1))
        bounds = {other: _worse_by(value, arrays[other], weights, better, tail) for other in others}
        most = max(bounds, key=bounds.__getitem__)
        if bounds[most] > 0:
            dropped[arm] = Dropped(most, bounds[most])
    return dropped


def _worse_by(
    arm: npt.ArrayLike,
    other: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    better: Literal["lower", "higher"],
    tail: float,
) -> float:
    """A lower bound on how much worse the arm is, wrong with a chance of `tail`; minus infinity without evidence."""
    (one, two), counts = complete([arm, other], weights)
    seeds, rows = one.shape
    if seeds < 2 or rows < 2:
        return -np.inf
    excess = one - two if better == "lower" else two - one
    size = max(np.abs(one).max(), np.abs(two).max())
    mean = float(excess.mean() if counts is None else excess.sum() / (seeds * counts.sum()))
    return mean - margin(variance_components(excess, counts, size=size), seeds, rows, tail)
