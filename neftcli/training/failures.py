"""How a run ends that does not finish: what its record says, what is safe, and what to type."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from neftcli.errors import (
    InputError,
    Interrupted,
    NeftError,
    Preempted,
    Problem,
    ProcessLostError,
    TrainingError,
    first_line,
)
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import RECIPE, RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.system.distributed import is_process_loss, world_size
from neftcli.training.signals import StopRequested

FULL = ("No space left", "os error 27", "os error 28", "os error 122")
"""How safetensors, which writes in code of its own, says that the disk is full."""
WRITER = ("PytorchStreamWriter failed", "iostream error", "unexpected pos")
"""How torch says that a file could not be written, for whatever reason."""
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP)
"""Why a system lets nobody write a file that has room; ELOOP is a link in its place."""
CUBLAS = "unset CUBLAS_WORKSPACE_CONFIG    (then it is :4096:8), and the same command again"
LITTLE = 2**26  # bytes free: with less, that reason is a full disk


@contextmanager
def record_outcome(record: RunRecord, directory: RunDirectory, *, new: bool) -> Iterator[None]:
    """Writes into the record how a run ended that did not finish, and says what can be done.

    Args:
        record: The run's record.
        directory: Its folder; a new run's goes where nothing was started.
        new: It was not gone on with.
    """
    try:
        yield
    except BaseException as error:
        if record.fields["status"] == "finished":  # whatever came behind it
            raise
        _record(error, record, directory, new=new)
        raise


@contextmanager
def report_full_disk(directory: RunDirectory, *, new: bool) -> Iterator[None]:
    """Says what can be done where a run's first files can't be written; a new run's folder goes.

    Raises:
        TrainingError: The disk is full or read-only.
    """
    try:
        yield
    except OSError as error:
        problem = _known(error, directory)
        if new:
            directory.remove()
        if problem is None:
            raise
        raise TrainingError(problem) from error
    except BaseException:
        if new:
            directory.remove()
        raise


def _record(error: BaseException, record: RunRecord, directory: RunDirectory, *, new: bool) -> None:
    """Writes the end, and raises what a person is told in place of `error` where it is something else."""
    if isinstance(error, InputError):  # nothing was started, so nothing stays
        if new:
            directory.remove()
        else:
            record.withdraw()
        return
    statuses: dict[type, str] = {StopRequested: "preempted", KeyboardInterrupt: "interrupted"}
    status = statuses.get(type(error), "failed")
    cause: BaseException | None = None
    if is_process_loss(error):  # which is what is told and written, in place of a library's words
        ended = f"another of the {world_size()} processes ended; {_safe(directory)}"
        error, cause = ProcessLostError(Problem(ended, hint=_again(directory))), error
    told = {"error": f"{type(error).__name__}: {error}"} if status == "failed" else {}
    with suppress(OSError):  # on a full disk; the message below is what counts then
        record.end(status, **told)
    if isinstance(error, StopRequested):
        raise Preempted(Problem(f"stopped; {_safe(directory)}", hint=_again(directory))) from None
    if isinstance(error, KeyboardInterrupt):
        raise Interrupted(Problem(f"stopped at once; {_safe(directory)}", hint=_again(directory))) from None
    if cause is not None:
        raise error from cause
    if isinstance(error, Exception) and not isinstance(error, NeftError) and (problem := _known(error, directory)):
        raise TrainingError(problem) from error


def _known(error: Exception, directory: RunDirectory) -> Problem | None:
    """What a person can do about an error that comes from the machine."""
    from neftcli.system.device import NO_VARIANT, is_out_of_memory

    said = first_line(error)
    free = shutil.disk_usage(directory.path).free
    if is_disk_full(error):
        return Problem(
            f"the disk is full; {_safe(directory)}",
            f"{said} ({free / 2**20:.0f} MiB are free at {directory.path})",
            f"make room, then {_again(directory)}",
        )
    if is_out_of_memory(error):
        return Problem(
            f"there was not enough memory; {_safe(directory)}",
            said,
            "--batch-size with half the rows, --gradient-checkpointing, --lora or --qlora",
        )
    if _says(error, [NO_VARIANT]):
        told = f"an operation of the model can't be repeated to the bit on this GPU; {_safe(directory)}"
        return Problem(told, said, "the same command with --set training.deterministic=false")
    if _says(error, ["CUBLAS_WORKSPACE_CONFIG"]):
        return Problem(f"products on this GPU can't be repeated to the bit; {_safe(directory)}", said, CUBLAS)
    refused = isinstance(error, OSError) and error.errno in REFUSED
    if refused or _says(error, WRITER):
        return Problem(f"a file can't be written; {_safe(directory)}", said, _again(directory))
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that the disk or a quota is full."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return _says(error, FULL) or any(isinstance(one, OSError) and one.errno in numbers for one in _chain(error))


def raise_if_full(error: BaseException, folder: Path) -> None:
    """Says in the system's words that the disk is full, where torch could not write; before anything is taken away.

    Raises:
        OSError: The disk is full.
    """
    if _says(error, WRITER) and shutil.disk_usage(folder).free < LITTLE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _says(error: BaseException, words: Sequence[str]) -> bool:
    return any(word in str(one) for one in _chain(error) for word in words)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _safe(directory: RunDirectory) -> str:
    """What of a run is safe, in words."""
    if not (directory.path / RECIPE).is_file():
        return "nothing was started"
    checkpoint = Checkpoints(directory.checkpoints, 1).latest()
    if directory.model.is_dir():
        return f"the tuned model is in {directory.model}"
    if checkpoint is not None:
        return f"{checkpoint} is safe, after update {checkpoint.name.rpartition('-')[2]}"
    measured = "what was measured" if (directory.path / "metrics.jsonl").is_file() else "the recipe"
    return f"no update was saved; {measured} is in {directory.path}"


def _again(directory: RunDirectory) -> str:
    if not (directory.path / RECIPE).is_file():
        return "the same command again"
    return f"neft train --resume {shlex.quote(str(directory.path))}"
