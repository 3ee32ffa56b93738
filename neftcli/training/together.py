"""What processes that train one model agree on: the run's folder, what they read, and losses, a part from each.

Where a run is trained by one process, nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem, ProcessLost
from neftcli.machine import processes
from neftcli.runs.directory import LedDirectory, RunDirectory
from neftcli.training.resume import Resumption
from neftcli.training.stopping import StopRequested

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Recipe


def joined(recipe: Recipe, resume: Resumption | None) -> tuple[RunDirectory, Resumption | None]:
    """The run's folder, and what is gone on with: the first process makes it, and tells the others.

    Raises:
        InputError: The folder can't be made, or this process sees another checkpoint than the first.
        ProcessLost: Another process ended before.
    """
    directory = resume.directory if resume else None
    try:
        processes.join()
        if directory is None and processes.leads():
            directory = RunDirectory.create(Path(recipe.output_dir), recipe.run_name())
        path, step = processes.shared((str(directory.path if directory else ""), resume.step if resume else 0))
    except (RuntimeError, processes.ProcessEnded) as error:
        if not processes.has_ended(error):
            raise
        raise ProcessLost(
            Problem("another process ended before anything was started", remedy="the same command again")
        ) from error
    if processes.leads():
        assert directory is not None  # noqa: S101 - made above
        return directory, resume
    if resume is None:
        return LedDirectory(Path(path)), None
    if resume.step != step:
        told = f"{path}: the processes see different checkpoints"
        raise InputError(Problem(told, f"update {resume.step}, the first process {step}", "a folder that all share"))
    led = LedDirectory(resume.directory.path)
    return led, replace(resume, directory=led)


def require_alike(found: Mapping[str, str]) -> None:
    """Checks that all processes read the same.

    Args:
        found: Hashes of what this one read.

    Raises:
        InputError: The first process read something else.
    """
    first = processes.shared(dict(found))
    other = [key.partition("_")[0] for key in found if first[key] != found[key]]
    if other:
        raise InputError(
            Problem(f"the processes read different {' and '.join(other)}", remedy="the same files for all")
        )


def spread(rows: Sequence[TokenRow], measure: Callable[[Sequence[TokenRow]], Sequence[RowLoss]]) -> Sequence[RowLoss]:
    """What `measure` says of all rows; each process measures its part, and is told the others'.

    Raises:
        StopRequested: A stop was asked for meanwhile, in all processes alike.
    """
    if processes.count() == 1:
        return measure(rows)
    from neftcli.evaluation.loss import RowLoss

    mine = None
    with suppress(StopRequested):
        mine = [astuple(loss) for loss in measure(rows[processes.rank() :: processes.count()])]
    parts = [part for part in processes.gathered(mine) if part is not None]
    if len(parts) < processes.count():
        raise StopRequested
    return [RowLoss(*parts[place % len(parts)][place // len(parts)]) for place in range(len(rows))]
