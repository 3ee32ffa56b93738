"""From cells' numbers to the verdict.

Oracles: planted differences, `sweep/statistics.py` on the half of the rows that it must use, Holm by hand, verdicts of
the same cells without those that must not count, and laws over every pattern of gaps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.evaluation.comparison import FEWEST, LOSS, WIN_RATE
from neftcli.evaluation.statistics import holm
from neftcli.recipe.loading import assignment, file_layers, resolve
from neftcli.sweep.plan import Arm, Cell, arms_of, plan_cells
from neftcli.sweep.statistics import arm_difference, needed
from neftcli.sweep.verdict import Numbers, judge_sweep

ROWS = 200
CHOOSING = [place % 2 == 0 for place in range(ROWS)]
ACCURACY = "token accuracy"


def plan(*sets: str) -> list[Cell]:
    layers = [*file_layers("quickstart"), *map(assignment, sets)]
    return plan_cells(resolve(layers), layers)


def measured(
    cells: list[Cell], gaps: dict[float, float], choosing_gaps: dict[float, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Losses of 5 to 9 tokens a row, with a gap in nats a token for each alpha, maybe another where rows choose."""
    rows = np.random.default_rng(0)
    hard, tokens = rows.gamma(2, 1, ROWS), rows.integers(5, 10, ROWS)
    found = {}
    for number, cell in enumerate(cells):
        noise = np.random.default_rng((number, 1)).normal(0, 0.02, ROWS)
        gap = np.full(ROWS, gaps[cell.arm.alpha])
        if choosing_gaps:
            gap[CHOOSING] = choosing_gaps[cell.arm.alpha]
        nats = tokens * (hard + gap + noise)
        found[cell.key] = {
            "metrics": {
                LOSS: {"better": "lower", "values": nats.tolist(), "weights": tokens.tolist()},
                "answer tokens": {"better": "none", "values": [10.0] * ROWS, "weights": None},
            }
        }
    return found


def test_a_planted_gain_is_found_and_recommended() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    verdict = judge_sweep(Numbers(cells, measured(cells, {0: 0, 5: -0.05, 10: 0.05}), CHOOSING), [LOSS], [])
    assert [[one.verdict for one in arm.comparisons] for arm in verdict.arms] == [[], ["better"], ["worse"]]
    assert verdict.recommended == Arm(5.0)
    assert verdict.conclusion[0] == "Better than no noise in held-out loss: alpha 5. Worse: alpha 10."
    assert "Recommended: alpha 5, chosen on the other half of the rows." in verdict.conclusion


def test_where_nothing_is_better_the_plain_baseline_is_recommended_with_what_it_would_take() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    verdict = judge_sweep(Numbers(cells, measured(cells, {0: 0, 5: -0.0005, 10: 0.0005}), CHOOSING), [LOSS], [])
    assert {one.verdict for arm in verdict.arms for one in arm.comparisons} == {"not distinguishable"}
    assert verdict.recommended == Arm(0.0)
    said = " ".join(verdict.conclusion)
    assert "Nothing here is better than no noise in held-out loss." in said
    assert "the plain baseline (alpha 0)" in said
    assert "This sweep could have seen a difference of" in said


def test_one_half_chooses_and_the_other_judges() -> None:
    """A gain that is only in the half that chooses is chosen, is not in the numbers shown, and is not recommended."""
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: 0}, {0: 0, 5: -0.2})
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    comparison = verdict.arms[1].comparisons[0]
    assert abs(comparison.difference) < 0.01
    assert comparison.n == ROWS / 2
    assert verdict.recommended == Arm(0.0)
    assert "alpha 5 was best on the half that chooses, and is not better on the untouched half" in " ".join(
        verdict.conclusion
    )


def test_all_arms_and_metrics_are_corrected_together() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    numbers = Numbers(cells, measured(cells, {0: 0, 5: -0.002, 10: 0.003}), CHOOSING)
    verdict = judge_sweep(numbers, [LOSS, "answer tokens"], [])
    family = [one for arm in verdict.arms for one in arm.comparisons]
    assert len(family) == 4
    assert [one.p_adjusted for one in family] == holm([one.p for one in family if one.p is not None])
    base, arm = (numbers.values(LOSS, arm, choosing=False) for arm in numbers.arms[:2])
    expected = arm_difference(base, arm, numbers.weights(LOSS, numbers.arms[1], choosing=False), comparisons=4)
    assert (family[0].difference, family[0].low, family[0].p) == (expected.value, expected.low, expected.p)


def test_a_cell_that_failed_costs_its_seed_and_nothing_else() -> None:
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: -0.05})
    del content[cells[3].key]  # alpha 5, second seed
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert [arm.seeds for arm in verdict.arms] == [3, 2]
    assert verdict.arms[1].comparisons[0].verdict == "better"


def shifted(content: dict[str, dict[str, Any]], cell: Cell, gap: float, metric: str = LOSS) -> None:
    """Makes a cell worse by a gap in nats a token."""
    found = content[cell.key]["metrics"][metric]
    weights = found["weights"] or [1.0] * ROWS
    found["values"] = [value + gap * weight for value, weight in zip(found["values"], weights, strict=True)]


# Grids


RATES = "sweep.grid=['training.learning_rate=1e-5,5e-5']"


def rate_of(arm: Arm) -> float:
    return float(dict(arm.grid)["training.learning_rate"])


def test_each_point_of_a_grid_has_its_own_baseline() -> None:
    """The first learning rate is worse by itself; the noise is no worse there, and the plain one is the second's."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = measured(cells, {0: 0, 5: 0})
    for cell in cells:
        shifted(content, cell, 1.0 if rate_of(cell.arm) == 1e-5 else 0.0)
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert [abs(one.difference) < 0.01 for arm in verdict.arms for one in arm.comparisons] == [True, True]
    assert verdict.recommended == Arm(0.0, (("training.learning_rate", 5e-5),))
    assert "Recommended: the plain baseline (alpha 0, learning_rate 5e-05)" in " ".join(verdict.conclusion)


def test_the_plain_baseline_is_the_best_arm_without_noise() -> None:
    """At the second rate noise is best where rows choose, and not better where they judge; alpha 0 at the first is."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = measured(cells, {0: 0, 5: 0}, {0: 0, 5: -0.2})
    for cell in cells:
        shifted(content, cell, 0.1 if rate_of(cell.arm) == 5e-5 and not cell.arm.alpha else 0.0)
        shifted(content, cell, 0.05 if rate_of(cell.arm) == 1e-5 and cell.arm.alpha else 0.0)
    for cell in cells:  # no gain in the half that judges
        if rate_of(cell.arm) == 5e-5 and cell.arm.alpha:
            loss = content[cell.key]["metrics"][LOSS]
            loss["values"] = [
                value + (0 if side else 0.1 * weight)
                for value, weight, side in zip(loss["values"], loss["weights"], CHOOSING, strict=True)
            ]
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert verdict.recommended == Arm(0.0, (("training.learning_rate", 1e-5),))
    assert "alpha 5, learning_rate 5e-05 was best on the half that chooses" in " ".join(verdict.conclusion)
    assert "Recommended: the plain baseline (alpha 0, learning_rate 1e-05)" in " ".join(verdict.conclusion)


def with_win_rates(cells: list[Cell], rates: dict[Arm, float]) -> dict[str, dict[str, Any]]:
    """Scores against alpha 0 of the same options, 1 or 0, with the share of ones given; alpha 0 has a half."""
    content = measured(cells, dict.fromkeys({cell.arm.alpha for cell in cells}, 0.0))
    for number, cell in enumerate(cells):
        wins = np.random.default_rng((number, 2)).random(ROWS) < rates.get(cell.arm, 0.5)
        values = wins.astype(float).tolist() if cell.arm.alpha else [0.5] * ROWS
        content[cell.key]["metrics"][WIN_RATE] = {"better": "higher", "values": values, "weights": None}
    return content


def test_win_rates_choose_within_a_point_of_the_grid_and_never_between_points() -> None:
    """90 % against a baseline that a learning rate ruined is no sign that this rate is good."""
    cells = plan("sweep.alphas=[5]", RATES)
    good, ruined = (Arm(5.0, (("training.learning_rate", rate),)) for rate in (1e-5, 5e-5))
    numbers = Numbers(cells, with_win_rates(cells, {good: 0.5, ruined: 0.9}), CHOOSING)
    assert [[rate_of(arm) for arm in group] for group in numbers.groups(WIN_RATE)] == [[1e-5] * 2, [5e-5] * 2]
    assert numbers.groups(LOSS) == [numbers.arms]
    verdict = judge_sweep(numbers, [WIN_RATE, LOSS], [])
    assert verdict.recommended is None
    said = " ".join(verdict.conclusion)
    assert "Recommended: alpha 5, learning_rate 5e-05, chosen on the other half" in said
    assert "Recommended: the plain baseline (alpha 0, learning_rate 1e-05)" in said
    assert "Win rate is against alpha 0 with the same options: it chooses nothing between these" in said


def test_each_arm_is_weighed_by_its_own_tokens_and_others_tokens_are_not_chosen_among() -> None:
    """Rows with twice the tokens and twice the nats have the same loss, in each seed and in the difference."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = measured(cells, {0: 0, 5: 0.05})
    plain = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    for cell in cells:
        if rate_of(cell.arm) == 5e-5:
            loss = content[cell.key]["metrics"][LOSS]
            loss["values"], loss["weights"] = ([2 * one for one in loss[key]] for key in ("values", "weights"))
    numbers = Numbers(cells, content, CHOOSING)
    verdict = judge_sweep(numbers, [LOSS], [])
    for one, other in zip(plain.arms, verdict.arms, strict=True):
        assert other.values[LOSS].value == pytest.approx(one.values[LOSS].value, rel=1e-12)
        assert [c.difference for c in other.comparisons] == pytest.approx([c.difference for c in one.comparisons])
    assert [[rate_of(arm) for arm in group] for group in numbers.groups(LOSS)] == [[1e-5] * 2, [5e-5] * 2]
    assert plain.recommended is not None
    assert verdict.recommended is None
    assert "Held-out loss is over tokens, which are not the same: it chooses nothing between these" in " ".join(
        verdict.conclusion
    )
    for arm, row in zip(numbers.arms, verdict.arms, strict=True):
        seeds = [value for value in numbers.per_seed(LOSS, arm, choosing=False) if value is not None]
        assert np.mean(seeds) == pytest.approx(row.values[LOSS].value, rel=1e-12)


# Seeds and rows that are missing


def test_the_choice_is_by_the_seeds_that_all_arms_have() -> None:
    """Stopped in a third, harder seed: an arm that lacks it is not the better for it."""
    cells = plan("sweep.alphas=[5, 10]")
    content = measured(cells, {0: 0, 5: -0.15, 10: -0.05})
    for cell in cells:
        shifted(content, cell, 1.0 if cell.seed == 2 else 0.0)
    whole = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    del content[next(cell for cell in cells if (cell.arm.alpha, cell.seed) == (10, 2)).key]
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert verdict.recommended == whole.recommended == Arm(5.0)
    assert "2 of 3 seeds" in " ".join(verdict.conclusion)
    assert "of 3 seeds" not in " ".join(whole.conclusion)


def test_an_arm_that_racing_dropped_is_not_chosen_and_takes_no_seed_from_the_others() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = measured(cells, {0: 0, 5: -0.05, 10: -0.2})
    for cell in cells:  # alpha 10 left after the first seed, in which alpha 5 was bad
        if (cell.arm.alpha, cell.seed) == (5, 0):
            shifted(content, cell, 0.08)
        if cell.arm.alpha == 10 and cell.seed:
            del content[cell.key]
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [Arm(10.0)])
    assert verdict.arms[2].dropped
    assert verdict.recommended == Arm(5.0)


def test_arms_that_share_no_seed_are_not_chosen_among() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=2")
    content = measured(cells, {0: 0, 5: -0.5})
    content = {cell.key: content[cell.key] for cell in cells if (cell.arm.alpha > 0) == (cell.seed == 1)}
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert verdict.recommended is None
    assert verdict.conclusion[0].startswith("Nothing could be compared in held-out loss yet: no seed")


PATTERNS = st.tuples(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 3), st.integers(0, 40))


@settings(deadline=None, max_examples=40)
@given(PATTERNS)
def test_no_pattern_of_gaps_is_too_much(pattern: tuple[int, float, float, int, int]) -> None:
    """Law: whatever is missing, there is a verdict; the family is the pairs with enough rows that all seeds have."""
    number, gaps, lost, seeds, rows = pattern
    draw = np.random.default_rng(number)
    cells = plan("sweep.alphas=[5]", f"sweep.seeds={seeds}", RATES)
    content = {}
    for cell in cells:
        if draw.random() < lost:
            continue
        scores = [None if draw.random() < gaps else float(draw.integers(0, 3)) / 2 for _ in range(rows)]
        metric = {"better": "higher", "values": scores, "weights": None}
        content[cell.key] = {"metrics": {WIN_RATE: metric, "exact match": metric} if rows else {}}
    choosing = (draw.random(rows) < 0.5).tolist()
    numbers = Numbers(cells, content, choosing)
    verdict = judge_sweep(numbers, ["exact match", WIN_RATE], [])
    for arm, row in zip(numbers.arms, verdict.arms, strict=True):
        pair = [numbers.values(WIN_RATE, one, choosing=False) for one in (Arm(0.0, arm.grid), arm)]
        there = [~np.isnan(one).all(1) for one in pair]
        both = [one[there[0] & there[1]] for one in pair]
        shared = int((~np.isnan(np.concatenate(both))).all(0).sum()) if len(both[0]) else 0
        assert bool(row.comparisons) == (arm.alpha > 0 and shared >= FEWEST)
        assert all(one.n == shared and one.p_adjusted is not None for one in row.comparisons)
    if not any(row.comparisons for row in verdict.arms):
        assert verdict.recommended is None
        assert "Nothing could be compared" in verdict.conclusion[0]


def test_too_few_rows_are_not_judged() -> None:
    cells = plan("sweep.alphas=[5]")
    choosing = [place >= 5 for place in range(ROWS)]
    verdict = judge_sweep(Numbers(cells, measured(cells, {0: 0, 5: -1}), choosing), [LOSS], [])
    assert verdict.arms[1].comparisons == ()
    assert verdict.recommended is None
    assert verdict.conclusion == (
        "Nothing could be compared in held-out loss yet: fewer than 6 rows of the half that judges have a value in "
        "every seed.",
        "So nothing is recommended.",
    )
    assert verdict.scope == "There is no verdict yet."


# The words


def test_where_only_baselines_are_done_nothing_is_said_to_be_no_better() -> None:
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=1")
    verdict = judge_sweep(Numbers(cells, measured(cells[:1], {0: 0}), CHOOSING), [LOSS], [])
    said = " ".join(verdict.conclusion)
    assert verdict.recommended is None
    assert "no seed is done both with noise and without" in said
    assert "better" not in said
    assert "Recommended" not in said


def test_an_arm_that_is_not_compared_is_named() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = measured(cells, {0: 0, 5: -0.05, 10: 0})
    content = {cell.key: content[cell.key] for cell in cells if cell.arm.alpha != 10}
    said = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], []).conclusion
    assert said[0].endswith(": alpha 5. Not compared: alpha 10 (no seed is done both with noise and without).")
    assert "Recommended: alpha 5, chosen on the other half of the rows." in said


def test_every_metric_has_its_line_and_one_that_is_worse_forbids_to_recommend() -> None:
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: -0.05})
    for number, cell in enumerate(cells):
        right = np.random.default_rng((number, 3)).integers(3, 5, ROWS) - 2.0 * (cell.arm.alpha > 0)
        tokens = content[cell.key]["metrics"][LOSS]["weights"]
        content[cell.key]["metrics"][ACCURACY] = {"better": "higher", "values": right.tolist(), "weights": tokens}
    numbers = Numbers(cells, content, CHOOSING)
    verdict = judge_sweep(numbers, [LOSS, ACCURACY], [])
    assert verdict.conclusion[:3] == (
        "Better than no noise in held-out loss: alpha 5.",
        "Nothing here is better than no noise in token accuracy. Worse: alpha 5.",
        "alpha 5 was best on the half that chooses, and is worse in token accuracy. "
        "Recommended: the plain baseline (alpha 0), or more evidence.",
    )
    assert verdict.recommended == Arm(0.0)
    assert judge_sweep(numbers, [LOSS], []).recommended == Arm(5.0)


@pytest.mark.parametrize("metrics", [[LOSS], [LOSS, WIN_RATE]])
def test_a_win_rate_is_advised_only_where_there_is_none(metrics: list[str]) -> None:
    cells = plan("sweep.alphas=[5]")
    verdict = judge_sweep(Numbers(cells, with_win_rates(cells, {}), CHOOSING), metrics, [])
    assert any("--metric win_rate" in line for line in verdict.conclusion) == (WIN_RATE not in metrics)


def test_what_it_would_take_is_in_held_out_rows_and_says_of_which_claim() -> None:
    """Twice the rows of the half that judges, by `needed`; rows settle it for these seeds, seeds for all."""
    cells = plan("sweep.alphas=[5]")
    numbers = Numbers(cells, measured(cells, {0: 0, 5: -0.0005}), CHOOSING)
    base, arm = (numbers.values(LOSS, arm, choosing=False) for arm in numbers.arms)
    found = arm_difference(base, arm, numbers.weights(LOSS, numbers.arms[0], choosing=False))
    more = needed(found, abs(found.value))
    assert found.scope == "examples"
    assert more.rows
    assert more.seeds
    [line] = [line for line in judge_sweep(numbers, [LOSS], []).conclusion if line.startswith("To tell")]
    assert line == (
        f"To tell {abs(found.value):.2g} from nothing takes about {2 * more.rows} held-out rows, half of which judge, "
        f"for these 3 seeds; for others too, about {more.seeds} seeds."
    )


def test_where_no_difference_varies_that_is_said() -> None:
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: 0})
    content = dict.fromkeys(content, content[cells[0].key])
    said = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], []).conclusion
    assert "What this sweep could have seen is not known: no difference varies, or too few rows differ." in said


def scope_of(cells: list[Cell], without: set[tuple[float, int]], dropped: tuple[Arm, ...] = ()) -> str:
    content = measured(cells, {cell.arm.alpha: 0.0 for cell in cells})
    content = {cell.key: content[cell.key] for cell in cells if (cell.arm.alpha, cell.seed) not in without}
    return judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], dropped).scope


def test_the_scope_is_of_the_seeds_that_were_compared() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=7")
    assert scope_of(cells, set()) == "Verdicts are over seeds and examples: 7 seeds, 100 rows that chose nothing."
    left = {(alpha, seed) for alpha in (0.0, 5.0) for seed in range(1, 7)}
    assert scope_of(cells, left) == (
        "Verdicts are over examples, for this one seed (100 rows that chose nothing): so few support no claim about "
        "others. Intervals are over examples, of one comparison each."
    )
    assert scope_of(cells, left - {(0.0, 1), (5.0, 1)}) == (
        "Verdicts are over examples, for these 2 seeds (100 rows that chose nothing): so few support no claim about "
        "others. Intervals are over seeds and examples, of one comparison each."
    )


def test_arms_with_a_smaller_scope_are_named() -> None:
    cells = plan("sweep.alphas=[5, 10]", "sweep.seeds=8")
    assert scope_of(cells, {(10.0, seed) for seed in range(2, 8)}, (Arm(10.0),)) == (
        "Verdicts are over seeds and examples: 8 seeds, 100 rows that chose nothing. Those on alpha 10 are over "
        "examples, for these 2 seeds (100 rows that chose nothing): so few support no claim about others. Intervals "
        "are over seeds and examples, of one comparison each."
    )


def test_a_seed_keeps_its_place_where_another_is_missing() -> None:
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: 0})
    whole = Numbers(cells, content, CHOOSING).per_seed(LOSS, arms_of(cells)[1], choosing=False)
    del content[cells[1].key]  # alpha 5, first seed
    assert Numbers(cells, content, CHOOSING).per_seed(LOSS, arms_of(cells)[1], choosing=False) == (None, *whole[1:])
