"""The recipes that ship with the tool, and how a name or path becomes a file."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from pathlib import Path

import neftcli
from neftcli.errors import Problem, RecipeError
from neftcli.system.paths import closest_path

SUFFIXES = (".yaml", ".yml")
LIST = "neft recipes    to see the recipes that ship"


def recipes_folder() -> Path:
    """The folder of shipped recipes: inside an installed package, beside the package in a checkout."""
    package = Path(neftcli.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes() -> list[str]:
    """Names of the shipped recipes, quickstart first."""
    return sorted(
        (path.stem for path in recipes_folder().glob("*.yaml")), key=lambda name: (name != "quickstart", name)
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system would have
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def find_recipe(name_or_path: str, beside: Path | None = None, origin: str = "--recipe") -> Path:
    """The file of a recipe.

    Args:
        name_or_path: A path (with a slash or a .yaml ending) or the name of a shipped recipe.
        beside: A folder that relative paths start from; the current folder if None.
        origin: Where the name was typed, for the message.

    Raises:
        RecipeError: There is no such file or recipe.
    """
    path = Path(name_or_path)
    file = path if path.is_absolute() or beside is None else beside / path
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        _require_recipe(file, name_or_path, origin)
        if not _is_file(file):
            raise RecipeError(
                Problem(f"{origin}: there is no recipe file of this name", name_or_path, LIST, closest_path(file))
            )
        return file
    shipped = recipes_folder() / f"{name_or_path}.yaml"
    if not _is_file(shipped):
        _require_recipe(file, name_or_path, origin)
        nearest = "".join(get_close_matches(name_or_path, list_recipes(), n=1))
        raise RecipeError(Problem(f"{origin}: there is no recipe of this name", name_or_path, LIST, nearest))
    return shipped


def _require_recipe(path: Path, name: str, origin: str) -> None:
    """Refuses what is there and is no recipe.

    Raises:
        RecipeError: It is a folder, or a file that does not end in .yaml.
    """
    inside = path / "recipe.yaml"
    if name and _is_folder(path):
        hint = f"--recipe {shlex.quote(str(inside))}" if inside.is_file() else LIST
        raise RecipeError(Problem(f"{origin}: a recipe is a file, and this is a folder", name, hint))
    if path.suffix not in SUFFIXES and _is_file(path):
        hint = f"--dataset {shlex.quote(name)}    if it holds rows; a recipe ends in .yaml"
        raise RecipeError(Problem(f"{origin}: a recipe file ends in .yaml", name, hint))
