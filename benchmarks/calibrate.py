"""Error rates, coverage and power of the verdicts, by simulation.

    python -m benchmarks.calibrate --draws 400 --output calibration.md

Draws sweeps (three noised arms and alpha 0) and evaluations (two runs) without a true difference, and with the median
minimum detectable effect (MDE) of these draws planted in one arm. Sweeps are judged as the command judges them: cells'
values in `SweepResults`, `judge_sweep` down to the recommendation, to which the link `best` points, and from six seeds
on also with early stopping by `decide`. `situations.py` describes the simulated data.

Two things differ from the command, both for speed: tests draw 599 sign patterns instead of 9,999, and parts that decide
nothing are skipped (the arms' own bootstrap intervals, three quarters of the time, and the estimate of the true level).
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.situations import (
    ALPHAS,
    PLAIN,
    ROWS,
    SEED_SDS,
    SEEDS,
    Drawn,
    Situation,
    draws_of,
    evaluations,
    other_sweeps,
    plain_sweeps,
)
from neftcli.events import Comparison, Significance
from neftcli.metrics.registry import HELD_OUT_LOSS, WIN_RATE_LENGTH_CONTROLLED
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.statistics import paired
from neftcli.statistics.multiple import name_verdict
from neftcli.statistics.paired import PairedDifference, paired_difference
from neftcli.statistics.win_rates import estimate_win_rate, length_controlled_scores
from neftcli.sweep.early_stopping import FEWEST_SEEDS, Decision, decide
from neftcli.sweep.plan import Arm, Cell, plan_cells
from neftcli.sweep.results import SweepResults
from neftcli.sweep.verdict import Verdict, judge_sweep

GAINING = Arm(ALPHAS[0])
"""The arm that a planted effect makes better."""
RESAMPLES = 599  # 0.05 (599 + 1) and its third are whole, so the level is kept
METRICS = {"loss": HELD_OUT_LOSS, "exact match": "exact_match", "win rate": WIN_RATE_LENGTH_CONTROLLED}

STOPPING_SEEDS = (6, 8, 12)
STOPPING_DELTA = 0.005
STOPPING_GAINS = {
    "tied": 0.0,
    "one better by delta": STOPPING_DELTA,
    "one better by 0.006": 0.006,
    "one better by 0.02": 0.02,
}


@dataclass(frozen=True)
class Rates:
    """Counts of one situation with one planted effect, as shares of the draws; NaN if a count does not apply.

    Attributes:
        false: An arm without a true difference is called better or worse, over new seeds.
        these_false: An arm without a true difference for these seeds is called lower or higher for them.
        wrong: An arm without a true gain is recommended.
        found: The arm with the planted effect is better; of an evaluation or one seed, for these seeds.
        covered: The interval over new seeds holds the truth, over all arms.
        these_covered: The interval for these seeds holds the truth for these seeds.
        mde: Median minimum detectable effect.
        level: Median of the true level that is reported, of evaluations that report it.
    """

    false: float
    these_false: float
    wrong: float
    found: float
    covered: float
    these_covered: float
    mde: float
    level: float = math.nan


NOTHING = Rates(*[math.nan] * 7)
"""Counts if nothing is planted."""


@dataclass(frozen=True)
class Stopping:
    """Counts of one situation with early stopping and one planted effect, as shares of the draws.

    Attributes:
        false: As in `Rates`.
        wrong: As in `Rates`.
        found: As in `Rates`.
        covered: As in `Rates`.
        excluded: The sweep stops for futility, gains over delta being excluded, though one arm's gain is delta or more.
        dropped: The arm with the planted effect gets no further seeds.
        saved: Cells that were not trained.
    """

    false: float
    wrong: float
    found: float
    covered: float
    excluded: float
    dropped: float
    saved: float


@dataclass(frozen=True)
class Calibration:
    """All counts of one situation.

    Attributes:
        null: Without a true difference.
        planted: With the MDE; None if nothing is detectable.
        null_stopping: Without a true difference and with early stopping, delta being the MDE.
        planted_stopping: With the MDE and early stopping.
    """

    null: Rates
    planted: Rates | None = None
    null_stopping: Stopping | None = None
    planted_stopping: Stopping | None = None


def main() -> None:
    """Simulate every situation and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--draws",
        type=int,
        default=400,
        help="of plain sweeps and evaluations without an effect; of all else a quarter",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a Markdown file; otherwise stdout")
    options = parser.parse_args()
    situations = [*plain_sweeps(), *other_sweeps(), *evaluations()]
    table = list(itertools.product(STOPPING_SEEDS, STOPPING_GAINS.values()))
    quarter = options.draws // 4
    with multiprocessing.Pool(options.processes) as pool:
        found = pool.imap(partial(calibrate, draws=options.draws, seed=options.seed), situations)
        counted = dict(zip(situations, _counted(found, len(situations), "situations"), strict=True))
        of_stopping = pool.imap(partial(early_stopping, draws=quarter, seed=options.seed), table)
        stopping = dict(zip(table, _counted(of_stopping, len(table), "rows of early stopping"), strict=True))
    text = "\n".join([*tables(counted, options.draws), "", *stopping_table(stopping)])
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")


def _counted(found: Iterable[Any], total: int, things: str) -> Iterator[Any]:
    """Pass on results and print their number to stderr."""
    for number, result in enumerate(found, 1):
        print(f"{number} of {total} {things}", file=sys.stderr, flush=True)
        yield result


@cache
def plan(seeds: int) -> tuple[Cell, ...]:
    """The cells of a sweep."""
    sets = (f"sweep.alphas={[*ALPHAS]}", f"sweep.seeds={seeds}")
    layers = [*read_recipe_layers("quickstart"), *map(parse_assignment, sets)]
    return tuple(plan_cells(resolve_recipe(layers), layers))


def contents(situation: Situation, drawn: Drawn) -> dict[str, dict[str, Any]]:
    """Each cell's values, by its key, as in its `evaluation/cell.json`."""
    cells = plan(situation.seeds)
    weights = None if drawn.weights is None else drawn.weights.tolist()
    found = {}
    for cell in cells:
        seed = cell.seed - cells[0].seed
        values = drawn.baseline[seed]
        if cell.arm.alpha:
            arm = ALPHAS.index(cell.arm.alpha)
            values = drawn.arms[arm, seed]
            if drawn.lengths is not None:
                values = length_controlled_scores(values, drawn.lengths[arm, seed])
        metric = {"direction": situation.direction(), "values": values, "weights": weights}
        content: dict[str, Any] = {"metrics": {METRICS[situation.metric]: metric}}
        if drawn.prompts is not None:
            content["prompts"] = [f"prompt {prompt}" for prompt in drawn.prompts]
        found[cell.key] = content
    return found


def judge(situation: Situation, drawn: Drawn) -> Verdict:
    """Judge a sweep without early stopping."""
    results = SweepResults(plan(situation.seeds), contents(situation, drawn))
    return judge_sweep(results, [METRICS[situation.metric]], resamples=RESAMPLES, figures=False)


def judge_stopping(situation: Situation, drawn: Drawn, delta: float) -> tuple[Verdict, Decision, float]:
    """Judge a sweep that is looked at after each seed from the third on.

    A look uses the seeds up to it only, so all looks are taken at once; then the cells that they save are removed. The
    verdict needs delta for its sentences only, which are not read here.

    Returns:
        The verdict, what the looks decided, and the share of cells that were not trained.
    """
    metric, cells, content = METRICS[situation.metric], plan(situation.seeds), contents(situation, drawn)
    decision = decide(SweepResults(cells, content), metric, delta, done=situation.seeds, resamples=RESAMPLES)
    ends = {dropped.arm: dropped.seeds for dropped in decision.dropped}
    every = [stopped.seeds for stopped in decision.stopped]  # one baseline, so one group
    trained = {
        cell.key: content[cell.key]
        for cell in cells
        if cell.seed - cells[0].seed < min([ends.get(cell.arm, situation.seeds), *every])
    }
    found = judge_sweep(
        SweepResults(cells, trained),
        [metric],
        list(ends),
        stopped=decision.stopped,
        resamples=RESAMPLES,
        figures=False,
    )
    return found, decision, 1 - len(trained) / len(cells)


def comparisons(found: Verdict) -> list[Comparison]:
    """Each noised arm's comparison; all arms have enough seeds and rows."""
    return [comparison for row in found.arms for comparison in row.comparisons]


def is_false(found: Verdict, effect: float) -> bool:
    """Return whether an arm without a true difference is called better or worse; with an effect, one of the others."""
    words = [comparison.verdict for comparison in comparisons(found)]
    return bool({"better", "worse"} & set(words[1:] if effect else words))


def is_wrong(found: Verdict, effect: float) -> bool:
    """Return whether an arm without a true gain is recommended."""
    arm = found.recommended
    return arm is not None and bool(arm.alpha) and not (effect and arm == GAINING)


def hold_the_truth(situation: Situation, compared: Sequence[Comparison], effect: float) -> list[bool]:
    """Return of each noised arm whether its interval holds the true difference."""
    first = -effect if situation.direction() == "lower" else effect
    truths = [first, *[0.0] * (len(compared) - 1)]
    return [_holds(comparison, truth) for comparison, truth in zip(compared, truths, strict=True)]


def count_sweeps(situation: Situation, effect: float, draws: int, seed: int) -> Rates:
    """Count the verdicts of sweeps without early stopping."""
    paired.LEVEL_RESAMPLES = 20
    is_over_seeds, good = situation.is_over_seeds(), situation.direction()
    false = wrong = these_false = found = 0
    covered: list[bool] = []
    these_covered: list[bool] = []
    effects: list[float] = []
    for drawn in draws_of(situation, effect, draws, seed):
        verdict_of = judge(situation, drawn)
        compared = comparisons(verdict_of)
        these = [comparison.these_seeds or comparison for comparison in compared]
        false += is_false(verdict_of, effect)
        wrong += is_wrong(verdict_of, effect)
        others = these[1:] if effect else these
        these_false += bool({"lower", "higher"} & {claim.verdict for claim in others})
        found += compared[0].verdict == ("better" if is_over_seeds else good)
        covered += hold_the_truth(situation, compared, effect)
        these_covered += [_holds(claim, truth) for claim, truth in zip(these, drawn.truth, strict=True)]
        effects.append(math.inf if compared[0].detectable is None else compared[0].detectable)
    return Rates(
        false=false / draws if is_over_seeds else math.nan,
        these_false=math.nan if situation.seed_sd else these_false / draws,
        wrong=wrong / draws if is_over_seeds else math.nan,
        found=found / draws,
        covered=float(np.mean(covered)) if is_over_seeds else math.nan,
        these_covered=float(np.mean(these_covered)),
        mde=float(np.median(effects)),
    )


def count_stopping(situation: Situation, effect: float, delta: float, draws: int, seed: int) -> Stopping:
    """Count the verdicts of sweeps with early stopping."""
    paired.LEVEL_RESAMPLES = 20
    false = wrong = found = excluded = lost = 0
    saved = 0.0
    covered: list[bool] = []
    for drawn in draws_of(situation, effect, draws, seed):
        verdict_of, decision, share = judge_stopping(situation, drawn, delta)
        dropped = [each.arm for each in decision.dropped]
        false += is_false(verdict_of, effect)
        wrong += is_wrong(verdict_of, effect)
        found += comparisons(verdict_of)[0].verdict == "better"
        futile = any(stopped.reason == "futility" for stopped in decision.stopped)
        excluded += futile and effect >= delta
        lost += GAINING in dropped
        saved += share
        covered += hold_the_truth(situation, comparisons(verdict_of), effect)
    return Stopping(
        false=false / draws,
        wrong=wrong / draws,
        found=found / draws,
        covered=float(np.mean(covered)),
        excluded=excluded / draws,
        dropped=lost / draws,
        saved=saved / draws,
    )


def count_evaluations(situation: Situation, effect: float, draws: int, seed: int) -> Rates:
    """Count the verdicts on two runs."""
    paired.LEVEL_RESAMPLES = 500  # a median over the draws is reported
    false = hits = 0
    covered: list[bool] = []
    effects: list[float] = []
    levels: list[float] = []
    for number, drawn in enumerate(draws_of(situation, effect, draws, seed)):
        first, second = drawn.baseline[0], drawn.arms[0, 0]
        found: PairedDifference | None = None
        if situation.metric == "win rate":
            found = estimate_win_rate(
                second, None if drawn.lengths is None else drawn.lengths[0, 0], prompts=drawn.prompts
            )
        if found is None:
            found = paired_difference(
                first, second, drawn.weights, prompts=drawn.prompts, seed=number, resamples=RESAMPLES
            )
        word = name_verdict(found.p, found.value, situation.direction())
        false += word in ("better", "worse")
        hits += word == "better"
        covered.append(_holds(found, float(drawn.truth[0])))
        effects.append(math.inf if found.detectable is None else found.detectable)
        if found.true_level is not None:
            levels.append(found.true_level)
    return Rates(
        false=math.nan,
        these_false=false / draws,
        wrong=math.nan,
        found=hits / draws,
        covered=math.nan,
        these_covered=float(np.mean(covered)),
        mde=float(np.median(effects)),
        level=float(np.median(levels)) if levels else math.nan,
    )


def _holds(claim: Comparison | Significance | PairedDifference, truth: float) -> bool:
    """Return whether an interval holds the truth; without an end it does on that side."""
    return (claim.low is None or claim.low <= truth) and (claim.high is None or truth <= claim.high)


def calibrate(situation: Situation, draws: int, seed: int) -> Calibration:
    """Simulate one situation: without an effect, then with the median detectable one in the first arm.

    Error rates of 5 % take most draws, so plain sweeps and evaluations without an effect get all, and all else a
    quarter.
    """
    count = count_sweeps if situation.seeds else count_evaluations
    quarter = draws // 4
    is_plain = not situation.seeds or situation.name == PLAIN
    null = count(situation, 0.0, draws if is_plain else quarter, seed)
    testable = situation.is_over_seeds() or not situation.seed_sd
    if not testable or null.mde >= (math.inf if situation.metric == "loss" else 0.49):
        return Calibration(null)
    planted = count(situation, null.mde, quarter, seed)
    if not situation.stops_early():
        return Calibration(null, planted)
    null_stopping, planted_stopping = (
        count_stopping(situation, effect, null.mde, quarter, seed) for effect in (0.0, null.mde)
    )
    return Calibration(null, planted, null_stopping, planted_stopping)


def early_stopping(setting: tuple[int, float], draws: int, seed: int) -> tuple[Rates, Stopping]:
    """Simulate sweeps of some seeds with a gain of one arm, without and with early stopping, at a fixed delta."""
    seeds, gain = setting
    situation = Situation(seeds, 108, 0.0025)
    without = count_sweeps(situation, gain, draws, seed)
    return without, count_stopping(situation, gain, STOPPING_DELTA, draws, seed)


def tables(counted: dict[Situation, Calibration], draws: int) -> Iterable[str]:
    """The Markdown tables: plain sweeps, these with early stopping, all sweeps by kind, other sweeps, evaluations."""
    quarter = draws // 4
    yield (
        f"{draws} draws of each plain sweep and evaluation without an effect (standard error of 5 %: "
        f"{_error(draws)} points), {quarter} of all else ({_error(quarter)}; of 80 %: {_error(quarter, 0.8)})."
    )
    yield ""
    yield from _plain_table("sweeps: seeds, seed sd", SEEDS, counted, _short)
    yield ""
    stopping = [seeds for seeds in SEEDS if seeds >= FEWEST_SEEDS]
    yield from _plain_table("with early stopping: seeds, seed sd", stopping, counted, _short_stopping)
    yield ""
    yield "| sweeps | entries | false | false, with a gain | wrong | wrong, with a gain | covered | power |"
    yield "|---|" + "---:|" * 7
    sweeps = {situation: found for situation, found in counted.items() if situation.is_over_seeds()}
    for name in dict.fromkeys(situation.name for situation in sweeps):
        yield from _summary(name, [found for situation, found in sweeps.items() if situation.name == name])
    yield ""
    yield (
        "| other sweeps | seeds | rows | seed sd | false | wrong | false, these seeds | covered | covered, these seeds "
        "| MDE | power | false, with a gain | wrong, with a gain |"
    )
    yield "|---|" + "---:|" * 12
    for situation, found in counted.items():
        if situation.seeds and situation.name != PLAIN:
            null, planted = found.null, found.planted or NOTHING
            shares = (null.false, null.wrong, null.these_false, null.covered, null.these_covered)
            yield (
                f"| {situation.name} | {situation.seeds} | {situation.rows} | {situation.seed_sd:g} "
                f"| {' | '.join(map(_percent, shares))} | {_effect(null.mde)} | {_percent(planted.found)} "
                f"| {_percent(planted.false)} | {_percent(planted.wrong)} |"
            )
    yield ""
    yield "| evaluations of two runs | rows | false | level reported | covered | MDE | power |"
    yield "|---|" + "---:|" * 6
    for situation, found in counted.items():
        if not situation.seeds:
            null, planted = found.null, found.planted or NOTHING
            figures = " | ".join(map(_percent, (null.these_false, null.level, null.these_covered)))
            shown = f"{_effect(null.mde)} | {_percent(planted.found)}"
            yield f"| {situation.name} | {situation.rows} | {figures} | {shown} |"


def _plain_table(
    title: str,
    seeds: Sequence[int],
    counted: dict[Situation, Calibration],
    text: Callable[[Calibration], str],
) -> Iterable[str]:
    """A table of plain sweeps: a row for each number of seeds and spread, a column for each number of rows."""
    yield f"| {title} | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |"
    yield "|---|" + "---|" * len(ROWS)
    for number, sd in itertools.product(seeds, SEED_SDS):
        shown = (text(counted[Situation(number, rows, sd)]) for rows in ROWS)
        yield f"| {number}, {sd:g} | " + " | ".join(shown) + " |"


def _short(found: Calibration) -> str:
    """False / recommended wrongly / covered / power: of new seeds, with one seed of this seed."""
    null, planted = found.null, found.planted or NOTHING
    if math.isnan(null.covered):
        shares = (null.these_false, math.nan, null.these_covered, planted.found)
    else:
        shares = (null.false, null.wrong, null.covered, planted.found)
    return f"{' / '.join(map(_percent, shares))} at {_effect(null.mde)}"


def _short_stopping(found: Calibration) -> str:
    """False / wrong / covered / power / delta excluded wrongly / cells saved without an effect / with one."""
    null, planted = found.null_stopping, found.planted_stopping
    if null is None or planted is None:
        return "-"
    shares = (null.false, null.wrong, null.covered, planted.found, planted.excluded, null.saved, planted.saved)
    return " / ".join(map(_percent, shares))


def _summary(name: str, found: Sequence[Calibration]) -> Iterable[str]:
    """The means and the worst cells of one kind of sweep, without and with early stopping."""
    nulls = [each.null for each in found]
    planted = [each.planted for each in found if each.planted]
    yield _summary_row(name, nulls, planted)
    stopping = [each.null_stopping for each in found if each.null_stopping]
    if stopping:
        planted_stopping = [each.planted_stopping for each in found if each.planted_stopping]
        yield _summary_row(f"{name}, early stopping", stopping, planted_stopping)


def _summary_row(
    name: str, nulls: Sequence[Rates] | Sequence[Stopping], planted: Sequence[Rates] | Sequence[Stopping]
) -> str:
    """Means, and in parentheses the largest share; of what is covered the least."""
    columns = [
        [each.false for each in nulls],
        [each.false for each in planted],
        [each.wrong for each in nulls],
        [each.wrong for each in planted],
    ]
    shown = [f"{_percent(float(np.mean(column)))} ({_percent(max(column))})" for column in columns]
    covered = [each.covered for each in nulls]
    shown.append(f"{_percent(float(np.mean(covered)))} ({_percent(min(covered))})")
    power = [each.found for each in planted]
    shown.append(f"{_percent(float(np.mean(power)))} ({_percent(min(power))} to {_percent(max(power))})")
    return f"| {name} | {len(nulls)} | {' | '.join(shown)} |"


def stopping_table(counted: dict[tuple[int, float], tuple[Rates, Stopping]]) -> Iterable[str]:
    """The Markdown table of early stopping at a fixed delta."""
    yield (
        f"| delta {STOPPING_DELTA:g}, seed sd 0.0025 | "
        + " | ".join(f"{seeds} seeds" for seeds in STOPPING_SEEDS)
        + " |"
    )
    yield "|---|" + "---|" * len(STOPPING_SEEDS)
    for name, gain in STOPPING_GAINS.items():
        cells = [counted[seeds, gain] for seeds in STOPPING_SEEDS]
        yield f"| {name}: cells saved | " + " | ".join(_percent(early.saved) for _, early in cells) + " |"
        if gain:
            found = (f"{_percent(early.found)} ({_percent(fixed.found)})" for fixed, early in cells)
            yield f"| {name}: found (without early stopping) | " + " | ".join(found) + " |"
            excluded = (f"{_percent(early.excluded)} / {_percent(early.dropped)}" for _, early in cells)
            yield f"| {name}: excluded / dropped | " + " | ".join(excluded) + " |"
        false = (f"{_percent(early.false)} ({_percent(fixed.false)})" for fixed, early in cells)
        yield f"| {name}: false better or worse | " + " | ".join(false) + " |"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _error(draws: int, share: float = 0.05) -> str:
    """The standard error of a share, in points."""
    return f"{100 * math.sqrt(share * (1 - share) / draws):.1f}"


def _effect(mde: float) -> str:
    return "none" if math.isinf(mde) else f"{mde:.4f}"


if __name__ == "__main__":
    main()
