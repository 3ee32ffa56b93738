"""Coordinate the processes that train one model: they share the run's folder, its inputs and its losses.

With one process nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from neftcli.errors import InputError, Problem, ProcessLostError
from neftcli.runs.directory import ReadOnlyRunDirectory, RunDirectory
from neftcli.system import distributed
from neftcli.training.resume import ResumeState
from neftcli.training.signals import StopRequested, StopSignal
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe

Row = TypeVar("Row")
Result = TypeVar("Result")


def join_run(
    recipe: Recipe, resume_state: ResumeState | None, stop: StopSignal
) -> tuple[RunDirectory, ResumeState | None]:
    """Connect the processes, and return the run's folder and the state that it resumes from.

    Rank 0 creates a new run's folder and sends its path to the others.

    Raises:
        InputError: The folder can't be created, the processes see different checkpoints, or the recipe expects a
            different number of processes.
        ProcessLostError: Another process ended before.
    """
    expected, running = recipe.training.processes, distributed.world_size()
    if expected != running:
        message = f"training.processes: the recipe expects {count_noun(expected, 'process', 'processes')}"
        raise InputError(Problem(message, f"{running} running", "neft train"))
    created = None
    try:
        with stop.interruptible():
            distributed.init_process_group()
        _require_same("checkpoints", distributed.all_gather_object(resume_state.step if resume_state else 0))
        if resume_state is None and distributed.is_main_process():
            created = RunDirectory.create(recipe.output_folder(), recipe.run_name())
        path = Path(distributed.broadcast_object(str(created.path if created else "")))
    except (RuntimeError, distributed.PeerExitedError) as error:
        if created:
            created.remove()
        if not distributed.is_process_loss(error):
            raise
        message = "another process ended before anything was started"
        raise ProcessLostError(Problem(message, hint="run the same command again")) from error
    if distributed.is_main_process():
        return created or resume_state.directory, resume_state  # type: ignore[union-attr]  # one of them is set
    if resume_state is None:
        return ReadOnlyRunDirectory(path), None
    directory = ReadOnlyRunDirectory(resume_state.directory.path)
    return directory, replace(resume_state, directory=directory)


def broadcast_path(directory: RunDirectory) -> RunDirectory:
    """Send the run's current path, which a new run gets after it was set up, to all processes; return the folder."""
    directory.path = Path(distributed.broadcast_object(str(directory.path)))
    return directory


def require_same_inputs(hashes: Mapping[str, str]) -> None:
    """Check that all processes have read the same rows and the same model.

    Args:
        hashes: Hashes of the inputs that this process has read.

    Raises:
        InputError: They differ; raised in all processes.
    """
    all_hashes = distributed.all_gather_object(dict(hashes))
    for key in hashes:
        _require_same(key.partition("_")[0], [hashes_of_process[key] for hashes_of_process in all_hashes])


def _require_same(name: str, values: Sequence[str | int]) -> None:
    """Check that all processes see the same value."""
    if len(set(values)) > 1:
        message = f"the processes see different {name}: all need the same files"
        raise InputError(Problem(message, ", ".join(str(value)[:20] for value in values)))


def split_across_processes(
    rows: Sequence[Row], measure: Callable[[Sequence[Row]], Sequence[Result]], result: Callable[..., Result]
) -> Sequence[Result]:
    """Measure rows in parallel, each process every n-th row, and return the results of all rows in order.

    Args:
        rows: The rows.
        measure: Returns the results of some rows, in order.
        result: Class of the results, a dataclass of plain values: they travel as JSON.

    Raises:
        StopRequested: A stop was requested during the measurement; raised in all processes.
    """
    if distributed.world_size() == 1:
        return measure(rows)
    own_results = None
    with suppress(StopRequested):
        own_rows = rows[distributed.rank() :: distributed.world_size()]
        own_results = [astuple(item) for item in measure(own_rows)]  # type: ignore[call-overload]
    parts = [part for part in distributed.all_gather_object(own_results) if part is not None]
    if len(parts) < distributed.world_size():
        raise StopRequested
    return [result(*parts[index % len(parts)][index // len(parts)]) for index in range(len(rows))]
