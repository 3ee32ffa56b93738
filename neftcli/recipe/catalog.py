"""The recipes that ship with neft, and lookup of recipes by name or path."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from pathlib import Path

from neftcli.errors import Problem, RecipeError
from neftcli.system.paths import closest_path, expand_home, is_file, is_folder

SUFFIXES = (".yaml", ".yml")
LIST_RECIPES = "neft recipes    to list the shipped recipes"


def recipes_folder() -> Path:
    """Return the folder of shipped recipes: inside an installed package, next to the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, quickstart first."""
    names = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: name != "quickstart")


def find_recipe(name_or_path: str, parent: Path | None = None, origin: str = "--recipe") -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: A path (with a slash or a .yaml ending) or the name of a shipped recipe.
        parent: Folder that relative paths start from; the current folder if None.
        origin: Where the name was typed, for the message.

    Raises:
        RecipeError: There is no such file or recipe.
    """
    path = expand_home(name_or_path)
    file = path if path.is_absolute() or parent is None else parent / path
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        _reject_other_files(file, name_or_path, origin)
        if not is_file(file):
            message = f"{origin}: no such recipe file"
            raise RecipeError(Problem(message, name_or_path, LIST_RECIPES, closest_path(file)))
        return file
    shipped = recipes_folder() / f"{name_or_path}.yaml"
    if not is_file(shipped):
        _reject_other_files(file, name_or_path, origin)
        closest = "".join(get_close_matches(name_or_path, list_recipes(), n=1))
        raise RecipeError(Problem(f"{origin}: no such recipe", name_or_path, LIST_RECIPES, closest))
    return shipped


def _reject_other_files(path: Path, name: str, origin: str) -> None:
    """Reject a path that exists but is not a recipe.

    Raises:
        RecipeError: It is a folder, or a file that does not end in .yaml.
    """
    if name and is_folder(path):
        recipe = path / "recipe.yaml"
        hint = f"--recipe {shlex.quote(str(recipe))}" if recipe.is_file() else LIST_RECIPES
        raise RecipeError(Problem(f"{origin}: a recipe is a file, and this is a folder", name, hint))
    if path.suffix not in SUFFIXES and is_file(path):
        hint = f"--dataset {shlex.quote(name)}    if it contains rows; a recipe file ends in .yaml"
        raise RecipeError(Problem(f"{origin}: a recipe file ends in .yaml", name, hint))
