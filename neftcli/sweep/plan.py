"""Plan the cells of a sweep: each is an ordinary recipe, identified by the hash of what determines its weights.

arms  = grid points x alphas     (alpha 0, the baseline, once for all points that differ in options of the noise only)
cells = arms x seeds             (seed by seed, so that a sweep that stops early is complete for fewer seeds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError
from neftcli.events import arm_name
from neftcli.recipe.loading import NOT_HASHED, NOT_HASHED_OPTIONS, recipe_fingerprint, resolve_recipe
from neftcli.recipe.yaml_file import Setting, read_value
from neftcli.runs.directory import NAME, require_valid_name

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

OWN_FLAGS = {"neftune.alpha": "--alphas 0,5,10", "training.seed": "--seeds 3"}
NO_AXES = ("data", *NOT_HASHED)
"""Sections that a grid can't sweep: cells of different rows can't be compared, and the others don't change weights."""
NOISE_PREFIX = "neftune."


@dataclass(frozen=True)
class Arm:
    """An alpha with other swept options; the arms of a sweep are compared.

    Attributes:
        alpha: NEFTune's alpha.
        grid: The other swept options as (dotted key, value); empty without a grid.
    """

    alpha: float
    grid: tuple[tuple[str, Any], ...] = ()

    def id(self) -> str:
        """Return the id of the arm in events and files: "neftune.alpha=5 training.learning_rate=1e-05"."""
        return " ".join(_assignment(key, value) for key, value in (("neftune.alpha", self.alpha), *self.grid))

    def name(self) -> str:
        """Return the name of the arm: "alpha 5, learning_rate 1e-05"."""
        return arm_name(self.id())

    def label(self) -> str:
        """Return the other swept options as text, "learning_rate 1e-05"; empty without a grid."""
        return arm_name(" ".join(_assignment(key, value) for key, value in self.grid)) if self.grid else ""


@dataclass(frozen=True)
class Cell:
    """An arm with a seed.

    Attributes:
        arm: Its arm.
        seed: Its training seed.
        recipe: Its recipe, as `neft train` takes it.
        key: Hash of everything that determines its weights.
    """

    arm: Arm
    seed: int
    recipe: Recipe
    key: str

    def short_key(self) -> str:
        """Return the key as events and files show it."""
        return self.key[:8]


def plan_cells(base: Recipe, layers: Sequence[Layer]) -> list[Cell]:
    """Plan the cells of a recipe's `sweep` section, seed by seed.

    Args:
        base: The recipe resolved from `layers`.
        layers: Layers of the recipe; the grid's options are applied on top and checked like any others.

    Raises:
        RecipeError: A grid has an unknown option, an invalid value, or an option or value twice; or the name can't be
            that of a folder.
        InputError: The name is too long for a cell, whose folder has a suffix.
    """
    if not NAME.fullmatch(base.name):  # the name of the sweep's folder and of the runs in it
        message = "name: a sweep's name has at most 64 letters, digits, dots, underscores and hyphens"
        raise RecipeError(Problem(message, base.name, "--name my-sweep"))
    sweep = base.sweep
    alphas = sorted({0.0, *sweep.alphas})
    points = _grid(sweep.grid)
    cells: dict[tuple[Arm, int], Cell] = {}
    for seed, index, alpha in product(range(sweep.seeds), range(len(points)), alphas):
        point = points[index]
        arm = Arm(alpha, tuple((key, setting.value) for key, setting in point.items()))
        arm = arm if alpha else baseline_of(arm)
        if (arm, seed) in cells:  # alpha 0 at a point that differs in options of the noise only
            continue
        recipe = resolve_recipe([*layers, point]) if point else base
        recipe = replace(
            recipe,
            name=f"{base.name}-g{index}" if len(points) > 1 else base.name,
            neftune=replace(recipe.neftune if alpha else base.neftune, alpha=alpha),
            training=replace(recipe.training, seed=base.training.seed + seed),
        )
        require_valid_name(recipe.run_name())
        cells[arm, seed] = Cell(arm, recipe.training.seed, recipe, recipe_fingerprint(recipe))
    assert len({cell.key for cell in cells.values()}) == len(cells)  # noqa: S101 - every axis is hashed
    return list(cells.values())


def arms_of(cells: Sequence[Cell]) -> list[Arm]:
    """Return the arms in the order of the plan."""
    return list(dict.fromkeys(cell.arm for cell in cells))


def baseline_of(arm: Arm) -> Arm:
    """Return the baseline of an arm: alpha 0 with the same options, without those of the noise."""
    return Arm(0.0, tuple(pair for pair in arm.grid if not pair[0].startswith(NOISE_PREFIX)))


def _grid(texts: Sequence[str]) -> list[Layer]:
    """Return the points of a grid as layers; one empty layer without a grid."""
    axes: dict[str, list[Setting]] = {}
    problems = []
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        origin = f"--grid {key}"
        if not (key and equals and values):
            problems.append(Problem("--grid takes KEY=VALUE,VALUE", text, "--grid training.learning_rate=1e-5,5e-5"))
        elif key in (*OWN_FLAGS, *NOT_HASHED_OPTIONS) or key.partition(".")[0] in NO_AXES:
            problems.append(
                Problem(
                    f"{origin}: this option can't be swept in a grid",
                    text,
                    OWN_FLAGS.get(key, "run a sweep for each value"),
                )
            )
        elif key in axes:
            problems.append(
                Problem(f"{origin}: this axis is given twice", text, f"--grid {key}=..., all values together")
            )
        else:
            points = read_value(f"[{values}]", origin)  # as a YAML list, so that a value can be a list, too
            axes[key] = [Setting(value, origin, text) for value in points]
            if any(value in points[:index] for index, value in enumerate(points)):
                problems.append(Problem(f"{origin}: a value is given twice", text, "give each value once"))
    if problems:
        raise RecipeError(*problems)
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _assignment(key: str, value: Any) -> str:
    """Return an option and its value, a number with all its digits: "training.learning_rate=1e-05"."""
    if isinstance(value, float):
        short = f"{value:g}"
        value = short if float(short) == value else repr(value)
    elif isinstance(value, tuple):
        value = f"[{', '.join(map(str, value))}]"
    return f"{key}={value}"
