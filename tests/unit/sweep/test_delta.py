"""The smallest effect of interest.

Oracles: arithmetic by hand, and the parts of an error message.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neftcli.errors import RecipeError
from neftcli.metrics.registry import HELD_OUT_LOSS, WIN_RATE, label
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.sweep.delta import gain_of_training, losses_before, resolve_delta
from neftcli.sweep.plan import Arm
from neftcli.sweep.results import SweepResults
from tests.unit.sweep.planted import ACCURACY, plan, planted_results


@pytest.mark.parametrize(
    ("delta", "metric", "gain", "resolved"),
    [
        (0.005, HELD_OUT_LOSS, None, 0.005),
        (0.001234567, HELD_OUT_LOSS, None, 0.001234567),
        ("0.005", WIN_RATE, None, 0.005),
        ("5e-3", ACCURACY, None, 0.005),
        ("1%", HELD_OUT_LOSS, 0.46, 0.0046),
        ("2.5%", HELD_OUT_LOSS, 0.4, 0.01),
        ("1%", HELD_OUT_LOSS, None, None),
        ("1%", HELD_OUT_LOSS, -0.2, None),
        ("auto", HELD_OUT_LOSS, 0.46, 0.0046),
        ("auto", HELD_OUT_LOSS, None, None),
        ("auto", WIN_RATE, None, 0.05),
        ("auto", ACCURACY, 0.46, None),
    ],
)
def test_resolve_delta(delta: float | str, metric: str, gain: float | None, resolved: float | None) -> None:
    assert resolve_delta(delta, metric, gain) == (None if resolved is None else pytest.approx(resolved))


@pytest.mark.parametrize("delta", ["abc", "-1%", "0", "0%", "nan", "inf%", "%", "1%%", -1.0, 0.0, float("nan")])
def test_resolve_delta_rejects_an_invalid_amount(delta: str | float) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_delta(delta, HELD_OUT_LOSS, 0.5)
    [problem] = caught.value.problems
    assert problem.message.startswith("--delta (sweep.delta) must be a number above 0")
    argument = f"{delta:g}" if isinstance(delta, float) else delta
    assert (problem.got, problem.hint) == (argument, "--delta 0.005 or --delta 1%")


@pytest.mark.parametrize(
    ("delta", "metric", "hint"),
    [
        ("200%", HELD_OUT_LOSS, "--delta 1%"),
        (5.0, WIN_RATE, "--delta 0.05"),
        ("12", ACCURACY, "--delta 0.12"),
        (300.0, "exact_match", "--delta 0.05"),
    ],
)
def test_resolve_delta_rejects_more_than_the_maximum(delta: str | float, metric: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_delta(delta, metric, 0.5)
    [problem] = caught.value.problems
    assert problem.message.startswith("--delta (sweep.delta)")
    assert (problem.got, problem.hint) == (f"{delta:g}" if isinstance(delta, float) else delta, hint)


@pytest.mark.parametrize(("delta", "metric"), [("100%", HELD_OUT_LOSS), (2.5, HELD_OUT_LOSS), (0.999, WIN_RATE)])
def test_resolve_delta_accepts_up_to_the_maximum(delta: str | float, metric: str) -> None:
    assert resolve_delta(delta, metric, 0.5) == (delta if isinstance(delta, float) else 0.5)


@pytest.mark.parametrize("argument", ["1%", "2%"])
@pytest.mark.parametrize("metric", [WIN_RATE, ACCURACY])
def test_resolve_delta_rejects_a_percentage_without_a_base_value(metric: str, argument: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_delta(argument, metric, 0.5)
    [problem] = caught.value.problems
    assert problem.got == f"{argument} with {label(metric)}"
    assert problem.hint == "--delta 0.05    in the metric's unit; 0.05 is 5 points"


@pytest.mark.parametrize(("argument", "value"), [("0.005", 0.005), ("'0.005'", "0.005"), ("1%", "1%")])
def test_resolve_recipe_delta_as_a_number_or_a_percentage(argument: str, value: float | str) -> None:
    assert (
        resolve_recipe([*read_recipe_layers("quickstart"), parse_assignment(f"sweep.delta={argument}")]).sweep.delta
        == value
    )


def test_gain_of_training_first_three_seeds_of_the_best_baseline() -> None:
    cells = plan("sweep.alphas=[5]", "sweep.seeds=4", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    content = planted_results(cells, {0: 0, 5: -9.0})
    for cell in cells:
        if cell.recipe.training.learning_rate == 5e-5 or cell.seed == 3:  # worse, or too late
            metric = content[cell.key]["metrics"][HELD_OUT_LOSS]
            metric["values"] = [
                value + 0.5 * weight for value, weight in zip(metric["values"], metric["weights"], strict=True)
            ]
    results = SweepResults(cells, content)
    losses = results.per_seed(HELD_OUT_LOSS, Arm(0.0, (("training.learning_rate", 1e-5),)))
    assert gain_of_training(results, [9.0, 9.0]) == pytest.approx(9 - sum(losses[:3]) / 3)  # type: ignore[arg-type]
    assert gain_of_training(results, []) is None
    assert gain_of_training(SweepResults(cells, {}), [9.0]) is None


def test_losses_before_reads_step_0_and_skips_damaged_files(tmp_path: Path) -> None:
    lines = [{"event": "training.evaluated", "step": step, "held_out_loss": 3.0 - step} for step in (0, 1)]
    for name, text in (("whole", "\n".join(map(json.dumps, lines))), ("damaged", "{"), ("late", json.dumps(lines[1]))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    assert losses_before(tmp_path / name for name in ("whole", "damaged", "late", "missing")) == [3.0]
