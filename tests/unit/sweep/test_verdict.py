"""The verdict of a sweep from the results of its cells.

Oracles: planted differences, `compare_arms` on the same values, Holm by hand, verdicts without the cells that must not
count, and laws for any pattern of gaps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.evaluation.number_format import table_arm_verdict
from neftcli.metrics.registry import HELD_OUT_LOSS, WIN_RATE
from neftcli.statistics.crossed import ArmDifference, compare_arms
from neftcli.statistics.multiple import holm_adjust
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS
from neftcli.statistics.planning import required_sizes
from neftcli.sweep.early_stopping import Stopped
from neftcli.sweep.plan import Arm, Cell, arms_of
from neftcli.sweep.results import SweepResults
from neftcli.sweep.verdict import Verdict, judge_sweep
from tests.unit.sweep.planted import ACCURACY, RATES, ROWS, plan, planted_results, shift, with_win_rates
from tests.unit.sweep.verdict_checker import check_sentences


def judge(cells: list[Cell], content: dict[str, dict[str, Any]], *metrics: str, **options: Any) -> Verdict:
    return judge_sweep(SweepResults(cells, content), metrics or (HELD_OUT_LOSS,), **options)


def verdicts_of(verdict: Verdict) -> list[list[str]]:
    return [[comparison.verdict for comparison in arm.comparisons] for arm in verdict.arms]


def test_judge_sweep_planted_gain() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    verdict = judge(cells, planted_results(cells, {0: 0, 5: -0.064, 10: 0.056}))
    assert verdicts_of(verdict) == [[], ["better"], ["worse"]]
    assert verdict.recommended == Arm(5.0)
    assert verdict.conclusion[0].startswith("Better than alpha 0 in held-out loss, for new seeds: alpha 5 (-0.06")
    assert verdict.conclusion[1].startswith("Worse than alpha 0 in held-out loss, for new seeds: alpha 10 (+0.05")
    assert "Recommended: alpha 5." in verdict.conclusion


def test_judge_sweep_without_figures_decides_the_same() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.064, 10: 0.056})
    whole, decided = judge(cells, content), judge(cells, content, figures=False)
    assert all(row.values for row in whole.arms)
    assert not any(row.values for row in decided.arms)
    assert [row.comparisons for row in decided.arms] == [row.comparisons for row in whole.arms]
    assert (decided.recommended, decided.conclusion) == (whole.recommended, whole.conclusion)


def test_judge_sweep_resamples_bound_the_smallest_p() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.5})
    [few, many] = (judge(cells, content, resamples=resamples).arms[1].comparisons[0] for resamples in (199, 9_999))
    assert few.these_seeds is not None
    assert many.these_seeds is not None
    assert few.these_seeds.p == 1 / 200
    assert many.these_seeds.p < 1 / 200


def test_judge_sweep_no_claim_about_new_seeds() -> None:
    """A gain of these 3 seeds within the spread of seeds is lower for these seeds, and is not recommended."""
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    for cell, gap in zip([cell for cell in cells if cell.arm.alpha], (-0.03, -0.02, 0.005), strict=True):
        shift(content, cell, gap)
    verdict = judge(cells, content)
    one = verdict.arms[1].comparisons[0]
    assert (one.verdict, one.scope) == ("lower", "new_seeds")
    assert one.these_seeds is not None
    assert one.these_seeds.p_adjusted < LEVEL <= one.p_adjusted
    assert verdict.recommended == Arm(0.0)
    conclusion = " ".join(verdict.conclusion)
    assert "No alpha is shown to be better than alpha 0 in held-out loss for new seeds." in conclusion
    assert "Lower held-out loss with alpha 5 for these 3 seeds" in conclusion
    assert "not shown for new seeds" in conclusion
    assert "Recommended: the baseline (alpha 0), unless more seeds show a gain." in conclusion


def test_judge_sweep_one_seed_recommends_nothing() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=1")
    verdict = judge(cells, planted_results(cells, {0: 0, 5: -0.5}))
    one = verdict.arms[1].comparisons[0]
    assert (one.verdict, one.scope, one.these_seeds) == ("lower", "these_seeds", None)
    assert table_arm_verdict(verdict.arms[1], HELD_OUT_LOSS) == "lower for this seed"
    assert verdict.recommended is None
    conclusion = " ".join(verdict.conclusion)
    assert "Nothing is recommended: one seed can't show how results vary between seeds; use two or more." in conclusion
    assert "etter than" not in conclusion.replace("No alpha is shown to be better than", "")


def test_judge_sweep_sums_rows_of_one_prompt() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.05}, prompts=20)
    results = SweepResults(cells, content)
    one = judge_sweep(results, [HELD_OUT_LOSS]).arms[1].comparisons[0]
    base, arm = (results.values(HELD_OUT_LOSS, arm) for arm in results.arms)
    weights = results.weights(HELD_OUT_LOSS, results.arms[0])
    assert weights is not None
    summed = [values.reshape(3, 5, 20).sum(1) for values in (base, arm)]
    [found] = compare_arms(summed[0], [summed[1]], weights.reshape(5, 20).sum(0))
    assert (one.difference, one.low, one.p, one.n) == pytest.approx(
        (found.value, found.new_seeds.low, found.new_seeds.p, 20)  # type: ignore[union-attr]
    )


def test_judge_sweep_corrects_all_arms_and_metrics_together() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.002, 10: 0.003}, seed_spread=0.001)
    for cell in cells:
        content[cell.key]["metrics"][ACCURACY] = {**content[cell.key]["metrics"][HELD_OUT_LOSS], "direction": "higher"}
    family = [one for arm in judge(cells, content, HELD_OUT_LOSS, ACCURACY).arms for one in arm.comparisons]
    assert len(family) == 4
    assert [one.p_adjusted for one in family] == holm_adjust([one.p for one in family if one.p is not None])


def test_judge_sweep_untestable_metric_is_not_corrected_for() -> None:
    """Exact match differs for three prompts, so no p is below 0.25, and it does not count in the correction."""
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.002})
    for cell in cells:
        right = [float(row < 3 and cell.arm.alpha > 0) for row in range(ROWS)]
        content[cell.key]["metrics"]["exact_match"] = {"direction": "higher", "values": right, "weights": None}
    alone = judge(cells, content).arms[1].comparisons[0]
    loss, exact = judge(cells, content, HELD_OUT_LOSS, "exact_match").arms[1].comparisons
    assert loss.p_adjusted == alone.p_adjusted == loss.p
    assert exact.verdict == "not_significant"


def test_judge_sweep_failed_cell_costs_its_seed_only() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.2})
    del content[cells[3].key]  # alpha 5, second seed
    verdict = judge(cells, content)
    assert [arm.seeds for arm in verdict.arms] == [3, 2]
    assert verdicts_of(verdict)[1] == ["better"]


# Grids


def rate_of(arm: Arm) -> float:
    return float(dict(arm.grid)["training.learning_rate"])


def test_judge_sweep_each_point_of_a_grid_has_its_own_baseline() -> None:
    """The first learning rate is worse, but its noise isn't; the recommended baseline is that of the second rate."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = planted_results(cells, {0: 0, 5: 0})
    for cell in cells:
        shift(content, cell, 1.0 if rate_of(cell.arm) == 1e-5 else 0.0)
    verdict = judge(cells, content)
    assert [abs(one.difference) < 0.01 for arm in verdict.arms for one in arm.comparisons] == [True, True]
    assert verdict.recommended == Arm(0.0, (("training.learning_rate", 5e-5),))
    assert "Recommended: the baseline (alpha 0, learning_rate 5e-05)" in " ".join(verdict.conclusion)


def test_judge_sweep_win_rates_choose_within_a_point_of_the_grid() -> None:
    """A win rate of 90 % against a ruined baseline doesn't mean that its learning rate is good."""
    cells = plan("sweep.alphas=[5]", RATES)
    good, ruined = (Arm(5.0, (("training.learning_rate", rate),)) for rate in (1e-5, 5e-5))
    results = SweepResults(cells, with_win_rates(cells, {good: 0.5, ruined: 0.9}))
    assert [[rate_of(arm) for arm in group] for group in results.groups(WIN_RATE)] == [[1e-5] * 2, [5e-5] * 2]
    assert results.groups(HELD_OUT_LOSS) == [results.arms]
    verdict = judge_sweep(results, [WIN_RATE, HELD_OUT_LOSS])
    assert verdict.recommended is None
    conclusion = " ".join(verdict.conclusion)
    assert "Recommended: alpha 5, learning_rate 5e-05." in conclusion
    assert "Recommended: the baseline (alpha 0, learning_rate 1e-05)" in conclusion
    assert "Win rate is against alpha 0 with the same options: it can't choose between these" in conclusion


def test_judge_sweep_weights_of_different_tokens() -> None:
    """Rows with twice the tokens and nats have the same loss and difference, but arms can't be chosen among."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = planted_results(cells, {0: 0, 5: 0.05})
    plain = judge(cells, content)
    for cell in cells:
        if rate_of(cell.arm) == 5e-5:
            loss = content[cell.key]["metrics"][HELD_OUT_LOSS]
            loss["values"], loss["weights"] = ([2 * one for one in loss[key]] for key in ("values", "weights"))
    results = SweepResults(cells, content)
    verdict = judge_sweep(results, [HELD_OUT_LOSS])
    for one, other in zip(plain.arms, verdict.arms, strict=True):
        assert other.values[HELD_OUT_LOSS].value == pytest.approx(one.values[HELD_OUT_LOSS].value, rel=1e-12)
        assert [c.difference for c in other.comparisons] == pytest.approx([c.difference for c in one.comparisons])
    assert [[rate_of(arm) for arm in group] for group in results.groups(HELD_OUT_LOSS)] == [[1e-5] * 2, [5e-5] * 2]
    assert plain.recommended is not None
    assert verdict.recommended is None
    assert "Held-out loss is over tokens, which are not the same: it can't choose" in " ".join(verdict.conclusion)
    for arm, row in zip(results.arms, verdict.arms, strict=True):
        seeds = [value for value in results.per_seed(HELD_OUT_LOSS, arm) if value is not None]
        assert np.mean(seeds) == pytest.approx(row.values[HELD_OUT_LOSS].value, rel=1e-12)


# Missing seeds and rows


def test_judge_sweep_recommends_by_common_seeds() -> None:
    """An arm that lacks the third, harder seed is not better because of that."""
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.3, 10: -0.2})
    for cell in cells:
        shift(content, cell, 1.0 if cell.seed == 2 else 0.0)
    whole = judge(cells, content)
    del content[next(cell for cell in cells if (cell.arm.alpha, cell.seed) == (10, 2)).key]
    verdict = judge(cells, content)
    assert verdict.recommended == whole.recommended == Arm(5.0)
    assert "whether it is better than alpha 10 was not tested" in " ".join(verdict.conclusion)


def test_judge_sweep_arm_that_was_dropped_is_not_recommended() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.1, 10: -0.2})
    verdict = judge(cells, content, dropped=[Arm(10.0)])
    assert verdict.arms[2].dropped
    assert table_arm_verdict(verdict.arms[2], HELD_OUT_LOSS) == "better (dropped)"
    assert verdict.recommended == Arm(5.0)


def test_judge_sweep_arms_that_share_no_seed() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=2")
    content = planted_results(cells, {0: 0, 5: -0.5})
    content = {cell.key: content[cell.key] for cell in cells if (cell.arm.alpha > 0) == (cell.seed == 1)}
    verdict = judge(cells, content)
    assert verdict.recommended is None
    assert verdict.conclusion == (
        "Not compared in held-out loss: alpha 5 (no seed is finished both with noise and without).",
    )
    assert verdict.scope == "Nothing was compared."


PATTERNS = st.tuples(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 3), st.integers(0, 40))


@settings(deadline=None)
@given(PATTERNS)
def test_judge_sweep_any_pattern_of_gaps(pattern: tuple[int, float, float, int, int]) -> None:
    """For any gaps there is a verdict; pairs with enough rows that all seeds have are compared."""
    number, gaps, lost, seeds, rows = pattern
    draw = np.random.default_rng(number)
    cells = plan("sweep.alphas=[5]", f"sweep.seeds={seeds}", RATES)
    content: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if draw.random() < lost:
            continue
        scores = [None if draw.random() < gaps else float(draw.integers(0, 3)) / 2 for _ in range(rows)]
        metric = {"direction": "higher", "values": scores, "weights": None}
        asked = [f"prompt {row}" for row in range(rows)]
        content[cell.key] = {"prompts": asked, "metrics": {WIN_RATE: metric, "exact_match": metric} if rows else {}}
    results = SweepResults(cells, content)
    verdict = judge_sweep(results, ["exact_match", WIN_RATE])
    for arm, row in zip(results.arms, verdict.arms, strict=True):
        pair = [results.values(WIN_RATE, one) for one in (Arm(0.0, arm.grid), arm)]
        there = [~np.isnan(one).all(1) for one in pair]
        both = [one[there[0] & there[1]] for one in pair]
        shared = int((~np.isnan(np.concatenate(both))).all(0).sum()) if len(both[0]) else 0
        assert bool(row.comparisons) == (arm.alpha > 0 and shared >= MIN_PROMPTS)
        assert all(one.n == shared and one.p_adjusted is not None for one in row.comparisons)
    if not any(row.comparisons for row in verdict.arms):
        assert verdict.recommended is None
        assert verdict.conclusion[0].startswith(("Not compared in", "Nothing could be compared"))
    check_sentences(verdict, results, {"exact_match": "higher", WIN_RATE: "higher"})


def test_judge_sweep_too_few_prompts() -> None:
    cells = plan("sweep.alphas=[5]")
    verdict = judge(cells, planted_results(cells, {0: 0, 5: -1}, prompts=5))
    assert verdict.arms[1].comparisons == ()
    assert verdict.recommended is None
    assert verdict.conclusion == (
        "Not compared in held-out loss: alpha 5 (fewer than 6 prompts have a value in every seed).",
    )


def test_judge_sweep_names_an_arm_that_is_not_compared() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.05, 10: 0})
    content = {cell.key: content[cell.key] for cell in cells if cell.arm.alpha != 10}
    conclusion = judge(cells, content).conclusion
    assert "Not compared in held-out loss: alpha 10 (no seed is finished both with noise and without)." in conclusion
    assert "Recommended: alpha 5." in conclusion


# Recommendations and plans


def test_judge_sweep_worse_in_a_second_metric_is_not_recommended() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.05})
    for number, cell in enumerate(cells):
        right = np.random.default_rng((number, 3)).integers(3, 5, ROWS) - 2.0 * (cell.arm.alpha > 0)
        tokens = content[cell.key]["metrics"][HELD_OUT_LOSS]["weights"]
        content[cell.key]["metrics"][ACCURACY] = {"direction": "higher", "values": right.tolist(), "weights": tokens}
    verdict = judge(cells, content, HELD_OUT_LOSS, ACCURACY)
    assert "Alpha 5 is not recommended: it is worse in token accuracy." in verdict.conclusion
    assert verdict.recommended == Arm(0.0)
    assert judge(cells, content).recommended == Arm(5.0)


@pytest.mark.parametrize("metrics", [[HELD_OUT_LOSS], [HELD_OUT_LOSS, WIN_RATE]])
def test_judge_sweep_win_rate_is_advised_if_there_is_none(metrics: list[str]) -> None:
    cells = plan("sweep.alphas=[5]")
    verdict = judge(cells, with_win_rates(cells, {}), *metrics)
    assert any("--metric win_rate_length_controlled" in line for line in verdict.conclusion) == (
        WIN_RATE not in metrics
    )


def difference_of(results: SweepResults) -> ArmDifference:
    base, arm = (results.values(HELD_OUT_LOSS, arm) for arm in results.arms)
    return compare_arms(
        base, [arm], results.weights(HELD_OUT_LOSS, results.arms[0]), prompts=results.prompts(HELD_OUT_LOSS)
    )[0]


def test_judge_sweep_plan_for_delta() -> None:
    """The plan is for delta, not for the observed difference."""
    cells = plan("sweep.alphas=[5]")
    results = SweepResults(cells, planted_results(cells, {0: 0, 5: 0}, seed_spread=0.004))
    found = difference_of(results)
    more = required_sizes(found, 0.004)
    assert found.detectable is not None
    assert more.seeds
    assert found.detectable > 0.004
    conclusion = judge_sweep(results, [HELD_OUT_LOSS], delta=0.004).conclusion
    assert (
        f"Minimum detectable effect: {found.detectable:.4f} in held-out loss (3 seeds, 100 prompts, power 80 %)."
        in conclusion
    )
    takes = f"Detecting an effect of 0.0040 (sweep.delta) takes about {more.seeds} seeds"
    assert any(line.startswith(takes) for line in conclusion)
    easy = judge_sweep(results, [HELD_OUT_LOSS], delta=0.5).conclusion
    assert "An effect of 0.5000 (sweep.delta) would have been found in 80 % of such sweeps or more." in easy
    assert not any("sweep.delta" in line for line in judge_sweep(results, [HELD_OUT_LOSS]).conclusion)


def test_judge_sweep_best_baseline_of_different_options() -> None:
    """At the first rate alpha 5 is better than its own alpha 0, but far worse than alpha 0 at the second."""
    cells = plan("sweep.alphas=[5]", RATES)
    content = planted_results(cells, {0: 0, 5: -0.1})
    for cell in cells:
        shift(content, cell, 1.0 if rate_of(cell.arm) == 1e-5 else 0.15 if cell.arm.alpha else 0.0)
    verdict = judge(cells, content)
    assert verdicts_of(verdict)[1] == ["better"]
    assert verdict.recommended == Arm(0.0, (("training.learning_rate", 5e-5),))
    assert any(
        line.startswith("Recommended: the baseline") and "its own alpha 0" in line for line in verdict.conclusion
    )


def test_judge_sweep_every_arm_worse() -> None:
    cells = plan("sweep.alphas=[5, 10]")
    conclusion = judge(cells, planted_results(cells, {0: 0, 5: 0.1, 10: 0.2})).conclusion
    assert "Recommended: the baseline (alpha 0): every alpha is worse." in conclusion


def test_judge_sweep_dropped_better_arm_as_last_resort() -> None:
    """The leading arm is worse in another metric, so it is not recommended."""
    cells = plan("sweep.alphas=[5, 10]")
    content = planted_results(cells, {0: 0, 5: -0.5, 10: -0.3})
    for number, cell in enumerate(cells):
        right = np.random.default_rng((number, 3)).integers(3, 5, ROWS) - 2.0 * (cell.arm.alpha == 5)
        tokens = content[cell.key]["metrics"][HELD_OUT_LOSS]["weights"]
        content[cell.key]["metrics"][ACCURACY] = {"direction": "higher", "values": right.tolist(), "weights": tokens}
    verdict = judge(cells, content, HELD_OUT_LOSS, ACCURACY, dropped=[Arm(10.0)])
    assert table_arm_verdict(verdict.arms[2], HELD_OUT_LOSS) == "better (dropped)"
    assert verdict.recommended == Arm(10.0)


def test_judge_sweep_seeds_are_those_that_both_arms_have() -> None:
    """Two baseline cells failed, so the claim about alpha 5 is for one seed, although it has three."""
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.5})
    content = {cell.key: content[cell.key] for cell in cells if cell.arm.alpha or not cell.seed}
    verdict = judge(cells, content)
    assert verdict.arms[1].seeds == 3
    assert table_arm_verdict(verdict.arms[1], HELD_OUT_LOSS) == "lower for this seed"
    assert any("alpha 5 for this one seed (" in line for line in verdict.conclusion)


def test_judge_sweep_stop_that_later_seeds_contradict() -> None:
    """A look after 3 seeds excluded a gain that 5 evaluated seeds don't exclude."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=8")
    content = planted_results(cells, {0: 0, 5: 0}, seed_spread=0.05)
    content = {cell.key: content[cell.key] for cell in cells if cell.seed < 5}
    stop = Stopped(Arm(0.0), "futility", seeds=3, planned=8, excluded=0.005)
    conclusion = judge(cells, content, delta=0.005, stopped=[stop]).conclusion
    assert stop.sentence(HELD_OUT_LOSS) not in conclusion
    assert "Stopped early by a look after 3 of 8 seeds; the verdict uses all results." in conclusion
    assert "Recommended: the baseline (alpha 0), unless more seeds show a gain." in conclusion


def test_judge_sweep_futility_settles_the_recommendation() -> None:
    """An excluded gain needs no plan and no "unless"."""
    cells = plan("sweep.alphas=[5]", "sweep.seeds=8")
    content = planted_results(cells, {0: 0, 5: 0}, seed_spread=0.004)
    content = {cell.key: content[cell.key] for cell in cells if cell.seed < 3}
    stop = Stopped(Arm(0.0), "futility", seeds=3, planned=8, excluded=0.05)
    conclusion = judge(cells, content, delta=0.05, stopped=[stop]).conclusion
    assert "Recommended: the baseline (alpha 0)." in conclusion
    assert stop.sentence(HELD_OUT_LOSS) in conclusion
    assert not any(line.startswith("Minimum detectable effect") for line in conclusion)
    assert "Recommended: the baseline (alpha 0), unless more seeds show a gain." in judge(cells, content).conclusion


def test_judge_sweep_names_an_arm_whose_seeds_vary_more() -> None:
    cells = plan("sweep.alphas=[5, 10, 15]", "sweep.seeds=8")
    content = planted_results(cells, {0: 0, 5: 0, 10: 0, 15: 0}, seed_spread=0.002)
    for cell in cells:
        if cell.arm.alpha == 15:
            shift(content, cell, (-1) ** cell.seed * 0.1)
    [line] = [line for line in judge(cells, content).conclusion if "varies more" in line]
    assert line.startswith("Alpha 15 varies more between seeds (standard deviation 0.1")
    even = judge(cells, planted_results(cells, {0: 0, 5: 0, 10: 0, 15: 0}, seed_spread=0.002))
    assert not any("varies more" in line for line in even.conclusion)


def test_judge_sweep_reports_skewness() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    tail = np.exp(2 * np.random.default_rng(5).normal(size=ROWS))
    for cell in cells:
        if cell.arm.alpha:
            loss = content[cell.key]["metrics"][HELD_OUT_LOSS]
            loss["values"] = (np.array(loss["values"]) + tail).tolist()
    [line] = [line for line in judge(cells, content).conclusion if "skewed" in line]
    level = difference_of(SweepResults(cells, content)).true_level
    assert level is not None
    assert level > 0.065
    assert f"about {100 * level:.0f} % would have p < 0.05, not 5 %" in line


def test_judge_sweep_scope() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=7")
    content = planted_results(cells, {0: 0, 5: 0})
    assert judge(cells, content).scope == (
        "Better and worse are claims about new seeds and new prompts, from 7 seeds and 100 prompts. 95 % CIs are of "
        "one comparison each; p is corrected for all of them (Holm)."
    )
    first = {cell.key: content[cell.key] for cell in cells if cell.seed == cells[0].seed}
    assert judge(cells, first).scope == (
        "With one seed, arms are compared for the model of that seed (100 prompts). 95 % CIs are of one comparison "
        "each; p is corrected for all of them (Holm)."
    )


def test_sweep_results_missing_seed() -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    whole = SweepResults(cells, content).per_seed(HELD_OUT_LOSS, arms_of(cells)[1])
    del content[cells[1].key]  # alpha 5, first seed
    assert SweepResults(cells, content).per_seed(HELD_OUT_LOSS, arms_of(cells)[1]) == (None, *whole[1:])
