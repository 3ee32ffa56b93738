"""From cells' numbers to the verdict.

Oracles: planted differences, `sweep/statistics.py` on the half of the rows that it must use, and Holm by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neftcli.evaluation.statistics import holm
from neftcli.recipe.loading import assignment, file_layers, resolve
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.sweep.statistics import arm_difference
from neftcli.sweep.verdict import Numbers, judge_sweep

ROWS = 200
CHOOSING = [place % 2 == 0 for place in range(ROWS)]
LOSS = "held-out loss"


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
    assert verdict.chosen.alpha == 5
    assert verdict.conclusion[0] == "Better than no noise in held-out loss: alpha 5."
    assert "Recommended: alpha 5, chosen on the other half of the rows." in verdict.conclusion


def test_where_nothing_is_better_the_plain_baseline_is_recommended_with_what_it_would_take() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    verdict = judge_sweep(Numbers(cells, measured(cells, {0: 0, 5: -0.0005, 10: 0.0005}), CHOOSING), [LOSS], [])
    assert {one.verdict for arm in verdict.arms for one in arm.comparisons} == {"not distinguishable"}
    assert verdict.chosen.alpha == 0
    said = " ".join(verdict.conclusion)
    assert "Nothing here is better than no noise in held-out loss." in said
    assert "the plain baseline (alpha 0)" in said
    assert "This sweep could have seen a difference of" in said
    assert "are needed" in said


def test_one_half_chooses_and_the_other_judges() -> None:
    """A gain that is only in the half that chooses is chosen, is not in the numbers shown, and is not recommended."""
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: 0}, {0: 0, 5: -0.2})
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    comparison = verdict.arms[1].comparisons[0]
    assert abs(comparison.difference) < 0.01
    assert comparison.n == ROWS / 2
    assert verdict.chosen.alpha == 0
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
    expected = arm_difference(base, arm, numbers.weights(LOSS, choosing=False), comparisons=4)
    assert (family[0].difference, family[0].low, family[0].p) == (expected.value, expected.low, expected.p)


def test_a_cell_that_failed_costs_its_seed_and_nothing_else() -> None:
    cells = plan("sweep.alphas=[5]")
    content = measured(cells, {0: 0, 5: -0.05})
    del content[cells[3].key]  # alpha 5, second seed
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert [arm.seeds for arm in verdict.arms] == [3, 2]
    assert verdict.arms[1].comparisons[0].verdict == "better"


def test_each_point_of_a_grid_has_its_own_baseline() -> None:
    """The second learning rate is worse by itself; the noise is no worse there."""
    cells = plan("sweep.alphas=[5]", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    content = measured(cells, {0: 0, 5: 0})
    for cell in cells:
        if dict(cell.arm.grid)["training.learning_rate"] == 5e-5:
            loss = content[cell.key]["metrics"][LOSS]
            loss["values"] = [value + weight for value, weight in zip(loss["values"], loss["weights"], strict=True)]
    verdict = judge_sweep(Numbers(cells, content, CHOOSING), [LOSS], [])
    assert [abs(one.difference) < 0.01 for arm in verdict.arms for one in arm.comparisons] == [True, True]
    assert dict(verdict.chosen.grid)["training.learning_rate"] == pytest.approx(1e-5)


def test_too_few_rows_are_not_judged() -> None:
    cells = plan("sweep.alphas=[5]")
    choosing = [place >= 5 for place in range(ROWS)]
    verdict = judge_sweep(Numbers(cells, measured(cells, {0: 0, 5: -1}), choosing), [LOSS], [])
    assert verdict.arms[1].comparisons == ()
    assert verdict.chosen.alpha == 0
