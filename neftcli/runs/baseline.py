"""Find the paired run, the baseline of a run with noise or the reverse, and the sweep that compares their alphas."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from neftcli.errors import InputError
from neftcli.events import PairedRun
from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.schema import Neftune, Recipe
from neftcli.runs.directory import CELLS, RECIPE, RunDirectory

SEEDS = 6
"""Seeds of the suggested sweep: enough for a claim about new seeds, and for early stopping."""


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


def alpha_sweep_command(run: Path, alphas: Collection[float], changed: Collection[str]) -> str | None:
    """Return the command that compares alphas over several seeds, with the recipe of a run; a cell's sweep has it.

    Args:
        run: Folder of the run with noise.
        alphas: Alphas of the two runs.
        changed: Options in which their recipes differ.

    Returns:
        None if they differ in more than noise and seed, or not in alpha.
    """
    alphas = sorted(set(alphas))
    noise = {path for path in changed if path.startswith("neftune.")}
    same_noise = 0.0 in alphas or noise <= {"neftune.alpha"}
    if len(alphas) < 2 or set(changed) - noise - {"training.seed"} or not same_noise:
        return None
    sweep = run.parent.parent
    if run.parent.name == CELLS and (sweep / RECIPE).is_file():  # a cell: its sweep has the other cells
        return f"neft sweep-alpha {shlex.quote(str(sweep))} --seeds {SEEDS}"
    recipe = shlex.quote(str(run / RECIPE))
    return f"neft sweep-alpha --recipe {recipe} --alphas {','.join(f'{alpha:g}' for alpha in alphas)} --seeds {SEEDS}"


def _is_finished(folder: Path, recipe_sha256: str) -> bool:
    try:
        record = RunDirectory(folder).record()
    except InputError:
        return False
    return record["status"] == "finished" and record["recipe_sha256"] == recipe_sha256
