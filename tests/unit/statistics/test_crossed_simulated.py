"""Level, power and coverage of the comparison of arms, by simulation.

Oracle: the binomial distribution. Of 250 simulations at most 21 may be false findings if 5 % are allowed, at least 185
must be findings if 80 % are promised, and at least 229 intervals must hold the truth: the one-sided 99 % bounds. Seeds
are fixed. Values are sums of parts that all arms of a sweep share (seeds, prompts, large) and parts of each arm (arm x
seed, arm x prompt, and the rest), so the truth of a claim is known: the arm's mean over the seeds drawn, or over all.
`make calibrate` simulates more situations.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from neftcli.events import ScopeId
from neftcli.statistics import paired
from neftcli.statistics.crossed import (
    ArmDifference,
    Claim,
    VarianceComponents,
    compare_arms,
    estimate_arm,
    margin_of_error,
)
from neftcli.statistics.multiple import holm_adjust, name_verdict
from neftcli.statistics.paired import LEVEL, POWER, paired_difference
from neftcli.statistics.planning import required_sizes
from tests.unit.statistics.draws import QUICK, Floats, difference, draw_arms, tokens_of

SIMULATIONS = 250
FALSE_FINDINGS = int(stats.binom.ppf(0.99, SIMULATIONS, LEVEL))
TRUE_FINDINGS = int(stats.binom.ppf(0.01, SIMULATIONS, POWER))
COVERED = int(stats.binom.ppf(0.01, SIMULATIONS, 1 - LEVEL))
PROMPTS = 40


@pytest.fixture(autouse=True)
def few_resamples_for_the_true_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of the true level, which is not looked at here, would take most of the time."""
    monkeypatch.setattr(paired, "LEVEL_RESAMPLES", 20)


def claim(found: ArmDifference, scope: ScopeId) -> Claim:
    of_scope = found.these_seeds if scope == ScopeId.THESE_SEEDS else found.new_seeds
    assert of_scope is not None
    return of_scope


def claims(found: list[ArmDifference], scope: ScopeId) -> bool:
    """Return True if any arm is called better or worse within a scope, with all corrected together."""
    of_scope = [claim(each, scope) for each in found]
    adjusted = holm_adjust([each.p for each in of_scope], [each.smallest_p for each in of_scope])
    words = {name_verdict(p, each.value, "lower") for p, each in zip(adjusted, found, strict=True)}
    return bool({"better", "worse"} & words)


def holds(of_scope: Claim, truth: float) -> bool:
    assert of_scope.low is not None
    assert of_scope.high is not None
    return of_scope.low <= truth <= of_scope.high


def sweep(values: Floats, weights: Floats | None = None, number: int = 0) -> list[ArmDifference]:
    """All arms against the first."""
    baseline, *others = values
    return compare_arms(baseline, others, weights, comparisons=len(others), seed=number, resamples=QUICK)


def test_the_bounds_are_those_stated() -> None:
    assert (FALSE_FINDINGS, TRUE_FINDINGS, COVERED) == (21, 185, 229)


# Level


@pytest.mark.parametrize("weighted", [False, True])
def test_compare_arms_seldom_claims_what_is_not_so_of_these_seeds(weighted: bool) -> None:
    """Three arms, three seeds, alike for these seeds: any claim in at most 21 of 250 sweeps."""
    claimed = 0
    for number in range(SIMULATIONS):
        weights = tokens_of(PROMPTS) if weighted else None
        values = draw_arms(3, PROMPTS, number, count=4, seed=0.0) * (1.0 if weights is None else weights)
        claimed += claims(sweep(values, weights, number), ScopeId.THESE_SEEDS)
    assert 0 < claimed <= FALSE_FINDINGS


def test_compare_arms_keeps_its_two_scopes_apart() -> None:
    """Arms alike over all seeds, but not over three of them: "these seeds" in nine of ten sweeps, new in at most 21."""
    these = new = 0
    for number in range(SIMULATIONS):
        found = sweep(draw_arms(3, PROMPTS, number, count=4, seed=1.0, prompt=0.3), None, number)
        these += claims(found, ScopeId.THESE_SEEDS)
        new += claims(found, ScopeId.NEW_SEEDS)
    assert these > 0.9 * SIMULATIONS
    assert 0 < new <= FALSE_FINDINGS


MIXES = {
    "seeds": {"seed": 1.0, "prompt": 0.1, "residual": 0.3},
    "prompts": {"seed": 0.0, "prompt": 1.0, "residual": 0.5},
    "rest": {"seed": 0.0, "prompt": 0.0, "residual": 1.0},
}


def balanced(seeds: int) -> dict[str, float]:
    """Seeds and prompts that add the same variance to the mean: the worst for tests that each see one of them."""
    return {"seed": math.sqrt(seeds), "prompt": math.sqrt(PROMPTS), "residual": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "count"), [(2, 4), (7, 2)])
@pytest.mark.parametrize("mix", [*MIXES, "balanced"])
def test_compare_arms_seldom_claims_what_is_not_so_of_new_seeds(seeds: int, count: int, mix: str) -> None:
    """Arms alike over all seeds and prompts, one of them or three with Holm: at most 21 of 250."""
    parts = MIXES.get(mix) or balanced(seeds)
    claimed = sum(
        claims(sweep(draw_arms(seeds, PROMPTS, number, count=count, **parts), None, number), ScopeId.NEW_SEEDS)
        for number in range(SIMULATIONS)
    )
    assert claimed <= FALSE_FINDINGS


def test_compare_arms_needs_the_margin_beside_two_tests() -> None:
    """With ten seeds a test over seeds and one over prompts both reject in some 11 %, with the margin in at most 5."""
    both = all_three = 0
    more = 400
    for number in range(more):
        baseline, arm = draw_arms(10, PROMPTS, number, **balanced(10))
        sweep_command = paired_difference(baseline.mean(1), arm.mean(1), resamples=1_024).p or 0.0
        over_prompts = paired_difference(baseline.mean(0), arm.mean(0), resamples=QUICK).p or 0.0
        both += max(sweep_command, over_prompts) < LEVEL
        all_three += claims(sweep(np.array([baseline, arm]), None, number), ScopeId.NEW_SEEDS)
    assert all_three <= stats.binom.ppf(0.99, more, LEVEL) < both


@pytest.mark.parametrize("tail", [0.025, 0.004])
@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_margin_keeps_its_probability_whatever_the_parts(seeds: int, tail: float) -> None:
    """Of 1,000 analyses of variance, drawn from their chi-squared distributions, for each of eight mixes of parts.

    The probability is 2 tail, both sides taken together; the bound is the 99.9 % one, as there are 48 cases.
    """
    generator = np.random.default_rng(seeds)
    for seed, prompt, residual in itertools.product((0.0, 0.3, 1.0, 4.0), (0.0, 1.0), (0.1,)):
        # Variances of the mean that seeds, prompts and the rest add.
        means = generator.normal(0, math.sqrt(seed + prompt + residual), 1_000)
        expected = (seed + residual, prompt + residual, residual)
        freedoms = (seeds - 1, PROMPTS - 1, (seeds - 1) * (PROMPTS - 1))
        squares = np.stack(
            [
                mean * generator.chisquare(freedom, 1_000) / freedom
                for mean, freedom in zip(expected, freedoms, strict=True)
            ]
        )
        above = 0
        for mean, (of_seeds, of_prompts, rest) in zip(means, squares.T, strict=True):
            parts = VarianceComponents(
                seeds * max(0.0, of_seeds - rest), PROMPTS * max(0.0, of_prompts - rest), seeds * PROMPTS * rest
            )
            above += abs(mean) > margin_of_error(parts, seeds, PROMPTS, tail)
        assert above <= stats.binom.ppf(0.999, 1_000, 2 * tail)


# Coverage


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 6])
@pytest.mark.parametrize("mix", ["seeds", "prompts", "balanced"])
def test_compare_arms_intervals_cover_the_truth(seeds: int, mix: str) -> None:
    """The difference of arms alike over new seeds, and an arm's own figure: each in at least 229 of 250."""
    differences = figures = 0
    for number in range(SIMULATIONS):
        values = draw_arms(seeds, PROMPTS, number, **(MIXES.get(mix) or balanced(seeds)))
        differences += holds(claim(sweep(values, None, number)[0], ScopeId.NEW_SEEDS), 0.0)
        own = estimate_arm(values[1], seed=number, resamples=QUICK)
        figures += (own.low or 0) <= 10 <= (own.high or 0)
    assert differences >= COVERED
    assert figures >= COVERED


def test_compare_arms_interval_for_these_seeds_covers_their_truth() -> None:
    """The seeds' own part, known as it is drawn, is part of the truth: in 229 to 249 of 250."""
    covered = 0
    for number in range(SIMULATIONS):
        own = np.random.default_rng((number, 1)).normal(size=3)
        baseline, arm = draw_arms(3, PROMPTS, number, seed=0.0)
        [found] = sweep(np.array([baseline, arm + own[:, None]]), None, number)
        covered += holds(claim(found, ScopeId.THESE_SEEDS), float(own.mean()))
    assert COVERED <= covered < SIMULATIONS


# Power


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "count"), [(3, 4), (8, 2)])
@pytest.mark.parametrize("mix", [*MIXES, "balanced"])
def test_compare_arms_finds_what_is_detectable_over_new_seeds(seeds: int, count: int, mix: str) -> None:
    """A true difference of the median size that sweeps call detectable: found with 80 %, and up to 97 %.

    It is the upper end that depends on the mix: margins add the seeds' and the prompts' parts as if both were largest.
    """
    parts = MIXES.get(mix) or balanced(seeds)

    def found(number: int, shift: float) -> list[ArmDifference]:
        baseline, arm, *others = draw_arms(seeds, PROMPTS, number, count=count, **parts)
        return compare_arms(baseline, [arm + shift, *others], comparisons=count - 1, seed=number, resamples=999)

    shift = float(np.median([found(number, 0.0)[0].detectable or math.inf for number in range(1_000, 1_040)]))
    p_values = [claim(found(number, shift)[0], ScopeId.NEW_SEEDS).p for number in range(SIMULATIONS)]
    hits = sum(p < LEVEL / (count - 1) for p in p_values)
    assert TRUE_FINDINGS <= hits <= 0.97 * SIMULATIONS


def test_needed_prompts_and_seeds_suffice() -> None:
    """0.9 to find, numbers counted from known parts: found with 80 %, and in not many more."""
    known = VarianceComponents(0.25, 2.0, 2.0)
    plan = required_sizes(difference(known, 6, PROMPTS), 0.9)
    assert plan.prompts is not None
    assert plan.seeds is not None
    for seeds, prompts in ((6, plan.prompts), (plan.seeds, PROMPTS)):
        hits = 0
        for number in range(SIMULATIONS):
            baseline, arm = draw_arms(seeds, prompts, number, seed=math.sqrt(0.125))
            [found] = sweep(np.array([baseline, arm + 0.9]), None, number)
            hits += claim(found, ScopeId.NEW_SEEDS).p < LEVEL
        assert TRUE_FINDINGS <= hits <= 0.97 * SIMULATIONS
