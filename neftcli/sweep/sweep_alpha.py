"""Run a sweep over alpha: validate, plan, estimate or run, judge, and write the report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer, SweepReport, SweepStarted
from neftcli.recipe.loading import resolve_recipe
from neftcli.runs.directory import CELLS, remove_incomplete_runs
from neftcli.sweep.cell_runs import CellRuns, report_left_out
from neftcli.sweep.folder import WORKERS_LOG, explain_interruption, lock_sweep, require_unlocked, write_recipe
from neftcli.sweep.plan import plan_cells
from neftcli.sweep.validate import (
    check_inputs,
    check_options,
    require_layers,
    require_noise,
    require_same_sweep,
    require_unchanged_inputs,
    require_whole_sweep,
)
from neftcli.system.paths import expand_home

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer
    from neftcli.sweep.engines.engine import Engine
    from neftcli.sweep.plan import Cell

ONE_SEED = "one seed can't show how results vary between seeds, so no alpha will be recommended: --seeds 3"


@dataclass(frozen=True)
class SweepRequest:
    """Arguments of `neft sweep-alpha`.

    Attributes:
        layers: The recipe and the options typed over it.
        folder: Folder of the sweep; None for one named after the recipe.
        engine: "local" or "ray".
        ray_address: Address of the Ray cluster, as ray.init takes it; None starts one on this machine.
        dry_run: Show the cells, their time and the minimum detectable effect; train nothing.
        pilot: Folder of a different sweep whose variance the dry run uses; None for the sweep's own folder.
        working_folder: Folder that the relative paths of `layers` start from; None for the current folder.
    """

    layers: tuple[Layer, ...]
    folder: Path | None = None
    engine: str = "local"
    ray_address: str | None = None
    dry_run: bool = False
    pilot: Path | None = None
    working_folder: Path | None = None


def run_sweep(request: SweepRequest, observer: Observer) -> SweepReport | None:
    """Run a sweep, skipping what is finished, and return its report; None for a dry run.

    Raises:
        InputError: The recipe, its data or the folder can't be used; nothing was started.
        SweepError: Cells failed; the others are finished and reported.
        Preempted: A stop was requested; finished cells are kept, and the others can be resumed.
        Interrupted: The sweep was stopped at once; finished cells are kept.
    """
    if request.working_folder is not None and request.folder is not None:
        pilot = request.pilot.absolute() if request.pilot else None
        request = replace(request, folder=request.folder.absolute(), pilot=pilot)
    with chdir(request.working_folder) if request.working_folder else nullcontext():
        return _run_sweep(request, observer)


def _run_sweep(request: SweepRequest, observer: Observer) -> SweepReport | None:
    started = time.perf_counter()
    base = resolve_recipe(request.layers)
    folder = request.folder or base.output_folder() / f"{base.name}-sweep"
    require_same_sweep(folder, base)
    cells = [
        replace(cell, recipe=replace(cell.recipe, output_dir=str(folder / CELLS)))
        for cell in plan_cells(base, request.layers)
    ]
    require_noise(base, cells)
    check_options(base, request.engine, request.ray_address)
    if request.pilot is not None and not request.dry_run:
        raise InputError(Problem("--pilot plans a sweep and needs --dry-run", str(request.pilot), "--dry-run"))
    require_whole_sweep(folder, cells)
    if not request.dry_run:
        require_unlocked(folder)
    # Heavy libraries are imported only now, so that bad options are rejected at once.
    from neftcli.sweep.early_stopping import stops_early

    no_futility = _has_no_delta(base)
    reference, examples, prepared = check_inputs(base, folder, observer)
    require_layers(cells, reference)
    runs = CellRuns(folder / CELLS)
    require_unchanged_inputs(runs, cells, reference, prepared)
    states = [runs.state(cell) for cell in cells]
    observer.notify(SweepStarted(str(folder), tuple(states), added_baseline=0.0 not in base.sweep.alphas))
    report_left_out(runs, cells, observer)
    report_options(base, observer, no_futility=no_futility)
    if request.dry_run:
        from neftcli.sweep.estimate import ModelTimer, estimate_sweep
        from neftcli.sweep.power import plan_power

        timer = ModelTimer(reference, prepared, observer)
        estimate = estimate_sweep(cells, runs, request.engine, timer, early_stopping=stops_early(base.sweep))
        power = plan_power(base, cells, examples.held_out, request.pilot or folder, own=request.pilot is None)
        observer.notify(replace(estimate, power=power))
        return None

    from neftcli.sweep.reporter import RESUMES, SweepReporter
    from neftcli.sweep.scheduler import SweepScheduler
    from neftcli.sweep.tracking import report_to_trackers

    resume_command = format_resume_command(folder, request, base)
    scheduler = SweepScheduler(cells, states, base.sweep, observer)
    reporter = SweepReporter(folder, base, cells, scheduler, observer, resume_command)
    with explain_interruption(folder, f"{resume_command}{RESUMES}"), lock_sweep(folder):
        with scheduler.stop.handle_signals(first=scheduler.handle_first_signal):
            engine = _create_engine(request, base, folder, cells)
            try:
                write_recipe(folder, base)  # only after the engine is there, so that a failed start leaves nothing
                remove_incomplete_runs(folder / CELLS)
                scheduler.run(engine, reporter.look)
            finally:
                engine.close()
            remove_incomplete_runs(folder / CELLS)
            scheduler.mark_not_needed()
            report = reporter.report(started)
        observer.notify(report)
        if base.training.report_to and not report.unfinished:
            report_to_trackers(report, base.training.report_to, observer)
        reporter.require_complete()
    return report


def _create_engine(request: SweepRequest, base: Recipe, folder: Path, cells: Sequence[Cell]) -> Engine:
    if request.engine == "ray":
        from neftcli.sweep.engines.ray_engine import RayEngine
        from neftcli.training.inputs import local_paths

        names = dict.fromkeys(name for cell in cells for name in local_paths(cell.recipe))
        inputs = [expand_home(name) for name in names]
        return RayEngine(request.ray_address, base.sweep.retries, folder, inputs)
    from neftcli.sweep.engines.local_engine import LocalEngine, list_devices

    return LocalEngine(list_devices(), base.sweep.retries, folder / WORKERS_LOG)


def _has_no_delta(base: Recipe) -> bool:
    """Return whether the first metric has no delta, neither typed nor by default.

    Raises:
        RecipeError: `sweep.delta` is not valid for the first metric.
    """
    from neftcli.metrics.registry import HELD_OUT_LOSS
    from neftcli.sweep.delta import resolve_delta

    metric = base.sweep.metrics[0]
    return resolve_delta(base.sweep.delta, metric, gain=None) is None and metric != HELD_OUT_LOSS


def report_options(base: Recipe, observer: Observer, *, no_futility: bool) -> None:
    """Report options that have no effect, and a number of seeds that leads to no recommendation."""
    from neftcli.metrics.registry import label
    from neftcli.sweep.early_stopping import FIRST_LOOK, stops_early

    if not any(base.sweep.alphas):
        observer.notify(Notice("no arm has noise, so the arms are evaluated and not compared"))
    elif base.sweep.seeds == 1:
        observer.notify(Notice(ONE_SEED))
    early = stops_early(base.sweep)
    if base.sweep.early_stopping == "always" and not early:
        observer.notify(Notice(f"early stopping saves nothing: the first look is after {FIRST_LOOK} seeds"))
    if early and no_futility:
        metric = label(base.sweep.metrics[0])
        observer.notify(Notice(f"the sweep does not stop for futility in {metric}: set --delta in its unit"))


def format_resume_command(folder: Path, request: SweepRequest, base: Recipe) -> str:
    """Return the command that resumes the sweep, with the options that no file records."""
    words: Sequence[str] = ["neft", "sweep-alpha", str(folder)]
    if request.engine != "local":
        words = [*words, "--engine", request.engine]
    if request.ray_address is not None:
        words = [*words, "--ray-address", request.ray_address]
    if base.model.trust_remote_code:
        words = [*words, "--trust-remote-code"]
    return shlex.join(words)
