"""Runs in a sweep's folder: which cells are finished, which can be resumed, and what was measured of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError
from neftcli.evaluation.task_files import is_task_file, task_file_sha256
from neftcli.events import CellState, CellStatus, Notice, Observer
from neftcli.models.model_files import is_damaged_safetensors
from neftcli.recipe.loading import load_recipe, recipe_differences
from neftcli.recipe.schema import TaskSettings
from neftcli.runs.checkpoints import CheckpointFolder
from neftcli.runs.directory import RECIPE, RECORD, RunDirectory
from neftcli.runs.schemas import MeasuredCell, Record, parse_json
from neftcli.system.files import remove

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell
    from neftcli.training.resume import ResumeState

CELL_METRICS = "evaluation/cell.json"
"""File of a run with the evaluation of its cell."""


class CellRuns:
    """Runs below a sweep's `cells/`, whose records are read once, here.

    Attributes:
        folder: The folder `cells/`.
        runs: The runs with their records, by name.
        damaged: Names of the runs whose record is damaged; their cells are trained again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[tuple[RunDirectory, Record]] = []
        self.damaged: list[str] = []
        for file in sorted(folder.glob(f"[!.]*/{RECORD}")):
            run = RunDirectory(file.parent)
            try:
                self.runs.append((run, run.record()))
            except InputError:
                self.damaged.append(run.path.name)

    def of(self, key: str) -> Iterator[tuple[RunDirectory, Record]]:
        """Yield the runs of the cell with this key."""
        return ((run, record) for run, record in self.runs if record["recipe_sha256"] == key)

    def finished(self, key: str) -> RunDirectory | None:
        """Return the finished run of the cell with this key, or None."""
        for run, record in self.of(key):
            if record["status"] == "finished" and _has_weights(run):
                return run
        return None

    def finished_others(self, keys: Collection[str]) -> list[str]:
        """Return the names of the finished runs that belong to none of the cells with these keys."""
        finished = [(run, record) for run, record in self.runs if record["status"] == "finished"]
        return [run.path.name for run, record in finished if record["recipe_sha256"] not in keys]

    def state(self, cell: Cell) -> CellState:
        """Return the state of a cell before the sweep starts."""
        facts: dict[str, Any] = {"status": CellStatus.WAITING}
        if any(_has_checkpoint(run) for run, _ in self.of(cell.key)):
            facts = {"status": CellStatus.PREEMPTED}
        run = self.finished(cell.key)
        if run is not None and read_evaluation(run, cell.recipe) is not None:
            facts = {"status": CellStatus.FINISHED, "run": str(run.path), **_last_losses(run)}
        return CellState(cell.short_key(), cell.arm.id(), cell.seed, **facts)

    def find_resume_state(self, key: str, recipe: Recipe, observer: Observer | None = None) -> ResumeState | None:
        """Return the state from which a preempted run of a cell resumes, or None.

        Removes the other unfinished runs of the cell, except those whose checkpoints are damaged or that were started
        with other options: a person may still want them. A run that another process has finished meanwhile is then one
        that `finished` returns.

        Args:
            key: Key of the cell.
            recipe: Recipe with which the run is resumed.
            observer: Receives the reason for each run that is not resumed.

        Raises:
            RunLockedError: Another process is training the run.
        """
        resume_state = None
        for index, (run, record) in enumerate(self.runs):
            if record["recipe_sha256"] != key or record["status"] == "finished" or not run.path.is_dir():
                continue
            with nullcontext() if run.path.is_symlink() else run.lock():
                self.runs[index] = run, run.record()  # another process may have changed it before the lock
                if self.runs[index][1]["status"] == "finished":
                    continue
                state, reasons = _resume_state(run, recipe)
                if observer is not None:
                    for reason in reasons:
                        observer.notify(Notice(reason))
                if resume_state is None and state is not None:
                    resume_state = state
                elif not reasons or state is not None:
                    remove(run.path)
        return resume_state


def _has_weights(run: RunDirectory) -> bool:
    weights = sorted(run.model.glob("*.safetensors"))
    return bool(weights) and not any(is_damaged_safetensors(file) for file in weights)


def _has_checkpoint(run: RunDirectory) -> bool:
    return CheckpointFolder(run.checkpoints, 1).latest_complete() is not None


def _last_losses(run: RunDirectory) -> dict[str, Any]:
    """Return the step and the loss of a finished run for the table; nothing if the file was removed."""
    evaluations = run.evaluations()
    if not evaluations:
        return {}
    last = evaluations[-1]
    return {"step": last["step"], "total_steps": last["step"], "held_out_loss": last.get("held_out_loss")}


def _resume_state(run: RunDirectory, recipe: Recipe) -> tuple[ResumeState | None, list[str]]:
    """Return the state from which a run resumes; or None, with the reasons if the run is kept all the same."""
    from neftcli.training.resume import MEASUREMENT_SETTINGS, read_resume_state

    kept = f"{run.path} is kept, and the cell starts again in a new folder"
    try:
        state = read_resume_state(run, recipe)
        if state.checkpoint is None:
            return None, []
        # The base model's losses and answers of this run would not be comparable.
        changed = recipe_differences(load_recipe(str(run.path / RECIPE)), recipe, MEASUREMENT_SETTINGS)
    except InputError as error:
        return None, [*(problem.message for problem in error.problems), kept]
    if changed:
        return None, [f"{kept}: it was started with a different {', '.join(changed)}"]
    return state, []


def report_left_out(runs: CellRuns, cells: Collection[Cell], observer: Observer) -> None:
    """Report the runs of the folder that this sweep leaves out: finished ones of other cells, and damaged ones."""
    others = runs.finished_others({cell.key for cell in cells})
    if others:
        observer.notify(Notice(f"left out, not part of this sweep: {name_some(others)}, finished earlier"))
    if runs.damaged:
        observer.notify(
            Notice(f"left out, run.json is damaged: {name_some(runs.damaged)}; their cells are trained again")
        )


def read_evaluation(run: RunDirectory, recipe: Recipe) -> dict[str, Any] | None:
    """Read the evaluation of a cell; None if it is missing or damaged, or was made with other settings."""
    try:
        content = dict(parse_json((run.path / CELL_METRICS).read_bytes(), MeasuredCell))
    except (OSError, ValueError):
        return None
    return content if content["settings"] == evaluation_key(recipe) else None


def evaluation_key(recipe: Recipe) -> str:
    """Return the hash of everything that the evaluation of a cell depends on, except the weights.

    A task file counts by its content and that of the files that it names, a task of lm-evaluation-harness by the
    harness's version.
    """
    evaluation = recipe.evaluation
    parts: list[object] = [recipe.data, evaluation.generation, evaluation.tasks, recipe.sweep.answers]
    if evaluation.task_settings != TaskSettings():
        parts.append(evaluation.task_settings)
    if evaluation.tasks:
        parts.append(("lm_eval", _harness_version()))
    parts += [task_file_sha256(task) for task in evaluation.tasks if is_task_file(task)]
    return sha256(repr(tuple(parts)).encode()).hexdigest()


def _harness_version() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return "not installed"


def name_some(names: Collection[str], most: int = 4) -> str:
    """Return the first names and the number of the others: "a, b, c, d and 3 more"."""
    listed = [*names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
