"""The recipes that ship with the tool, and how a name or path becomes a file."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import neftcli
from neftcli.errors import Problem, RecipeError
from neftcli.recipe.nearest import nearest_path

LIST = "neft recipes    to see the recipes that ship"


def folder() -> Path:
    """The folder of shipped recipes: inside an installed package, beside the package in a checkout."""
    package = Path(neftcli.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes, quickstart first."""
    return sorted((path.stem for path in folder().glob("*.yaml")), key=lambda name: (name != "quickstart", name))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def find(name_or_path: str, beside: Path | None = None, origin: str = "--recipe") -> Path:
    """The file of a recipe.

    Args:
        name_or_path: A path (with a slash or a .yaml ending) or the name of a shipped recipe.
        beside: A folder that relative paths start from; the current folder if None.
        origin: Where the name was typed, for the message.

    Raises:
        RecipeError: There is no such file or recipe.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        file = path if path.is_absolute() or beside is None else beside / path
        if not _is_file(file):
            raise RecipeError(
                Problem(f"{origin}: there is no recipe file of this name", name_or_path, LIST, nearest_path(file))
            )
        return file
    shipped = folder() / f"{name_or_path}.yaml"
    if not _is_file(shipped):
        nearest = f"./{name_or_path}" if _is_file(path) else "".join(get_close_matches(name_or_path, names(), n=1))
        raise RecipeError(Problem(f"{origin}: there is no recipe of this name", name_or_path, LIST, nearest))
    return shipped
