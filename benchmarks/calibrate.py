"""How often the verdicts are wrong, and how often they find what they say they can, by simulation.

    python benchmarks/calibrate.py --draws 300 --output calibration.md

Draws sweeps (three noised arms and alpha 0) and evaluations (two runs) with no true difference and with a planted one,
through the functions that the commands use. An arm's difference from alpha 0 is

    difference[arm, seed, row] = effect[arm] + seed[arm, seed] + prompt[arm, row] + residual[arm, seed, row]

with standard deviations in nats: the seed's is the cell's; prompt 0.003 and residual 0.009, or 0.009 and 0.003 if the
prompts are skewed or grouped. Two arms' differences are correlated by 0.5, since both are from one baseline. The
planted effect is the median minimum detectable effect (MDE) of the draws without one.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from neftcli.statistics import paired
from neftcli.statistics.crossed import ArmDifference, Claim, compare_arms
from neftcli.statistics.multiple import Better, adjust, verdict
from neftcli.statistics.paired import PairedDifference, paired_difference
from neftcli.statistics.win_rates import win_rate

Floats = NDArray[np.float64]

ARMS = 3
RESAMPLES = 999  # 0.05 (999 + 1) is whole, so the level is kept
SEEDS = (1, 2, 3, 6, 8)
ROWS = (24, 108, 400)
SEED_SDS = (0.0, 0.001, 0.0025, 0.005)
TIE = 0.385  # of a standard normal preference, 30 % are nearer to 0
PREFERENCE = math.sqrt(0.5)  # of a win rate: its part that the prompt fixes, the rest being chance
DIFFICULTY = math.sqrt(0.7)  # of exact match: its part that the prompt fixes for all arms


@dataclass(frozen=True)
class Cell:
    """One situation to simulate.

    Attributes:
        seeds: Seeds of each arm; 0 for an evaluation of two runs.
        rows: Held-out rows.
        seed_sd: Standard deviation of an arm's difference between seeds, in the metric's unit.
        what: What is unlike the plain situation, in words.
        correlation: Correlation of two arms' differences between seeds.
        uneven: The last arm's standard deviation between seeds, over the others'.
        prompt_sd: Standard deviation of a difference between prompts.
        residual_sd: Standard deviation of the rest.
        shape: Distribution of the prompts' part: normal, t3, exponential or lognormal.
        group: Rows that share a prompt, with an intraclass correlation of 0.7.
        metric: loss, exact match or win rate.
        weighted: The rows have 5 to 199 tokens, which are the weights.
    """

    seeds: int
    rows: int
    seed_sd: float = 0.0
    what: str = "normal"
    correlation: float = 0.5
    uneven: float = 1.0
    prompt_sd: float = 0.003
    residual_sd: float = 0.009
    shape: str = "normal"
    group: int = 1
    metric: str = "loss"
    weighted: bool = False

    def arms(self) -> int:
        """Arms that are compared with the baseline."""
        return ARMS if self.seeds else 1

    def better(self) -> Better:
        """The direction that is good."""
        return "lower" if self.metric == "loss" else "higher"


@dataclass(frozen=True)
class Drawn:
    """A simulated sweep or evaluation.

    Attributes:
        baseline: (seeds, rows).
        arms: (arms, seeds, rows).
        weights: (rows,), or None.
        prompts: (rows,), or None.
        truth: (arms,), each arm's true difference over new prompts, for the seeds drawn.
    """

    baseline: Floats
    arms: Floats
    weights: Floats | None
    prompts: list[int] | None
    truth: Floats


@dataclass(frozen=True)
class Rates:
    """What was counted in one cell, as shares of the draws; NaN where it does not apply.

    Attributes:
        false: Better or worse is said of any arm over new seeds, without a true difference.
        wrong: An arm that is not better is better than alpha 0 in words, and so recommended; without a true difference.
        these_false: Lower or higher is said of any arm for these seeds, without a true difference for them.
        covered: The interval over new seeds holds the truth, over all arms.
        these_covered: The interval for these seeds holds the truth for these seeds.
        mde: Median minimum detectable effect.
        power: An effect of that size is found.
        beside: Better or worse is said of an arm without a true difference, beside one with that effect.
        level: Median of the true level that is reported.
    """

    false: float
    wrong: float
    these_false: float
    covered: float
    these_covered: float
    mde: float
    power: float
    beside: float
    level: float


def main() -> None:
    """Simulate every cell and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300, help="of each cell, without an effect and again with one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a Markdown file; otherwise stdout")
    options = parser.parse_args()
    cells = [*grid(), *sweeps_unlike(), *evaluations()]
    counted: dict[Cell, Rates] = {}
    with multiprocessing.Pool(options.processes) as pool:
        simulate = partial(rates, draws=options.draws, seed=options.seed)
        for number, (cell, result) in enumerate(zip(cells, pool.imap(simulate, cells), strict=True), 1):
            counted[cell] = result
            print(f"{number} of {len(cells)} cells", file=sys.stderr)
    text = "\n".join(tables(counted, options.draws))
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n", encoding="utf-8")


def grid() -> list[Cell]:
    """The plain sweeps: every number of seeds and rows and every spread between seeds."""
    return [Cell(seeds, rows, sd) for seeds, sd, rows in itertools.product(SEEDS, SEED_SDS, ROWS)]


def sweeps_unlike() -> list[Cell]:
    """Sweeps that break an assumption, or have other metrics."""
    cells = [
        Cell(seeds, rows, 0.0025, what, correlation=correlation, uneven=uneven)
        for what, correlation, uneven in (
            ("seeds correlated by 0.9 over arms", 0.9, 1.0),
            ("one arm's seeds vary 3 x as much", 0.5, 3.0),
        )
        for seeds, rows in itertools.product((2, 3, 6, 8), (24, 108, 400))
    ]
    cells += [
        Cell(seeds, rows, sd, f"{shape} prompts", shape=shape, prompt_sd=0.009, residual_sd=0.003)
        for shape in ("exponential", "lognormal")
        for seeds, rows, sd in itertools.product((1, 3, 8), ROWS, (0.0, 0.0025))
        if seeds > 1 or not sd
    ]
    cells += [
        Cell(seeds, rows, sd, metric, metric=metric)
        for metric in ("exact match", "win rate")
        for seeds, rows, sd in itertools.product((1, 3, 8), ROWS, (0.0, 0.02))
        if seeds > 1 or not sd
    ]
    cells += [
        Cell(seeds, rows, sd, f"{group} rows a prompt", group=group, prompt_sd=0.009, residual_sd=0.003)
        for group in (3, 5)
        for seeds, rows, sd in itertools.product((1, 3), (108, 400), (0.0, 0.0025))
        if seeds > 1 or not sd
    ]
    return cells


def evaluations() -> list[Cell]:
    """Evaluations of two runs."""
    kinds: list[Callable[..., Cell]] = [
        partial(Cell, 0),
        partial(Cell, 0, what="normal, weighted by tokens", weighted=True),
        partial(Cell, 0, what="t, 3 degrees of freedom", shape="t3", residual_sd=0.0),
        partial(Cell, 0, what="exponential", shape="exponential", residual_sd=0.0),
        partial(Cell, 0, what="lognormal", shape="lognormal", residual_sd=0.0),
        partial(Cell, 0, what="exact match", metric="exact match"),
        partial(Cell, 0, what="win rate, 30 % ties", metric="win rate"),
        partial(Cell, 0, what="3 rows a prompt", group=3, residual_sd=0.0),
        partial(Cell, 0, what="5 rows a prompt", group=5, residual_sd=0.0),
    ]
    return [kind(rows) for kind in kinds for rows in ROWS if rows // kind(rows).group >= paired.FEWEST]


def draw(cell: Cell, generator: np.random.Generator, effect: float = 0.0) -> Drawn:
    """Simulate one sweep or evaluation.

    Args:
        cell: The situation.
        generator: Of all random numbers.
        effect: True difference of the first arm, in the metric's unit and the good direction; 0 of the others.
    """
    count, seeds, rows = cell.arms(), max(1, cell.seeds), cell.rows
    scale = np.ones((count, 1, 1))
    scale[-1] = cell.uneven
    own = np.sqrt(scale**2 - cell.correlation)
    of_seeds = math.sqrt(cell.correlation) * generator.normal(size=(1, seeds, 1))
    of_seeds = of_seeds + own * generator.normal(size=(count, seeds, 1))  # (arms, seeds, 1), variance 1
    prompts = None if cell.group == 1 else [row // cell.group for row in range(rows)]
    if cell.metric != "loss":
        return _scores(cell, generator, effect, of_seeds)
    of_prompts = _of_prompts(cell, generator, count)
    residual = math.sqrt(0.5) * generator.normal(size=(count + 1, seeds, rows))
    differences = (
        cell.seed_sd * of_seeds + cell.prompt_sd * of_prompts + cell.residual_sd * (residual[1:] - residual[0])
    )
    truth = cell.seed_sd * of_seeds.mean((1, 2))
    differences[0] -= effect
    truth[0] -= effect
    weights = generator.integers(5, 200, rows).astype(float) if cell.weighted else None
    tokens = 1.0 if weights is None else weights
    baseline = np.full((seeds, rows), 2.0) * tokens
    return Drawn(baseline, baseline + differences * tokens, weights, prompts, truth)


def _of_prompts(cell: Cell, generator: np.random.Generator, count: int) -> Floats:
    """The prompts' part of each arm's difference: (arms, 1, rows), mean 0 and variance 1.

    Normal parts are shared by half, like all that comes from one baseline; others are each arm's own, since the
    difference of two equally skewed numbers is not skewed.
    """
    if cell.shape == "normal":
        shared, *own = (_noise(cell, generator) for _ in range(count + 1))
        return math.sqrt(0.5) * np.array([each - shared for each in own])[:, None]
    return np.array([_noise(cell, generator) for _ in range(count)])[:, None]


def _noise(cell: Cell, generator: np.random.Generator) -> Floats:
    """(rows,), mean 0 and variance 1, of the cell's shape and prompt groups."""
    if cell.group > 1:
        of_groups = generator.normal(size=-(-cell.rows // cell.group)).repeat(cell.group)[: cell.rows]
        return math.sqrt(0.7) * of_groups + math.sqrt(0.3) * generator.normal(size=cell.rows)
    if cell.shape == "t3":
        return generator.standard_t(3, cell.rows) / math.sqrt(3)
    if cell.shape == "exponential":
        return generator.exponential(size=cell.rows) - 1
    if cell.shape == "lognormal":
        return (generator.lognormal(size=cell.rows) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))
    return generator.normal(size=cell.rows)


def _scores(cell: Cell, generator: np.random.Generator, effect: float, of_seeds: Floats) -> Drawn:
    """Right or wrong, or won, tied and lost: a latent normal number of variance 1, cut.

    An answer is right if the number is above 0; all arms share the prompts' difficulty. It wins if the number is above
    `TIE` and loses if it is below -`TIE`.
    """
    count, seeds, _ = of_seeds.shape
    ties = TIE if cell.metric == "win rate" else 0.0

    def expected(mean: Floats | float, variance: float) -> Floats:
        scale = math.sqrt(variance)
        return np.asarray((ndtr((mean - ties) / scale) + ndtr((mean + ties) / scale)) / 2)

    seed_sd = cell.seed_sd / float(norm.pdf(ties))  # of the latent number
    mean = 0.0
    if effect:
        mean = float(brentq(lambda mean: float(expected(mean, 1 + seed_sd**2)) - 0.5 - effect, -9, 9))
    latent = seed_sd * of_seeds
    latent[0] += mean
    truth = (expected(latent, 1.0) - 0.5).mean((1, 2))
    if cell.metric == "win rate":
        fixed = generator.normal(size=(count, 1, cell.rows))
        chance = generator.normal(size=(count, seeds, cell.rows))
        numbers = latent + PREFERENCE * fixed + math.sqrt(1 - PREFERENCE**2) * chance
        scores = 0.5 + ((numbers > ties).astype(float) - (numbers < -ties).astype(float)) / 2
        return Drawn(np.full((seeds, cell.rows), 0.5), scores, None, None, truth)
    difficulty = generator.normal(size=cell.rows)
    chance = generator.normal(size=(count + 1, seeds, cell.rows))
    numbers = DIFFICULTY * difficulty + math.sqrt(1 - DIFFICULTY**2) * chance
    scores = (numbers + np.concatenate([np.zeros((1, seeds, 1)), latent]) > 0).astype(float)
    return Drawn(scores[0], scores[1:], None, None, truth)


def compare(cell: Cell, drawn: Drawn, seed: int) -> list[ArmDifference | PairedDifference]:
    """Compare as the commands do: all arms with the baseline, or two runs."""
    if not cell.seeds:
        first, second = drawn.baseline[0], drawn.arms[0, 0]
        if cell.metric == "win rate" and (found := win_rate(second, prompts=drawn.prompts)) is not None:
            return [found]
        return [paired_difference(first, second, drawn.weights, prompts=drawn.prompts, seed=seed, resamples=RESAMPLES)]
    arms = compare_arms(
        drawn.baseline,
        list(drawn.arms),
        drawn.weights,
        prompts=drawn.prompts,
        comparisons=ARMS,
        seed=seed,
        resamples=RESAMPLES,
    )
    return [*arms]


def words(cell: Cell, found: Sequence[ArmDifference | PairedDifference], *, new_seeds: bool) -> list[str]:
    """The verdict on each arm within a scope, after Holm's correction; empty without a test."""
    claims = [
        each if isinstance(each, PairedDifference) else each.new_seeds if new_seeds else each.these_seeds
        for each in found
    ]
    tested = [place for place, claim in enumerate(claims) if claim is not None and claim.p is not None]
    adjusted = adjust(
        [claims[place].p for place in tested],  # type: ignore[union-attr, misc]
        [claims[place].smallest_p for place in tested],  # type: ignore[union-attr]
    )
    said = [""] * len(found)
    for place, p in zip(tested, adjusted, strict=True):
        said[place] = verdict(p, found[place].value, cell.better())
    return said


def rates(cell: Cell, draws: int, seed: int) -> Rates:
    """Simulate one cell: without an effect, then with the median detectable one in the first arm."""
    # The true level is reported of evaluations only; resampling for it would take half of the time.
    paired.LEVEL_RESAMPLES = 20 if cell.seeds else 2_000
    key = zlib.crc32(repr(cell).encode())
    over_seeds = cell.seeds > 1
    false = wrong = these_false = 0
    covered: list[bool] = []
    these_covered: list[bool] = []
    effects: list[float] = []
    levels: list[float] = []
    for number in range(draws):
        drawn = draw(cell, np.random.default_rng((seed, key, number, 0)))
        found = compare(cell, drawn, number)
        said = words(cell, found, new_seeds=True)
        false += bool({"better", "worse"} & set(said))
        wrong += "better" in said
        these_false += bool({"better", "worse"} & set(words(cell, found, new_seeds=False)))
        for each, truth in zip(found, drawn.truth, strict=True):
            if isinstance(each, PairedDifference):
                these_covered.append(_holds(each, float(truth)))
                continue
            these_covered.append(_holds(each.these_seeds, float(truth)))
            if over_seeds:
                covered.append(_holds(each.new_seeds, 0.0))
        effects.append(math.inf if found[0].detectable is None else found[0].detectable)
        levels.append(0.0 if found[0].true_level is None else found[0].true_level)
    effect = float(np.median(effects))
    power = beside = math.nan
    if (over_seeds or not cell.seed_sd) and effect < (math.inf if cell.metric == "loss" else 0.49):
        hits = others = 0
        for number in range(draws):
            drawn = draw(cell, np.random.default_rng((seed, key, number, 1)), effect)
            first, *rest = words(cell, compare(cell, drawn, number), new_seeds=over_seeds)
            hits += first == "better"
            others += bool({"better", "worse"} & set(rest))
        power, beside = hits / draws, others / draws if cell.seeds else math.nan
    return Rates(
        false=false / draws if over_seeds else math.nan,
        wrong=wrong / draws if over_seeds else math.nan,
        these_false=math.nan if cell.seed_sd else these_false / draws,
        covered=float(np.mean(covered)) if over_seeds else math.nan,
        these_covered=float(np.mean(these_covered)),
        mde=effect,
        power=power,
        beside=beside,
        level=float(np.median(levels)),
    )


def _holds(claim: Claim | PairedDifference | None, truth: float) -> bool:
    """Whether an interval holds the truth; one without an end does on that side."""
    if claim is None:
        return True
    return (claim.low is None or claim.low <= truth) and (claim.high is None or truth <= claim.high)


def tables(counted: dict[Cell, Rates], draws: int) -> Iterable[str]:
    """The Markdown tables: sweeps, sweeps unlike them, evaluations."""
    error = 100 * math.sqrt(0.05 * 0.95 / draws)
    yield f"{draws} draws of each cell; the standard error of 5 % is {error:.1f} points, of 80 % {error * 1.84:.1f}."
    yield ""
    yield "| sweeps: seeds, seed sd | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |"
    yield "|---|" + "---|" * len(ROWS)
    for seeds, sd in itertools.product(SEEDS, SEED_SDS):
        shown = (_short(counted[Cell(seeds, rows, sd)]) for rows in ROWS)
        yield f"| {seeds}, {sd:g} | " + " | ".join(shown) + " |"
    yield ""
    yield (
        "| other sweeps | seeds | rows | seed sd | false | recommended wrongly | false, these seeds | covered | "
        "covered, these seeds | MDE | power | false beside a planted arm |"
    )
    yield "|---|" + "---:|" * 11
    unlike = set(sweeps_unlike())
    for cell, found in counted.items():
        if cell in unlike:
            shares = (found.false, found.wrong, found.these_false, found.covered, found.these_covered)
            yield (
                f"| {cell.what} | {cell.seeds} | {cell.rows} | {cell.seed_sd:g} | {' | '.join(map(_percent, shares))} "
                f"| {_effect(found.mde)} | {_percent(found.power)} | {_percent(found.beside)} |"
            )
    yield ""
    yield "| evaluations of two runs | rows | false | level reported | covered | MDE | power |"
    yield "|---|" + "---:|" * 6
    for cell, found in counted.items():
        if not cell.seeds:
            figures = " | ".join(map(_percent, (found.these_false, found.level, found.these_covered)))
            yield f"| {cell.what} | {cell.rows} | {figures} | {_effect(found.mde)} | {_percent(found.power)} |"


def _short(found: Rates) -> str:
    """A cell of the first table: claims over new seeds, with one seed those about this seed."""
    if math.isnan(found.covered):
        shares = (found.these_false, math.nan, found.these_covered, found.power)
    else:
        shares = (found.false, found.wrong, found.covered, found.power)
    return f"{' / '.join(map(_percent, shares))} at {_effect(found.mde)}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _effect(mde: float) -> str:
    return "none" if math.isinf(mde) else f"{mde:.4f}"


if __name__ == "__main__":
    main()
