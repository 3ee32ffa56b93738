"""The cells of a sweep.

Oracle: products written out by hand, and recipes resolved one at a time.
"""

from __future__ import annotations

import pytest

from neftcli.errors import InputError, RecipeError
from neftcli.recipe.loading import load_recipe, parse_assignment, read_recipe_layers, recipe_fingerprint, resolve_recipe
from neftcli.sweep.plan import Arm, Cell, arms_of, baseline_of, plan_cells


def cells_of(*sets: str) -> list[Cell]:
    layers = [*read_recipe_layers("quickstart"), *map(parse_assignment, sets)]
    return plan_cells(resolve_recipe(layers), layers)


def test_plan_cells_order() -> None:
    cells = cells_of("sweep.alphas=[5, 10]", "sweep.seeds=2", "training.seed=7")
    assert [(cell.seed, cell.arm.alpha) for cell in cells] == [(7, 0), (7, 5), (7, 10), (8, 0), (8, 5), (8, 10)]
    assert [arm.name() for arm in arms_of(cells)] == ["alpha 0", "alpha 5", "alpha 10"]


def test_plan_cells_cell_is_an_ordinary_run() -> None:
    """Its key is the recipe's fingerprint, and is the same in a different sweep."""
    [cell] = [cell for cell in cells_of("sweep.seeds=2", "adapter.type=lora") if (cell.arm.alpha, cell.seed) == (10, 1)]
    sets = ("neftune.alpha=10", "training.seed=1", "adapter.type=lora")
    alone = load_recipe("quickstart", map(parse_assignment, sets))
    assert cell.key == recipe_fingerprint(cell.recipe) == recipe_fingerprint(alone)
    others = cells_of("sweep.seeds=4", "adapter.type=lora", "sweep.alphas=[10]", "evaluation.samples=0")
    assert cell.key in {other.key for other in others}


def test_plan_cells_grid() -> None:
    cells = cells_of(
        "sweep.alphas=[5]",
        "sweep.seeds=1",
        "sweep.grid=['training.learning_rate=1e-5,5e-5', 'adapter.type=none,lora']",
    )
    found = [
        (cell.recipe.training.learning_rate, cell.recipe.adapter.type, cell.recipe.neftune.alpha) for cell in cells
    ]
    assert found == [(rate, kind, alpha) for rate in (1e-5, 5e-5) for kind in ("none", "lora") for alpha in (0, 5)]
    assert cells[1].arm.id() == "neftune.alpha=5 training.learning_rate=1e-05 adapter.type=none"
    assert cells[1].arm.name() == "alpha 5, learning_rate 1e-05, type none"
    assert len({cell.recipe.run_name() for cell in cells}) == len({cell.key for cell in cells}) == 8


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("training.learning_rate", "--grid takes KEY=VALUE,VALUE"),
        ("training.learning_rat=1", "training.learning_rat is not an option"),
        ("training.learning_rate=1e-5,fast", "must be a finite number, above 0"),
        ("neftune.alpha=1,2", "this option can't be swept in a grid"),
        ("training.seed=1,2", "this option can't be swept in a grid"),
        ("data.max_rows=10,20", "this option can't be swept in a grid"),
        ("sweep.seeds=1,2", "this option can't be swept in a grid"),
        ("evaluation.generation.max_new_tokens=3,4", "this option can't be swept in a grid"),
        ("evaluation.samples=0,1", "this option can't be swept in a grid"),
        ("checkpoints.save_steps=1,2", "this option can't be swept in a grid"),
        ("output_dir=a,b", "this option can't be swept in a grid"),
        ("name=a,b", "this option can't be swept in a grid"),
        ("about=a,b", "this option can't be swept in a grid"),
        ("training.weight_decay=1,1.0", "a value is given twice"),
        ("=1,2", "--grid takes KEY=VALUE,VALUE"),
        ("training.learning_rate=1e-4,1e-4", "a value is given twice"),
        ("training.learning_rate=1e-4,,2e-4", "this is not YAML"),
    ],
)
def test_plan_cells_invalid_grid(axis: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cells_of(f"sweep.grid=['{axis}']")


def test_plan_cells_list_as_a_value_of_a_grid() -> None:
    cells = cells_of(
        "sweep.seeds=1", "adapter.type=lora", "sweep.grid=['adapter.target_modules=[q_proj,k_proj],all-linear,']"
    )
    assert {cell.recipe.adapter.target_modules for cell in cells} == {("q_proj", "k_proj"), "all-linear"}
    assert cells[0].arm.name() == "alpha 0, target_modules [q_proj, k_proj]"


def test_arms_have_different_names_if_their_values_agree_in_six_digits() -> None:
    """Arms are listed by name, so a shared one would hide an arm."""
    cells = cells_of(
        "sweep.seeds=1", "sweep.alphas=[5, 5.0000001]", "sweep.grid=['training.learning_rate=1e-5,1.0000001e-5']"
    )
    names = [arm.name() for arm in arms_of(cells)]
    assert len(names) == len(set(names)) == 6
    assert names[-1] == "alpha 5.0000001, learning_rate 1.0000001e-05"


def test_plan_cells_one_baseline_for_noise_options() -> None:
    """The baseline is trained once per seed, with the recipe's own noise section, for all noised arms."""
    cells = cells_of(
        "sweep.alphas=[5]",
        "sweep.seeds=2",
        "sweep.grid=['neftune.noise=uniform,gaussian', 'training.learning_rate=1e-5,5e-5']",
    )
    assert [cell.arm.name() for cell in cells[:6]] == [
        "alpha 0, learning_rate 1e-05",
        "alpha 5, noise uniform, learning_rate 1e-05",
        "alpha 0, learning_rate 5e-05",
        "alpha 5, noise uniform, learning_rate 5e-05",
        "alpha 5, noise gaussian, learning_rate 1e-05",
        "alpha 5, noise gaussian, learning_rate 5e-05",
    ]
    assert len(cells) == len({cell.key for cell in cells}) == len({cell.recipe.run_name() for cell in cells}) == 12
    planned = {cell.arm for cell in cells}
    for cell in cells:
        baseline = baseline_of(cell.arm)
        assert baseline in planned
        rates = {other.recipe.training.learning_rate for other in cells if other.arm == baseline}
        assert rates == {cell.recipe.training.learning_rate}
    [alone] = {cell.key for cell in cells_of("sweep.seeds=1", "training.learning_rate=1e-5") if cell.arm == Arm(0.0)}
    assert cells[0].key == alone


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 80, "ä"])
def test_plan_cells_invalid_name(name: str) -> None:
    """The name is also that of the sweep's folder, so it is checked before any cell."""
    with pytest.raises(RecipeError, match="name: a sweep's name has at most 64 letters"):
        cells_of(f"name='{name}'")


@pytest.mark.parametrize(("room", "grid"), [(len("-a5-s0"), "[]"), (len("-g0-a5-s0"), "['adapter.type=none,lora']")])
def test_plan_cells_name_too_long_for_a_cell(room: int, grid: str) -> None:
    sets = ["sweep.alphas=[5]", "sweep.seeds=1", f"sweep.grid={grid}"]
    assert {len(cell.recipe.run_name()) for cell in cells_of(f"name={'x' * (64 - room)}", *sets)} == {64}
    with pytest.raises(InputError, match="name: a run's name has at most 64 letters"):
        cells_of(f"name={'x' * (65 - room)}", *sets)
