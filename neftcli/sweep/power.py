"""Minimum detectable effect of a planned sweep, from the variance of finished cells: its own, or those of a pilot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from neftcli.data.splits import normalize_prompt
from neftcli.data.tokens import instruction
from neftcli.errors import InputError, Problem
from neftcli.events import PowerAnalysis, ScopeId
from neftcli.metrics.registry import label
from neftcli.recipe.loading import load_recipe, read_recipe_layers, recipe_differences, resolve_recipe
from neftcli.runs.directory import CELLS, RECIPE
from neftcli.statistics.crossed import (
    SHARED_BASELINE,
    ArmDifference,
    VarianceComponents,
    compare_arms,
    minimum_detectable_effect,
    select_complete,
)
from neftcli.statistics.paired import LEVEL, MIN_PROMPTS
from neftcli.statistics.planning import required_sizes
from neftcli.sweep.cell_runs import CellRuns, read_evaluation
from neftcli.sweep.delta import gain_of_training, losses_before, resolve_delta
from neftcli.sweep.plan import Cell, arms_of, baseline_of, plan_cells
from neftcli.sweep.results import WIN_RATES, SweepResults

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.rows.example import Example

NO_PILOT = "unknown until cells of two seeds are finished; --pilot SWEEP uses the variance of a different sweep"


def plan_power(
    base: Recipe, cells: Sequence[Cell], held_out: Iterable[Example], folder: Path, *, own: bool
) -> PowerAnalysis:
    """Compute the minimum detectable effect of a planned sweep, and the sizes that would detect its delta.

    The variance components are the means over the pilot's arms; the degrees of freedom of the seeds' part are those of
    the planned arms (of the baseline with the fewest), because the sweep estimates again what the pilot only
    anticipates. The level is that of the strictest step of Holm's correction over the planned comparisons.

    Args:
        base: The planned sweep's recipe.
        cells: Its cells.
        held_out: Its held-out examples.
        folder: Folder of the pilot.
        own: The pilot is the planned sweep itself; unfinished cells are then no error.

    Raises:
        InputError: The pilot is a different sweep without two seeds that are finished both with noise and without.
    """
    metric = base.sweep.metrics[0]
    prompts = len({normalize_prompt(instruction(example)) for example in held_out})
    plan = PowerAnalysis(metric, base.sweep.seeds, prompts, why_not=NO_PILOT)
    if metric == "tasks" or metric in WIN_RATES:
        return replace(plan, why_not=f"not planned for {label(metric)}, whose variance cells don't keep")
    pilot_cells = list(cells)
    if not own:
        layers = read_recipe_layers(str(folder / RECIPE), as_written=True)
        pilot_cells = plan_cells(resolve_recipe(layers), layers)
    runs = CellRuns(folder / CELLS)
    evaluations: dict[str, Any] = {}
    paths = []
    for cell in pilot_cells:
        run = runs.finished(cell.key)
        evaluation = read_evaluation(run, cell.recipe) if run else None
        if run is not None and evaluation is not None:
            evaluations[cell.key] = evaluation
            paths.append(run.path)
    results = SweepResults(pilot_cells, evaluations)
    pilot = _compare_pilot(results, metric)
    if not pilot:
        if own:
            return plan
        problem = "the pilot needs two seeds that are finished both with noise and without"
        hint = f"neft sweep-alpha {quote(str(folder))} --seeds 2"
        raise InputError(Problem(f"--pilot: {problem}", str(folder), hint))
    noised = [arm for arm in arms_of(cells) if arm.alpha]
    if not noised:
        return replace(plan, why_not="no arm has noise")
    comparisons = len(noised) * sum(len(base.evaluation.tasks) if name == "tasks" else 1 for name in base.sweep.metrics)
    arms = min(Counter(map(baseline_of, noised)).values())
    components = mean_components(pilot, arms)
    if components.unknown():
        return replace(plan, why_not="nothing varies in the pilot")
    before = losses_before(paths)
    delta = resolve_delta(base.sweep.delta, metric, gain_of_training(results, before))
    seeds = base.sweep.seeds
    planned = replace(pilot[0], components=components, seeds=max(2, seeds), n=prompts, comparisons=comparisons)
    more = None if delta is None else required_sizes(planned, delta)
    scope = ScopeId.NEW_SEEDS if seeds > 1 else ScopeId.THESE_SEEDS
    return replace(
        plan,
        pilot=str(folder),
        pilot_seeds=max(difference.seeds for difference in pilot),
        detectable=minimum_detectable_effect(components, seeds, prompts, LEVEL / comparisons, scope),
        delta=delta,
        seeds_needed=more.seeds if more else None,
        prompts_needed=more.prompts if more and seeds > 1 else None,
        differs=() if own else tuple(recipe_differences(load_recipe(str(folder / RECIPE)), base)),
        why_not="",
    )


def _compare_pilot(results: SweepResults, metric: str) -> list[ArmDifference]:
    """Compare arms of two seeds or more with their baselines; leave out those that vary unusually, if others remain."""
    compared: list[ArmDifference] = []
    for baseline in dict.fromkeys(baseline_of(arm) for arm in results.arms if arm.alpha):
        first, weights, prompts = (
            results.values(metric, baseline),
            results.weights(metric, baseline),
            results.prompts(metric),
        )
        columns = []
        for arm in results.arms:
            if arm.alpha and baseline_of(arm) == baseline:
                (values, _), _, kept = select_complete([first, results.values(metric, arm)], weights, prompts)
                if len(values) > 1 and len(set(kept or ())) >= MIN_PROMPTS:
                    columns.append(results.values(metric, arm))
        if columns:
            compared += compare_arms(first, columns, weights, prompts=prompts)
    return [difference for difference in compared if not difference.uneven] or compared


def mean_components(pilot: Sequence[ArmDifference], arms: int) -> VarianceComponents:
    """Return the pilot's mean components, with the degrees of freedom of `arms` arms of a baseline."""
    parts = [difference.components for difference in pilot if difference.components is not None]
    return VarianceComponents(
        seed=float(np.mean([part.seed or 0.0 for part in parts])),
        prompt=float(np.mean([part.prompt for part in parts])),
        residual=float(np.mean([part.residual or 0.0 for part in parts])),
        freedom=arms / (1 + (arms - 1) * SHARED_BASELINE**2),
    )
