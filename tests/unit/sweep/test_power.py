"""The plan of a sweep by a pilot's variance.

Oracles: `minimum_detectable_effect` on the pilot's own comparison, and plans with other numbers of seeds.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli.cli.display import format
from neftcli.errors import InputError
from neftcli.events import ScopeId, SweepEstimate
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.statistics.crossed import compare_arms, minimum_detectable_effect
from neftcli.statistics.paired import LEVEL
from neftcli.sweep import power as module
from neftcli.sweep.power import NO_PILOT, plan_power
from neftcli.sweep.results import SweepResults
from tests.unit.sweep.planted import HELD_OUT_LOSS, ROWS, plan, planted_results

SETS = ("sweep.alphas=[5, 10]", "sweep.seeds=3", "sweep.delta=0.01")


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return planted cells by key, read without files; held-out examples are their own prompts."""
    found: dict[str, Any] = {}

    class Runs:
        def __init__(self, _folder: Path) -> None:
            """The runs are planted."""

        def finished(self, key: str) -> SimpleNamespace | None:
            """Return the planted run."""
            return SimpleNamespace(key=key, path=Path("none")) if key in found else None

    monkeypatch.setattr(module, "CellRuns", Runs)
    monkeypatch.setattr(module, "read_evaluation", lambda run, _: found[run.key])
    monkeypatch.setattr(module, "instruction", str)
    return found


def planned(*sets: str) -> Any:
    base = resolve_recipe([*read_recipe_layers("quickstart"), *map(parse_assignment, (*SETS, *sets))])
    prompts = [f"prompt {number}" for number in range(ROWS)]
    return plan_power(base, plan(*SETS, *sets), prompts, Path("folder"), own=True)  # type: ignore[arg-type]


def test_plan_power_of_the_pilots_own_plan(content: dict[str, Any]) -> None:
    cells = plan(*SETS)
    content |= planted_results(cells, {0: 0, 5: 0, 10: 0}, seed_spread=0.02)
    results = SweepResults(cells, content)
    base, *arms = (results.values(HELD_OUT_LOSS, arm) for arm in results.arms)
    found = compare_arms(base, arms, results.weights(HELD_OUT_LOSS, results.arms[0]), comparisons=2)
    power = planned()
    assert (power.seeds, power.prompts, power.pilot_seeds, power.delta) == (3, ROWS, 3, 0.01)
    effects = [difference.detectable for difference in found]
    assert min(effects) <= power.detectable <= max(effects)  # type: ignore[type-var]
    assert power.why_not == ""
    # With more seeds the effect gets smaller, and reaches delta at the reported number.
    assert planned("sweep.seeds=8").detectable < power.detectable
    assert planned(f"sweep.seeds={power.seeds_needed}").detectable <= 0.01
    assert planned(f"sweep.seeds={power.seeds_needed - 1}").detectable > 0.01


def test_plan_power_one_planned_seed(content: dict[str, Any], tmp_path: Path) -> None:
    """The pilot is a different sweep with three seeds."""
    content |= planted_results(plan(*SETS), {0: 0, 5: 0, 10: 0}, seed_spread=0.02)
    (tmp_path / "recipe.yaml").write_text("extends: quickstart\nsweep: {alphas: [5, 10], seeds: 3}\n")
    sets = (*SETS, "sweep.seeds=1", "training.weight_decay=0.5")
    base = resolve_recipe([*read_recipe_layers("quickstart"), *map(parse_assignment, sets)])
    prompts: Any = [f"prompt {number}" for number in range(ROWS)]
    power = plan_power(base, plan(*sets), prompts, tmp_path, own=False)
    assert (power.differs, power.pilot_seeds) == (("training.weight_decay",), 3)
    cells = plan(*SETS)
    results = SweepResults(cells, content)
    base, *arms = (results.values(HELD_OUT_LOSS, arm) for arm in results.arms)
    parts = module.mean_components(compare_arms(base, arms, results.weights(HELD_OUT_LOSS, results.arms[0])), 2)
    assert power.detectable == pytest.approx(minimum_detectable_effect(parts, 1, ROWS, LEVEL / 2, ScopeId.THESE_SEEDS))
    assert power.prompts_needed is None


def test_plan_power_without_two_seeds(content: dict[str, Any]) -> None:
    cells = plan(*SETS)
    content |= planted_results([cell for cell in cells if cell.seed == 0], {0: 0, 5: 0, 10: 0})
    power = planned()
    assert (power.detectable, power.why_not) == (None, NO_PILOT)
    lines = format.estimate_lines(SweepEstimate(0.0, 1, (), {}, power=power))
    assert lines == ["all cells are finished", f"minimum detectable effect: {NO_PILOT}"]
    assert planned("sweep.metrics=[win_rate_length_controlled]").why_not.startswith("not planned for win rate")


def test_plan_power_lines_state_the_numbers(content: dict[str, Any]) -> None:
    content |= planted_results(plan(*SETS), {0: 0, 5: 0, 10: 0}, seed_spread=0.02)
    power = planned()
    first, second = format.estimate_lines(SweepEstimate(0.0, 1, (), {}, power=power))[1:]
    assert first.endswith(f"with 3 seeds and {ROWS} prompts (power 80 %, variance of 3 seeds of folder)")
    assert second.startswith("to detect an effect of 0.01")
    assert f"takes about {power.seeds_needed} seeds" in second


def test_plan_power_rejects_a_pilot_without_two_seeds(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text("extends: quickstart\n")
    base = resolve_recipe(read_recipe_layers("quickstart"))
    with pytest.raises(InputError, match="the pilot needs two seeds that are finished both with noise and without"):
        plan_power(base, plan(*SETS), [], tmp_path, own=False)
