"""Error rates and savings of a sweep that stops early, by simulation of the rules in `neftcli/sweep/sequential.py`.

    python benchmarks/sequential.py [--sweeps 2000] [--prompts 108]

Three noised arms and the baseline, compared after each seed from the third on:

    value[arm, seed, prompt] = effect[arm] + seed[arm, seed] + prompt[arm, prompt] + residual[arm, seed, prompt]

Standard deviations are those of an arm's difference from the baseline: 0.003 between prompts, 0.009 the residual, and
the one in the table between seeds. Seeds' parts of two differences are correlated by 0.5 (arms vary independently), by
0.9 (`together`), or one arm varies three times as much (`uneven`). Thousands of sweeps are simulated at once, so the
statistics are written again here, for arrays with a leading axis of sweeps; a test holds them against the package's.
All looks of all arms are computed first, then the rules are applied look by look. Printed in percent:

    saved    cells that were not trained
    found    the best arm is "better" at the end (in parentheses: without early stopping)
    lost     the best arm was dropped
    futile   the sweep stopped for futility
    best     the best arm is the one with the best mean of those that are "better"; of sweeps with one that is
    false    an arm that is not better than the baseline is "better" at the end, family-wise
    worse    the same for "worse"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc, stdtrit

from neftcli.statistics.crossed import SHARED_BASELINE, UNEVEN
from neftcli.statistics.paired import LEVEL
from neftcli.sweep.sequential import DROP, FIRST_LOOK, FUTILITY, SUCCESS

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PROMPT, RESIDUAL = 0.003, 0.009
DELTA = 0.005
SEEDS = (6, 8, 12)
SPREADS = (0.0, 0.001, 0.0025, 0.005)
EFFECTS: dict[str, tuple[float, ...]] = {
    "tied": (0.0, 0.0, 0.0),
    "one by 0.003": (0.0, 0.0, 0.003),
    "one by delta": (0.0, 0.0, DELTA),
    "one by 0.006": (0.0, 0.0, 0.006),
    "one by 0.02": (0.0, 0.0, 0.02),
    "by 0.006 and 0.009": (0.0, 0.006, 0.009),
}
"""Gains of the noised arms; the last one is the best."""


@dataclass(frozen=True)
class Statistics:
    """What is known of every pair of arms after each number of seeds: (sweeps, arms, arms, seeds).

    Attributes:
        gain: Mean of the first arm's values less the second's.
        spread: Variance of the seeds' differences.
        prompt: Component of the variance between prompts.
        residual: Component of the residual.
        prompts: Number of prompts.
    """

    gain: Array
    spread: Array
    prompt: Array
    residual: Array
    prompts: int


@dataclass(frozen=True)
class Rules:
    """One-sided levels, and the first seed after which they are applied."""

    success: float = SUCCESS / 2
    drop: float = DROP
    futility: float = FUTILITY
    first: int = FIRST_LOOK


@dataclass(frozen=True)
class Course:
    """How the simulated sweeps went.

    Attributes:
        inside: (sweeps, arms), the arms that were never dropped.
        trained: (sweeps, arms), the seeds that each arm was trained with.
        gave_up: (sweeps,), those that stopped for futility.
    """

    inside: Mask
    trained: npt.NDArray[np.intp]
    gave_up: Mask


@dataclass(frozen=True)
class Outcome:
    """Shares of the simulated sweeps, as in the module's text."""

    saved: float
    found: float
    lost: float
    futile: float
    best: float
    false: float
    worse: float


def draw(
    sweeps: int,
    prompts: int,
    seeds: int,
    effects: Sequence[float],
    spread: float,
    kind: str,
    generator: np.random.Generator,
) -> Array:
    """Draw the arms' values, higher being better: (sweeps, arms, seeds, prompts), the baseline first."""
    arms = len(effects) + 1
    own = np.full(arms, 0.5)
    shared = 0.0
    if kind == "together":
        own[1:], shared = 0.1, 0.4
    if kind == "uneven":
        own[1] = 8.5
    of_seeds = np.sqrt(own)[:, None] * generator.standard_normal((sweeps, arms, seeds))
    of_seeds[:, 1:] += np.sqrt(shared) * generator.standard_normal((sweeps, 1, seeds))
    values: Array = RESIDUAL / np.sqrt(2) * generator.standard_normal((sweeps, arms, seeds, prompts))
    values += PROMPT / np.sqrt(2) * generator.standard_normal((sweeps, arms, 1, prompts))
    values += (spread * of_seeds + np.array([0.0, *effects])[:, None])[..., None]
    return values


def statistics(values: Array) -> Statistics:
    """Compute all pairs' statistics after 1, 2, ... seeds; what needs two seeds is NaN after one."""
    sweeps, arms, seeds, n = values.shape
    gain, spread, prompt, residual = (np.zeros((sweeps, arms, arms, seeds)) for _ in range(4))
    count = np.arange(1.0, seeds + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        for one, two in combinations(range(arms), 2):
            difference = values[:, one] - values[:, two]  # (sweeps, seeds, prompts)
            by_seed = difference.mean(-1)
            mean = by_seed.cumsum(-1) / count
            of_seeds = (by_seed**2).cumsum(-1) - count * mean**2
            of_prompts = (difference.cumsum(1) ** 2).sum(-1) / count - count * n * mean**2
            total = (difference**2).sum(-1).cumsum(-1) - count * n * mean**2
            rest = (total - n * of_seeds - of_prompts) / ((count - 1) * (n - 1))
            between = np.maximum(0.0, (of_prompts / (n - 1) - rest) / count)
            for first, second, sign in ((one, two, 1), (two, one, -1)):
                gain[:, first, second] = sign * mean
                spread[:, first, second] = of_seeds / (count - 1)
                prompt[:, first, second] = between
                residual[:, first, second] = rest
    return Statistics(gain, spread, prompt, residual, n)


def margins(
    known: Statistics, reference: npt.NDArray[np.intp], counted: Mask, seeds: npt.NDArray[np.intp], tail: float
) -> Array:
    """`crossed.margin` of each arm's difference from a reference arm, with the seeds' part pooled: (sweeps, arms).

    Args:
        known: Of all pairs.
        reference: (sweeps,), the arm compared with.
        counted: (sweeps, arms), the arms that are compared; the reference is not.
        seeds: (sweeps, arms), how many each has.
        tail: One-sided level.
    """
    row, arm = np.arange(len(reference))[:, None], np.arange(counted.shape[1])
    place = (row, arm, reference[:, None], seeds - 1)
    spread, residual = known.spread[place], known.residual[place]
    weights = np.where(counted, seeds - 1.0, 0.0)
    number, freedom = counted.sum(1)[:, None], weights.sum(1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        others = (np.nansum(weights * spread, 1)[:, None] - weights * spread) / (freedom - weights)
        of_others = (freedom - weights) / (1 + (number - 2) * SHARED_BASELINE**2)
        uneven = (number > 1) & (fdtrc(seeds - 1.0, of_others, spread / others) < UNEVEN)
        pooled_spread = np.where(uneven, spread, np.nansum(weights * spread, 1)[:, None] / freedom)
        pooled_residual = np.where(uneven, residual, np.nansum(weights * residual, 1)[:, None] / freedom)
        dof = np.where(uneven, seeds - 1.0, freedom / (1 + (number - 1) * SHARED_BASELINE**2))
        # Two floors: the seeds' component is not below 0, and the residual's share stays.
        variance = np.maximum(pooled_spread, pooled_residual / known.prompts) / seeds
        of_prompts = known.prompt[place] / known.prompts
        quantile = stdtrit(dof, 1 - tail)
        result: Array = np.sqrt(quantile**2 * variance + stdtrit(known.prompts - 1, 1 - tail) ** 2 * of_prompts)
    return np.where(counted, result, np.inf)


def without_rules(known: Statistics, seeds: int) -> Course:
    """The sweep without early stopping."""
    sweeps, arms = known.gain.shape[:2]
    return Course(np.ones((sweeps, arms), bool), np.full((sweeps, arms), seeds), np.zeros(sweeps, bool))


def apply_rules(known: Statistics, seeds: int, delta: float, rules: Rules) -> Course:
    """Apply the rules look by look."""
    sweeps, arms = known.gain.shape[:2]
    inside, active, gave_up = np.ones((sweeps, arms), bool), np.ones(sweeps, bool), np.zeros(sweeps, bool)
    trained = np.full((sweeps, arms), seeds)
    baseline, every = np.zeros(sweeps, np.intp), np.arange(sweeps)
    for count in range(rules.first, seeds):
        at = np.full((sweeps, arms), count)
        noised = inside.copy()
        noised[:, 0] = False
        gain = known.gain[:, :, 0, count - 1]
        success = (noised & (gain > margins(known, baseline, noised, at, rules.success / (arms - 1)))).any(1)
        leader = np.where(inside, gain, -np.inf).argmax(1)
        others = inside.copy()
        others[every, leader] = False
        behind = known.gain[every, leader, :, count - 1]
        dropped = others & (behind > margins(known, leader, others, at, rules.drop))
        dropped[:, 0] = False
        dropped[success | ~active] = False
        trained[dropped] = count
        inside &= ~dropped
        noised &= inside
        futile = (~noised | (gain + margins(known, baseline, noised, at, rules.futility) < delta)).all(1)
        ended = active & (success | futile)
        gave_up |= active & futile & ~success
        trained[ended[:, None] & inside] = count
        active &= ~ended
    return Course(inside, trained, gave_up)


def final_test(known: Statistics, trained: npt.NDArray[np.intp]) -> npt.NDArray[np.int_]:
    """Holm's test at `LEVEL` of all noised arms: 1 better, -1 worse, 0 not significant; (sweeps, noised arms)."""
    sweeps, arms = trained.shape
    noised = np.ones((sweeps, arms), bool)
    noised[:, 0] = False
    baseline = np.zeros(sweeps, np.intp)
    gain = np.take_along_axis(known.gain[:, :, 0], trained[..., None] - 1, -1)[..., 0]
    rejected = np.zeros((sweeps, arms), bool)
    passing = np.ones(sweeps, bool)
    for step in range(arms - 1):
        below = np.abs(gain) > margins(known, baseline, noised, trained, LEVEL / (arms - 1 - step) / 2)
        passing &= below.sum(1) > step
        rejected[passing] |= below[passing]
    return (np.sign(gain) * rejected)[:, 1:].astype(int)


def summarise(known: Statistics, effects: Sequence[float], course: Course, seeds: int) -> Outcome:
    """The shares of one setting."""
    trained = course.trained
    said = final_test(known, trained)
    gain = np.take_along_axis(known.gain[:, 1:, 0], trained[:, 1:, None] - 1, -1)[..., 0]
    chosen = np.where(said > 0, gain, -np.inf).argmax(1)
    claimed = (said > 0).any(1)
    true = np.array(effects)
    best = len(effects) - 1
    return Outcome(
        saved=1 - float(trained.mean()) / seeds,
        found=float((said[:, best] > 0).mean()),
        lost=float((~course.inside[:, best + 1]).mean()),
        futile=float(course.gave_up.mean()),
        best=float((chosen == best)[claimed].mean()) if claimed.any() else float("nan"),
        false=float(((said > 0) & (true <= 0)).any(1).mean()),
        worse=float(((said < 0) & (true >= 0)).any(1).mean()),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=2_000)
    parser.add_argument("--prompts", type=int, default=108)
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--first", type=int, default=FIRST_LOOK)
    parser.add_argument("--drop", type=float, default=DROP)
    asked = parser.parse_args()
    rules = Rules(drop=asked.drop, first=asked.first)
    print("| seed sd | seeds' parts | arms | seeds | saved | found | lost | futile | best | false | worse |")
    print("|" + "---|" * 11)
    for kind in ("independent", "together", "uneven"):
        for spread in SPREADS if kind == "independent" else SPREADS[2:3]:
            for name, effects in EFFECTS.items():
                generator = np.random.default_rng(0)
                known = statistics(draw(asked.sweeps, asked.prompts, max(SEEDS), effects, spread, kind, generator))
                for seeds in SEEDS:
                    full = summarise(known, effects, without_rules(known, seeds), seeds)
                    early = summarise(known, effects, apply_rules(known, seeds, asked.delta, rules), seeds)
                    found = f"{100 * early.found:.1f} ({100 * full.found:.1f})"
                    false = f"{100 * early.false:.1f} ({100 * full.false:.1f})"
                    worse = f"{100 * early.worse:.1f} ({100 * full.worse:.1f})"
                    dropped = f"{100 * early.lost:.1f} | {100 * early.futile:.1f} | {100 * early.best:.0f}"
                    shares = f"{100 * early.saved:.0f} | {found} | {dropped}"
                    print(f"| {spread} | {kind} | {name} | {seeds} | {shares} | {false} | {worse} |", flush=True)


if __name__ == "__main__":
    main()
