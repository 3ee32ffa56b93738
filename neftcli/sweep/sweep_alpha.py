"""`neft sweep-alpha`: trains a grid of alphas with paired seeds, measures every cell, and says what can be said."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer, SweepReport, SweepStarted
from neftcli.recipe.loading import resolve
from neftcli.runs.directory import CELLS
from neftcli.sweep.cell_states import state_of, tell_of_others
from neftcli.sweep.folder import explained, held, require_free, require_same_inputs, require_same_sweep
from neftcli.sweep.plan import plan_cells
from neftcli.sweep.validate import check, require_noise

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer


@dataclass(frozen=True)
class Request:
    """What `neft sweep-alpha` was asked for.

    Attributes:
        layers: The recipe and what was typed over it.
        folder: The sweep's folder; None for one named after the recipe.
        engine: local or ray.
        ray_address: The cluster, as ray.init takes it; None for one on this machine.
        dry_run: Show the cells, how long they will take, what they share and what they could detect; train nothing.
        pilot: Folder of another sweep whose variance is used for that; None for the sweep's own folder.
    """

    layers: tuple[Layer, ...]
    folder: Path | None = None
    engine: str = "local"
    ray_address: str | None = None
    dry_run: bool = False
    pilot: Path | None = None


def sweep(request: Request, observer: Observer) -> SweepReport | None:
    """Does what `request` asks for; what is done is skipped. None for a dry run.

    Raises:
        InputError: The recipe, its data or the folder can't be used; nothing was started.
        SweepError: Cells failed; the others are done and reported.
        Preempted: A stop was asked for; what is done is kept, and cells in the middle can be gone on with.
        Interrupted: Stopped at once; what is done is kept.
    """
    begun = time.perf_counter()
    base = resolve(request.layers)
    folder = request.folder or Path(base.output_dir) / f"{base.name}-sweep"
    require_same_sweep(folder, base)
    cells = [
        replace(cell, recipe=replace(cell.recipe, output_dir=str(folder / CELLS)))
        for cell in plan_cells(base, request.layers)
    ]
    require_noise(base, cells)
    # What computes is imported only now, so that bad options are rejected at once.
    from neftcli.evaluation.metrics import HELD_OUT_LOSS, label
    from neftcli.sweep.delta import resolve_delta
    from neftcli.sweep.early_stopping import FIRST_LOOK, stops_early
    from neftcli.sweep.scheduler import GOES_ON, SweepRun

    first = base.sweep.metrics[0]
    no_default = resolve_delta(base.sweep.delta, first, gain=None) is None and first != HELD_OUT_LOSS
    if request.pilot is not None and not request.dry_run:
        raise InputError(Problem("--pilot plans a sweep and needs --dry-run", str(request.pilot), "--dry-run"))
    if not request.dry_run:
        require_free(folder)
    reference, examples = check(base, request, folder, observer)
    require_same_inputs(cells, reference, examples)
    observer.notify(
        SweepStarted(str(folder), tuple(state_of(cell) for cell in cells), added_baseline=0.0 not in base.sweep.alphas)
    )
    tell_of_others(folder, cells, observer)
    if not any(base.sweep.alphas):
        observer.notify(Notice("no arm has noise: the arms are measured, not compared"))
    if base.sweep.early_stopping == "always" and not stops_early(base.sweep):
        observer.notify(Notice(f"early stopping saves nothing: the first look is after {FIRST_LOOK} seeds"))
    if stops_early(base.sweep) and no_default:
        observer.notify(Notice(f"the sweep does not stop for futility in {label(first)} without a --delta in its unit"))
    if request.dry_run:
        from neftcli.sweep.estimate import estimate
        from neftcli.sweep.pilot import plan_power

        took = time.perf_counter() - begun
        found = estimate(cells, request.engine, stops_early(base.sweep), observer, own_start=took)
        power = plan_power(base, cells, examples.held_out, request.pilot or folder, own=request.pilot is None)
        observer.notify(replace(found, power=power))
        return None
    again = _again(folder, request, base)
    with explained(folder, f"{again}{GOES_ON}"), held(folder):
        run = SweepRun(folder, base, cells, observer, again)
        with run.stop.handle_signals(first=run.asked_to_stop):
            run.train(request)
            report = run.report(begun)
        observer.notify(report)
        run.end()
    return report


def _again(folder: Path, request: Request, base: Recipe) -> str:
    """The command that goes on; how cells are done is in no file."""
    words = ["neft", "sweep-alpha", str(folder)]
    words += ["--engine", request.engine] if request.engine != "local" else []
    words += ["--ray-address", request.ray_address] if request.ray_address is not None else []
    words += ["--trust-remote-code"] if base.model.trust_remote_code else []
    return shlex.join(words)
