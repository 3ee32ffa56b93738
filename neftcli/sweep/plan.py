"""The cells of a sweep: each an ordinary recipe, known by the hash of all that determines its weights.

arms  = grid points x alphas     (alpha 0, the baseline, with each grid point but for the noise's own options)
cells = arms x seeds             (seed by seed, so that a sweep that is stopped early is whole for fewer seeds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError
from neftcli.events.sweep import arm_name
from neftcli.recipe.loading import NOT_HASHED, recipe_fingerprint, resolve_recipe
from neftcli.recipe.yaml_file import Setting, read_value
from neftcli.runs.directory import NAME, require_valid_name

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

OWN = {"neftune.alpha": "--alphas 0,5,10", "training.seed": "--seeds 3"}
OTHER_RUNS = ("data", *NOT_HASHED)
"""No axes: cells of other rows can't be compared, and by the others weights are the same."""
OF_NOISE = "neftune."


@dataclass(frozen=True)
class Arm:
    """A way of training that is compared with others.

    Attributes:
        alpha: NEFTune's alpha.
        grid: The other swept options as (dotted key, value); empty without a grid.
    """

    alpha: float
    grid: tuple[tuple[str, Any], ...] = ()

    def label(self) -> str:
        """The other swept options in words: "learning_rate 1e-05"."""
        return ", ".join(f"{key.rpartition('.')[2]} {_plain(value)}" for key, value in self.grid)

    def name(self) -> str:
        """The whole arm in words."""
        return arm_name(self.alpha, self.label())


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        arm: What is compared.
        seed: Its training seed.
        recipe: All of it, as `neft train` would take it.
        key: The hash of what determines its weights.
    """

    arm: Arm
    seed: int
    recipe: Recipe
    key: str


def plan_cells(base: Recipe, layers: Sequence[Layer]) -> list[Cell]:
    """The cells of a recipe's `sweep` section, seed by seed.

    Args:
        base: The recipe resolved from `layers`.
        layers: What it was resolved from; a grid's options are laid over them and checked like any other.

    Raises:
        RecipeError: A grid names no option, an option or a value twice, or a value that can't be; or the name can't be
            a folder's.
        InputError: With what is written behind it, the name is too long for a cell.
    """
    if not NAME.fullmatch(base.name):  # the sweep's folder has it, and the runs in it
        said = "name: a sweep's name has letters, digits, dot, underscore and hyphen, at most 64"
        raise RecipeError(Problem(said, base.name, "--name my-sweep"))
    sweep = base.sweep
    alphas = sorted({0.0, *sweep.alphas})
    points = _grid(sweep.grid)
    cells: dict[tuple[Arm, int], Cell] = {}
    for seed, point, alpha in product(range(sweep.seeds), range(len(points)), alphas):
        arm = Arm(alpha, tuple((key, setting.value) for key, setting in points[point].items()))
        arm = arm if alpha else baseline_of(arm)
        if (arm, seed) in cells:  # alpha 0, at another point of the noise
            continue
        recipe = resolve_recipe([*layers, points[point]]) if points[point] else base
        recipe = replace(
            recipe,
            name=f"{base.name}-g{point}" if len(points) > 1 else base.name,
            neftune=replace(recipe.neftune if alpha else base.neftune, alpha=alpha),
            training=replace(recipe.training, seed=base.training.seed + seed),
        )
        require_valid_name(recipe.run_name())
        cells[arm, seed] = Cell(arm, recipe.training.seed, recipe, recipe_fingerprint(recipe))
    assert len({cell.key for cell in cells.values()}) == len(cells)  # noqa: S101 - every axis is hashed
    return list(cells.values())


def arms_of(cells: Sequence[Cell]) -> list[Arm]:
    """The arms, in the order of the plan."""
    return list(dict.fromkeys(cell.arm for cell in cells))


def baseline_of(arm: Arm) -> Arm:
    """The arm without noise that an arm is compared with: the same but for alpha and the noise's other options."""
    return Arm(0.0, tuple(pair for pair in arm.grid if not pair[0].startswith(OF_NOISE)))


def _grid(texts: Sequence[str]) -> list[Layer]:
    """The points of a grid, as layers; one empty layer without a grid."""
    axes: dict[str, list[Setting]] = {}
    problems = []
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        origin = f"--grid {key}"
        if not (key and equals and values):
            problems.append(Problem("--grid takes KEY=VALUE,VALUE", text, "--grid training.learning_rate=1e-5,5e-5"))
        elif key in OWN or key.partition(".")[0] in OTHER_RUNS:
            problems.append(
                Problem(f"{origin}: this can't be an axis of the grid", text, OWN.get(key, "a sweep for each"))
            )
        elif key in axes:
            problems.append(
                Problem(f"{origin}: this axis is given twice", text, f"--grid {key}=..., all values together")
            )
        else:
            points = read_value(f"[{values}]", origin)  # a list of YAML's, so that a value can be one, too
            axes[key] = [Setting(value, origin, text) for value in points]
            if any(value in points[:place] for place, value in enumerate(points)):
                problems.append(Problem(f"{origin}: a value is given twice", text, "each value once"))
    if problems:
        raise RecipeError(*problems)
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
