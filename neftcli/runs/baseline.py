"""Find the paired run: the baseline of a run with noise, or the run with noise of a baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neftcli.errors import InputError
from neftcli.events import PairedRun
from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.schema import Neftune, Recipe
from neftcli.runs.directory import RunDirectory


def find_paired_run(recipe: Recipe, parent: Path) -> PairedRun:
    """Find the run that differs from `recipe` only in its noise.

    It has alpha 0, or the default alpha if `recipe` has alpha 0. If there is no such finished run in `parent`, return
    the folder that it would get.
    """
    alpha = 0.0 if recipe.neftune.alpha else Neftune().alpha
    paired = replace(recipe, neftune=replace(recipe.neftune, alpha=alpha))
    for path in RunDirectory.candidate_paths(parent, paired.run_name()):
        if not path.exists():
            return PairedRun(str(path), alpha, exists=False)
        if _is_finished(path, recipe_fingerprint(paired)):
            return PairedRun(str(path), alpha, exists=True)
    raise AssertionError("candidate paths do not end")


def _is_finished(folder: Path, recipe_sha256: str) -> bool:
    try:
        record = RunDirectory(folder).record()
    except InputError:
        return False
    return record["status"] == "finished" and record["recipe_sha256"] == recipe_sha256
