"""Sweeps and evaluations to simulate, and the random numbers of each.

An arm's difference from alpha 0 is

    difference[arm, seed, row] = effect[arm] + seed[arm, seed] + prompt[arm, row] + residual[arm, seed, row]

with standard deviations in nats: the seed's is the situation's; prompt 0.003 and residual 0.009, or 0.009 and 0.003 if
the prompts are skewed or grouped. Two arms' differences are correlated by 0.5, since both are from one baseline.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from neftcli.metrics.registry import Direction
from neftcli.statistics.paired import MIN_PROMPTS
from neftcli.sweep.early_stopping import FEWEST_SEEDS

Floats = NDArray[np.float64]

ALPHAS = (5.0, 10.0, 15.0)
PLAIN = "normal"
SEEDS = (1, 2, 3, 6, 8)
ROWS = (24, 108, 400)
SEED_SDS = (0.0, 0.001, 0.0025, 0.005)
TIE = 0.385  # of a standard normal preference, 30 % are nearer to 0
PREFERENCE = math.sqrt(0.5)  # of a win rate: its part that the prompt fixes, the rest being chance
DIFFICULTY = math.sqrt(0.7)  # of exact match: its part that the prompt fixes for all arms
LONGER = 0.3  # standard deviations by which a noised arm's answers are longer
LIKING = 0.6  # a judge's liking of an answer that is much longer, in standard deviations of the preference


@dataclass(frozen=True)
class Situation:
    """Sweeps or evaluations of one kind.

    Attributes:
        seeds: Seeds of each arm; 0 for an evaluation of two runs.
        rows: Held-out rows.
        seed_sd: Standard deviation of an arm's difference between seeds, in the metric's unit.
        name: Its difference from the plain situation, in words.
        correlation: Correlation of two arms' differences between seeds.
        uneven: The last arm's standard deviation between seeds, over the others'.
        prompt_sd: Standard deviation of a difference between prompts.
        residual_sd: Standard deviation of the rest.
        shape: Distribution of the prompts' part: normal, t3, exponential or lognormal.
        group: Rows that share a prompt, with an intraclass correlation of 0.7.
        metric: Kind of metric: loss, exact match or win rate. The random numbers depend on this text.
        weighted: The rows have 5 to 199 tokens, which are the weights.
        lengths: A noised arm's answers are longer and the judge likes that; the win rate is that at equal lengths.
    """

    seeds: int
    rows: int
    seed_sd: float = 0.0
    name: str = PLAIN
    correlation: float = 0.5
    uneven: float = 1.0
    prompt_sd: float = 0.003
    residual_sd: float = 0.009
    shape: str = "normal"
    group: int = 1
    metric: str = "loss"
    weighted: bool = False
    lengths: bool = False

    def arms(self) -> int:
        """Number of arms that are compared with the baseline."""
        return len(ALPHAS) if self.seeds else 1

    def direction(self) -> Direction:
        """The direction that is good."""
        return "lower" if self.metric == "loss" else "higher"

    def is_over_seeds(self) -> bool:
        """Return whether claims about new seeds are made."""
        return self.seeds > 1

    def stops_early(self) -> bool:
        """Return whether early stopping is simulated: by default from six seeds on; of plain rows only, for speed."""
        return self.seeds >= FEWEST_SEEDS and self.shape == "normal" and self.metric != "exact match"

    def key(self) -> int:
        """A number of its own, for the random numbers."""
        return zlib.crc32(repr(self).encode())


@dataclass(frozen=True)
class Drawn:
    """A simulated sweep or evaluation.

    Attributes:
        baseline: (seeds, rows).
        arms: (arms, seeds, rows).
        weights: (rows,), or None.
        prompts: (rows,), or None.
        truth: (arms,), each arm's true difference over new prompts, for the seeds drawn.
        lengths: (arms, seeds, rows), length of an answer less the baseline's; None if the judge does not look at it.
    """

    baseline: Floats
    arms: Floats
    weights: Floats | None
    prompts: list[int] | None
    truth: Floats
    lengths: Floats | None = None


def plain_sweeps() -> list[Situation]:
    """Sweeps of every number of seeds and rows and every spread between seeds."""
    return [Situation(seeds, rows, sd) for seeds, sd, rows in itertools.product(SEEDS, SEED_SDS, ROWS)]


def other_sweeps() -> list[Situation]:
    """Sweeps that break an assumption, or have other metrics."""
    found = [
        Situation(seeds, rows, 0.0025, name, correlation=correlation, uneven=uneven)
        for name, correlation, uneven in (
            ("seeds correlated by 0.9 between arms", 0.9, 1.0),
            ("one arm's seeds vary 3 x as much", 0.5, 3.0),
        )
        for seeds, rows in itertools.product((2, 3, 6, 8), (108, 400))
    ]
    found += [
        Situation(seeds, rows, 0.0025, "weighted by tokens", weighted=True)
        for seeds, rows in itertools.product((3, 8), ROWS)
    ]
    found += [
        Situation(seeds, rows, sd, f"{shape} prompts", shape=shape, prompt_sd=0.009, residual_sd=0.003)
        for shape in ("exponential", "lognormal")
        for seeds, rows, sd in itertools.product((1, 3, 8), ROWS, (0.0, 0.0025))
        if seeds > 1 or not sd
    ]
    found += [
        Situation(seeds, rows, sd, "exact match", metric="exact match")
        for (seeds, sd), rows in itertools.product(((1, 0.0), (3, 0.0), (3, 0.02), (8, 0.02)), ROWS)
    ]
    found += [
        Situation(seeds, rows, sd, "win rate, judge likes length", metric="win rate", lengths=True)
        for seeds, rows, sd in (
            (1, 108, 0.0),
            *itertools.product((3,), ROWS, (0.02,)),
            (3, 108, 0.0),
            (8, 108, 0.02),
        )
    ]
    found += [
        Situation(seeds, rows, sd, f"{group} rows per prompt", group=group, prompt_sd=0.009, residual_sd=0.003)
        for group in (3, 5)
        for (seeds, sd), rows in itertools.product(((1, 0.0), (3, 0.0025)), (108, 400))
    ]
    return found


def evaluations() -> list[Situation]:
    """Evaluations of two runs."""
    kinds: list[Callable[..., Situation]] = [
        partial(Situation, 0),
        partial(Situation, 0, name="normal, weighted by tokens", weighted=True),
        partial(Situation, 0, name="t, 3 degrees of freedom", shape="t3", residual_sd=0.0),
        partial(Situation, 0, name="exponential", shape="exponential", residual_sd=0.0),
        partial(Situation, 0, name="lognormal", shape="lognormal", residual_sd=0.0),
        partial(Situation, 0, name="exact match", metric="exact match"),
        partial(Situation, 0, name="win rate, 30 % ties", metric="win rate"),
        partial(Situation, 0, name="win rate, judge likes length", metric="win rate", lengths=True),
        partial(Situation, 0, name="3 rows per prompt", group=3, residual_sd=0.0),
        partial(Situation, 0, name="5 rows per prompt", group=5, residual_sd=0.0),
    ]
    return [kind(rows) for kind in kinds for rows in ROWS if rows // kind(rows).group >= MIN_PROMPTS]


def draw(situation: Situation, generator: np.random.Generator, effect: float = 0.0) -> Drawn:
    """Simulate one sweep or evaluation.

    Args:
        situation: Its kind.
        generator: Of all random numbers.
        effect: True difference of the first arm, in the metric's unit and the good direction; 0 of the others.
    """
    count, seeds, rows = situation.arms(), max(1, situation.seeds), situation.rows
    scale = np.ones((count, 1, 1))
    scale[-1] = situation.uneven
    own = np.sqrt(scale**2 - situation.correlation)
    of_seeds = math.sqrt(situation.correlation) * generator.normal(size=(1, seeds, 1))
    of_seeds = of_seeds + own * generator.normal(size=(count, seeds, 1))  # (arms, seeds, 1), variance 1
    prompts = None if situation.group == 1 else [row // situation.group for row in range(rows)]
    if situation.metric != "loss":
        return _scores(situation, generator, effect, of_seeds)
    of_prompts = _of_prompts(situation, generator, count)
    residual = math.sqrt(0.5) * generator.normal(size=(count + 1, seeds, rows))
    differences = (
        situation.seed_sd * of_seeds
        + situation.prompt_sd * of_prompts
        + situation.residual_sd * (residual[1:] - residual[0])
    )
    truth = situation.seed_sd * of_seeds.mean((1, 2))
    differences[0] -= effect
    truth[0] -= effect
    weights = generator.integers(5, 200, rows).astype(float) if situation.weighted else None
    tokens = 1.0 if weights is None else weights
    baseline = np.full((seeds, rows), 2.0) * tokens
    return Drawn(baseline, baseline + differences * tokens, weights, prompts, truth)


def _of_prompts(situation: Situation, generator: np.random.Generator, count: int) -> Floats:
    """The prompts' part of each arm's difference: (arms, 1, rows), mean 0 and variance 1.

    Normal parts are shared by half, like all that comes from one baseline; others are each arm's own, since the
    difference of two equally skewed numbers is not skewed.
    """
    if situation.shape == "normal":
        shared, *own = (_noise(situation, generator) for _ in range(count + 1))
        return math.sqrt(0.5) * np.array([each - shared for each in own])[:, None]
    return np.array([_noise(situation, generator) for _ in range(count)])[:, None]


def _noise(situation: Situation, generator: np.random.Generator) -> Floats:
    """(rows,), mean 0 and variance 1, of the situation's shape and prompt groups."""
    if situation.group > 1:
        of_groups = generator.normal(size=-(-situation.rows // situation.group)).repeat(situation.group)[
            : situation.rows
        ]
        return math.sqrt(0.7) * of_groups + math.sqrt(0.3) * generator.normal(size=situation.rows)
    if situation.shape == "t3":
        return generator.standard_t(3, situation.rows) / math.sqrt(3)
    if situation.shape == "exponential":
        return generator.exponential(size=situation.rows) - 1
    if situation.shape == "lognormal":
        return (generator.lognormal(size=situation.rows) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))
    return generator.normal(size=situation.rows)


def _scores(situation: Situation, generator: np.random.Generator, effect: float, of_seeds: Floats) -> Drawn:
    """Right or wrong, or won, tied and lost: a latent normal number of variance 1, cut.

    An answer is right if the number is above 0; all arms share the prompts' difficulty. It wins if the number is above
    `TIE` and loses if it is below -`TIE`.
    """
    count, seeds, _ = of_seeds.shape
    ties = TIE if situation.metric == "win rate" else 0.0

    def expected(mean: Floats | float, variance: float) -> Floats:
        scale = math.sqrt(variance)
        return np.asarray((ndtr((mean - ties) / scale) + ndtr((mean + ties) / scale)) / 2)

    seed_sd = situation.seed_sd / float(norm.pdf(ties))  # of the latent number
    mean = 0.0
    if effect:
        mean = float(brentq(lambda mean: float(expected(mean, 1 + seed_sd**2)) - 0.5 - effect, -9, 9))
    latent = seed_sd * of_seeds
    latent[0] += mean
    truth = (expected(latent, 1.0) - 0.5).mean((1, 2))
    if situation.metric == "win rate":
        lengths = None
        if situation.lengths:
            lengths = generator.normal(LONGER, size=(count, seeds, situation.rows))
            latent = latent + LIKING * np.tanh(lengths)
        fixed = generator.normal(size=(count, 1, situation.rows))
        chance = generator.normal(size=(count, seeds, situation.rows))
        numbers = latent + PREFERENCE * fixed + math.sqrt(1 - PREFERENCE**2) * chance
        scores = 0.5 + ((numbers > ties).astype(float) - (numbers < -ties).astype(float)) / 2
        return Drawn(np.full((seeds, situation.rows), 0.5), scores, None, None, truth, lengths)
    difficulty = generator.normal(size=situation.rows)
    chance = generator.normal(size=(count + 1, seeds, situation.rows))
    numbers = DIFFICULTY * difficulty + math.sqrt(1 - DIFFICULTY**2) * chance
    scores = (numbers + np.concatenate([np.zeros((1, seeds, 1)), latent]) > 0).astype(float)
    return Drawn(scores[0], scores[1:], None, None, truth)


def draws_of(situation: Situation, effect: float, draws: int, seed: int) -> Iterator[Drawn]:
    """Simulate many of a kind; sweeps with an effect are others than those without."""
    for number in range(draws):
        generator = np.random.default_rng((seed, situation.key(), number, int(effect > 0)))
        yield draw(situation, generator, effect)
