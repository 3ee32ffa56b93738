"""What processes that train one model agree on: the run's folder, what they read, and losses, a part from each.

Where a run is trained by one process, nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem, ProcessLostError
from neftcli.runs.directory import ReadOnlyRunDirectory, RunDirectory
from neftcli.system import distributed
from neftcli.training.resume import ResumeState
from neftcli.training.signals import StopRequested, StopSignal

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Recipe


def join_run(recipe: Recipe, resume: ResumeState | None, stop: StopSignal) -> tuple[RunDirectory, ResumeState | None]:
    """The run's folder, and what is gone on with: the first process makes it, and tells the others.

    Raises:
        InputError: The folder can't be made, the processes see different checkpoints, or they are not as many as the
            recipe says.
        ProcessLostError: Another process ended before.
    """
    if recipe.training.processes != distributed.world_size():
        told = "training.processes: so many processes have to be started for it"
        raise InputError(Problem(told, f"{recipe.training.processes} ({distributed.world_size()} here)", "neft train"))
    made = None
    try:
        with stop.interruptible():
            distributed.init_process_group()
        _require_alike("checkpoints", distributed.all_gather_object(resume.step if resume else 0))
        if resume is None and distributed.is_main_process():
            made = RunDirectory.create(Path(recipe.output_dir), recipe.run_name())
        path = Path(distributed.broadcast_object(str(made.path if made else "")))
    except (RuntimeError, distributed.PeerExitedError) as error:
        if made:
            made.remove()
        if not distributed.is_process_loss(error):
            raise
        told = "another process ended before anything was started"
        raise ProcessLostError(Problem(told, hint="the same command again")) from error
    if distributed.is_main_process():
        return made or resume.directory, resume  # type: ignore[union-attr]  # one of both is there
    led = ReadOnlyRunDirectory(resume.directory.path if resume else path)
    return led, replace(resume, directory=led) if resume else None


def broadcast_path(directory: RunDirectory) -> RunDirectory:
    """Tells all processes the path that the run's folder has by now, and returns the folder."""
    directory.path = Path(distributed.broadcast_object(str(directory.path)))
    return directory


def require_same_inputs(found: Mapping[str, str]) -> None:
    """Checks that all processes have read the same.

    Args:
        found: Hashes of what this one has read.

    Raises:
        InputError: They have not; in all processes alike.
    """
    everywhere = distributed.all_gather_object(dict(found))
    for key in found:
        _require_alike(key.partition("_")[0], [there[key] for there in everywhere])


def _require_alike(what: str, values: Sequence[str | int]) -> None:
    """Refuses processes that see different things under one name."""
    if len(set(values)) > 1:
        told = f"the processes see different {what}: all need the same files"
        raise InputError(Problem(told, ", ".join(str(value)[:20] for value in values)))


def split_across_processes(
    rows: Sequence[TokenRow], measure: Callable[[Sequence[TokenRow]], Sequence[RowLoss]]
) -> Sequence[RowLoss]:
    """What `measure` says of all rows; each process measures its part, and is told the others'.

    Raises:
        StopRequested: A stop was asked for meanwhile, in all processes alike.
    """
    if distributed.world_size() == 1:
        return measure(rows)
    from neftcli.evaluation.loss import RowLoss

    mine = None
    with suppress(StopRequested):
        mine = [astuple(loss) for loss in measure(rows[distributed.rank() :: distributed.world_size()])]
    parts = [part for part in distributed.all_gather_object(mine) if part is not None]
    if len(parts) < distributed.world_size():
        raise StopRequested
    return [RowLoss(*parts[place % len(parts)][place // len(parts)]) for place in range(len(rows))]
