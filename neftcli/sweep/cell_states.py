"""States of a sweep's cells on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.events import CellState, CellStatus, Notice, Observer
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import CELLS, RunDirectory
from neftcli.sweep.cell import damaged_records, finished_run, measured, records, runs_of
from neftcli.sweep.folder import listed

if TYPE_CHECKING:
    from neftcli.sweep.plan import Cell


def state_of(cell: Cell) -> CellState:
    """Return the state of a cell on disk."""
    run = finished_run(Path(cell.recipe.output_dir), cell.key)
    content = measured(run, cell.recipe) if run else None
    facts: dict[str, Any] = {"status": CellStatus.WAITING}
    if any(_has_checkpoint(begun) for begun, _ in runs_of(Path(cell.recipe.output_dir), cell.key)):
        facts = {"status": CellStatus.PREEMPTED}
    if run is not None and content is not None:
        facts = {"status": CellStatus.FINISHED, "run": str(run.path), **_last_evaluation(run)}
    return CellState(cell.key[:8], cell.arm.name(), cell.seed, **facts)


def _has_checkpoint(run: RunDirectory) -> bool:
    return Checkpoints(run.checkpoints, 1).latest() is not None


def _last_evaluation(run: RunDirectory) -> dict[str, Any]:
    """Return a finished run's last evaluation for the table; nothing if a person removed it."""
    evaluations = run.evaluations()
    if not evaluations:
        return {}
    last = evaluations[-1]
    return {"step": last["step"], "total_steps": last["step"], "loss": last.get("held_out_loss")}


def tell_of_others(folder: Path, cells: Sequence[Cell], observer: Observer) -> None:
    """Report finished cells of the folder that are not in this plan, as with fewer seeds, and damaged ones."""
    keys = {cell.key for cell in cells}
    others = [
        run.path.name
        for run, record in records(folder / CELLS)
        if record["status"] == "finished" and record["recipe_sha256"] not in keys
    ]
    if others:
        observer.notify(Notice(f"left out, since they are not asked for: {listed(others)}, done before"))
    if damaged := damaged_records(folder / CELLS):
        said = f"left out, since run.json is damaged: {listed(damaged)}; their cells are trained again"
        observer.notify(Notice(said))
