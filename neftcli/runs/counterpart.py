"""The run that another is compared with: the same but for the noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from neftcli.events import Counterpart
from neftcli.recipe.loading import fingerprint
from neftcli.recipe.schema import Neftune, Recipe
from neftcli.runs.directory import RECORD, RunDirectory


def find_counterpart(recipe: Recipe, parent: Path) -> Counterpart:
    """The run by `recipe` without noise, or with the usual noise if `recipe` has none, in the folder `parent`.

    Where there is none yet, the folder that it would get.
    """
    alpha = 0.0 if recipe.neftune.alpha else Neftune().alpha
    other = replace(recipe, neftune=replace(recipe.neftune, alpha=alpha))
    for place in RunDirectory.places(parent, other.run_name()):
        if not place.exists():
            return Counterpart(str(place), alpha, exists=False)
        if _is_finished(place, fingerprint(other)):
            return Counterpart(str(place), alpha, exists=True)
    raise AssertionError("there is always another place")


def _is_finished(folder: Path, recipe_sha256: str) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(record, dict) and record.get("status") == "finished" and record.get("recipe_sha256") == recipe_sha256
    )
