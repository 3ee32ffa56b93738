"""Estimate how long a sweep will take: from its finished cells, or from a few real steps on this machine.

total = start of the command + the cells in their order, each given to the worker that is free first
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from neftcli.evaluation.metrics import WIN_RATE_LENGTH_CONTROLLED
from neftcli.events import CellEstimate, Observer, SweepEstimate
from neftcli.sweep.cell import finished_run, measured
from neftcli.sweep.cell_costs import BEGUN, Costs
from neftcli.sweep.engines.local_engine import devices
from neftcli.sweep.timing_probe import HARMLESS, probed
from neftcli.training.assets import assets_key

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell


@dataclass(frozen=True)
class Job:
    """A cell to train: its seconds, and those of start-up before it if its worker has not just used its `assets`."""

    seconds: float
    start: float = 0.0
    assets: str = ""


def spread(jobs: Sequence[Job], workers: int) -> float:
    """Compute the seconds until all are done, in their order, each by the worker that is free first."""
    free: list[tuple[float, int, str | None]] = [(0.0, number, None) for number in range(workers)]
    for job in jobs:
        until, number, assets = free[0]
        start = 0.0 if assets == job.assets else job.start
        heapq.heapreplace(free, (until + start + job.seconds, number, job.assets))
    return max(until for until, _, _ in free)


def way(recipe: Recipe) -> str:
    """Collect all of a recipe that its time depends on; cells with the same take equally long."""
    symmetric = recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0  # twice the work an update
    schedule: dict[str, Any] = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "learning_rate": HARMLESS}
    training = replace(recipe.training, seed=0, weight_decay=0.0, max_grad_norm=1.0, **schedule)
    parts = (recipe.model, recipe.data, symmetric, recipe.adapter, recipe.quantization, training, recipe.evaluation)
    return repr((*parts, recipe.sweep.answers))


def estimate(
    cells: Sequence[Cell], engine: str, early_stopping: bool, observer: Observer, *, own_start: float = 0.0
) -> SweepEstimate:
    """Estimate how long the cells that are not done will take. Nothing is made in their folder.

    Args:
        cells: All of the sweep.
        engine: local or ray.
        early_stopping: Fewer cells may be needed.
        observer: Is told what is timed.
        own_start: Seconds that this command took to read and tokenise the rows, which the sweep will take again.

    Raises:
        InputError: The model or the rows can't be used.
        NeftError: A few updates could not be done, as for want of memory.
    """
    recorded: dict[str, list[tuple[float, float]]] = defaultdict(list)
    left: list[tuple[Cell, bool]] = []  # and whether it is trained
    for cell in cells:
        run = finished_run(Path(cell.recipe.output_dir), cell.key)
        content = measured(run, cell.recipe) if run else None
        if run is None or content is None:
            left.append((cell, run is not None))
        elif "seconds" in content:
            training = run.record()["results"]["seconds"]
            recorded[way(cell.recipe)].append((training, content["seconds"]))
    unknown: dict[str, Recipe] = {}
    for recipe in (cell.recipe for cell, _ in left if way(cell.recipe) not in recorded):
        unknown.setdefault(way(recipe), recipe)
    found, workers = probed(unknown, observer) if unknown else ({}, 0)
    workers = 1 if engine == "ray" or not left else workers or len(devices())
    jobs = [_job(cell.recipe, trained, recorded, found) for cell, trained in left]
    pairs = zip((cell for cell, _ in left), jobs, strict=True)
    ways = {way(cell.recipe) for cell, _ in left}
    timed = {"finished cells": sum(len(seconds) for known, seconds in recorded.items() if known in ways)}
    for costs in found.values():
        timed |= {name: timed.get(name, 0) + number for name, number in costs.timed.items()}
    recipe = left[0][0].recipe if left else cells[0].recipe
    uncounted = {
        "tasks": bool(found and recipe.evaluation.tasks),
        "the judge": WIN_RATE_LENGTH_CONTROLLED in recipe.sweep.metrics,
    }
    return SweepEstimate(
        seconds=own_start + spread(jobs, workers) if jobs else 0.0,
        workers=max(1, min(workers, len(left))),
        cells=tuple(CellEstimate(one.key[:8], one.arm.name(), one.seed, job.seconds) for one, job in pairs),
        parts=found[way(recipe)].cell(recipe) if len({job.seconds for job in jobs}) == len(found) == 1 else {},
        timed={name: number for name, number in timed.items() if number},
        shared=_shared(cells),
        answer_tokens=recipe.evaluation.generation.max_new_tokens if timed.get(BEGUN) else None,
        uncounted=tuple(name for name, used in uncounted.items() if used),
        engine=engine,
        early_stopping=early_stopping,
        own_start=own_start,
        worker_start=max(job.start for job in jobs) if found else None,
    )


def _job(
    recipe: Recipe, trained: bool, recorded: Mapping[str, Sequence[tuple[float, float]]], found: Mapping[str, Costs]
) -> Job:
    """A cell as a job, of which the training may be done: by the mean of cells like it, or by what parts take."""
    if way(recipe) in recorded:  # the starts of their workers are in the mean
        return Job(mean(measuring + (0.0 if trained else training) for training, measuring in recorded[way(recipe)]))
    costs = found[way(recipe)]
    parts = costs.measuring(recipe) if trained else costs.cell(recipe)
    return Job(sum(parts.values()), costs.worker(recipe), assets_key(recipe))


def _shared(cells: Sequence[Cell]) -> tuple[str, ...]:
    """State what the cells share."""
    samples = cells[0].recipe.evaluation.samples
    answers = f" and {samples} answers" if samples else ""
    again = "; model and rows again where the grid changes them"
    adapters = "" if all(cell.recipe.adapter.type == "none" for cell in cells) else "adapters' first weights, "
    return (
        "once a worker: libraries, model and tokenised rows are loaded"
        + (again if len({assets_key(cell.recipe) for cell in cells}) > 1 else ""),
        f"once a worker: the base model's losses{answers}, before training",
        f"within a seed: data order, dropout, {adapters}directions of the noise",
        "in all cells: the held-out rows",
    )
