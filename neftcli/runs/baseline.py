"""The run that another is compared with: the same but for the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neftcli.errors import InputError
from neftcli.events import PairedRun
from neftcli.recipe.loading import fingerprint
from neftcli.recipe.schema import Neftune, Recipe
from neftcli.runs.directory import RunDirectory


def find_paired_run(recipe: Recipe, parent: Path) -> PairedRun:
    """The run by `recipe` without noise, or with the usual noise if `recipe` has none, in the folder `parent`.

    Where there is none yet, the folder that it would get.
    """
    alpha = 0.0 if recipe.neftune.alpha else Neftune().alpha
    other = replace(recipe, neftune=replace(recipe.neftune, alpha=alpha))
    for place in RunDirectory.candidate_paths(parent, other.run_name()):
        if not place.exists():
            return PairedRun(str(place), alpha, exists=False)
        if _is_finished(place, fingerprint(other)):
            return PairedRun(str(place), alpha, exists=True)
    raise AssertionError("there is always another place")


def _is_finished(folder: Path, recipe_sha256: str) -> bool:
    try:
        record = RunDirectory(folder).record()
    except InputError:
        return False
    return record["status"] == "finished" and record["recipe_sha256"] == recipe_sha256
