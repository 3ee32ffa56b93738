"""Permission to run a model's own code: it must be typed, since a folder's recipe may be somebody else's."""

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
    """Reject a model's own code that only a file in a folder permits.

    Args:
        recipe: Recipe resolved from the file and the command line.
        typed: Layers of the command line.
        file: Recipe file in the folder.
        command: Command as typed, for the hint.

    Raises:
        RecipeError: The recipe permits the code, and the command line does not.
    """
    if recipe.model.trust_remote_code and not any(TRUST in layer for layer in typed):
        message = f"{file}: neft does not run a model's Python code only because a folder's recipe allows it"
        hint = f"read the code; if you trust it: {command} --trust-remote-code"
        raise RecipeError(Problem(message, f"{TRUST}: true", hint))
