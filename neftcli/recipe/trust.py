"""Whether code that comes with a model may run: a folder's recipe may be somebody else's, so that has to be typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

TRUST = "model.trust_remote_code"


def require_typed_trust(recipe: Recipe, typed: Sequence[Layer], file: Path, command: str) -> None:
    """Refuses to run a model's own code because a file in a folder says so.

    Args:
        recipe: Resolved from the file and what was typed.
        typed: The layers of the command line.
        file: The recipe in the folder.
        command: What was typed, for the hint.

    Raises:
        RecipeError: The code would run, and it was not typed that it may.
    """
    if recipe.model.trust_remote_code and not any(TRUST in layer for layer in typed):
        raise RecipeError(
            Problem(
                f"{file}: Python code that comes with a model does not run because a folder's recipe says so",
                f"{TRUST}: true",
                f"read the code; if you trust it: {command} --trust-remote-code",
            )
        )
