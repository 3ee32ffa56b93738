"""Failures of a run: its recorded status, a message with what is saved and a hint, and the space on its disk."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import (
    DISK_FULL,
    OUT_OF_MEMORY,
    InputError,
    Interrupted,
    NeftError,
    Preempted,
    Problem,
    ProcessLostError,
    TrainingError,
    first_line,
)
from neftcli.events import Notice, Observer
from neftcli.models.memory import STATE_BYTES
from neftcli.runs.checkpoints import CheckpointFolder
from neftcli.runs.directory import METRICS, RECIPE, RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.system.distributed import is_process_loss, world_size
from neftcli.system.files import format_bytes
from neftcli.training.signals import StopRequested

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe

DISK_FULL_MESSAGES = ("No space left", "os error 27", "os error 28", "os error 122")
"""Messages of safetensors for a full disk; it writes in compiled code and raises no OSError."""
WRITE_ERROR_MESSAGES = ("PytorchStreamWriter failed", "iostream error", "unexpected pos")
"""Messages of torch for a file that could not be written, for any reason."""
WRITE_ERROR_NUMBERS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP)
"""Numbers of errors of writing a file although there is space; ELOOP: a link has the file's name."""
CUBLAS_HINT = "unset CUBLAS_WORKSPACE_CONFIG    (then it is :4096:8), then run the same command again"
FULL_BELOW_BYTES = 2**26
"""Free bytes below which a failed write means a full disk."""


@contextmanager
def record_outcome(record: RunRecord, directory: RunDirectory, *, new: bool) -> Iterator[None]:
    """Record the outcome of a run that fails or stops in the block, and raise an error with what is saved and a hint.

    Args:
        record: The run's record.
        directory: Its folder; the folder of a new run is removed if nothing was started.
        new: The run was not resumed.

    Raises:
        Preempted: It was stopped and saved.
        Interrupted: It was stopped at once.
        TrainingError: The machine is the cause, for example a full disk or too little memory.
    """
    try:
        yield
    except BaseException as error:
        if record.fields["status"] == "finished":  # the error came after its end
            raise
        _record_failure(error, record, directory, new=new)
        raise


@contextmanager
def report_full_disk(directory: RunDirectory, *, new: bool) -> Iterator[None]:
    """Explain errors of a run's first files, and remove the folder of a new run.

    Raises:
        TrainingError: The disk is full or read-only.
    """
    try:
        yield
    except OSError as error:
        problem = _explain(error, directory)
        if new:
            directory.remove()
        if problem is None:
            raise
        raise TrainingError(problem) from error
    except BaseException:
        if new:
            directory.remove()
        raise


def _record_failure(error: BaseException, record: RunRecord, directory: RunDirectory, *, new: bool) -> None:
    """Record the failure, and raise a more helpful error in its place if there is one."""
    if isinstance(error, InputError):  # nothing was started, so nothing stays
        if new:
            directory.remove()
        else:
            record.withdraw()
        return
    statuses: dict[type, str] = {StopRequested: "preempted", KeyboardInterrupt: "interrupted"}
    status = statuses.get(type(error), "failed")
    cause: BaseException | None = None
    if is_process_loss(error):  # recorded instead of a library's message
        ended = f"another of the {world_size()} processes ended; {_describe_saved(directory)}"
        error, cause = ProcessLostError(Problem(ended, hint=_retry_command(directory))), error
    fields = {"error": f"{type(error).__name__}: {error}"} if status == "failed" else {}
    with suppress(OSError):  # on a full disk; the message below matters more
        record.end(status, **fields)
    if isinstance(error, StopRequested):
        raise Preempted(Problem(f"stopped; {_describe_saved(directory)}", hint=_retry_command(directory))) from None
    if isinstance(error, KeyboardInterrupt):
        message = f"stopped at once; {_describe_saved(directory)}"
        raise Interrupted(Problem(message, hint=_retry_command(directory))) from None
    if cause is not None:
        raise error from cause
    if isinstance(error, Exception) and not isinstance(error, NeftError) and (problem := _explain(error, directory)):
        raise TrainingError(problem) from error


def _explain(error: Exception, directory: RunDirectory) -> Problem | None:
    """Explain an error of the machine, with a hint; None for any other error."""
    from neftcli.system.device import NO_DETERMINISTIC_VARIANT, is_out_of_memory

    reason, saved = first_line(error), _describe_saved(directory)
    if is_disk_full(error):
        free = shutil.disk_usage(directory.path).free
        return Problem(
            f"the disk is full; {saved}",
            f"{reason} ({format_bytes(free)} free at {directory.path})",
            f"make room, then {_retry_command(directory)}",
            code=DISK_FULL,
        )
    if is_out_of_memory(error):
        return Problem(
            f"out of memory; {saved}",
            reason,
            "--batch-size with half the rows, --gradient-checkpointing, --lora or --qlora",
            code=OUT_OF_MEMORY,
        )
    if _mentions(error, [NO_DETERMINISTIC_VARIANT]):
        message = f"an operation of the model has no deterministic implementation on this GPU; {saved}"
        return Problem(message, reason, "the same command with --set training.deterministic=false")
    if _mentions(error, ["CUBLAS_WORKSPACE_CONFIG"]):
        message = f"matrix products on this GPU are not deterministic with this setting; {saved}"
        return Problem(message, reason, CUBLAS_HINT)
    is_rejected = isinstance(error, OSError) and error.errno in WRITE_ERROR_NUMBERS
    if is_rejected or _mentions(error, WRITE_ERROR_MESSAGES):
        return Problem(f"a file can't be written; {saved}", reason, _retry_command(directory))
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, means that the disk or a quota is full."""
    if _mentions(error, DISK_FULL_MESSAGES):
        return True
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in _chain(error))


def raise_if_full(error: BaseException, folder: Path) -> None:
    """Raise the system's error for a full disk if torch could not write. Call this before any file is removed.

    Raises:
        OSError: The disk is full.
    """
    if _mentions(error, WRITE_ERROR_MESSAGES) and shutil.disk_usage(folder).free < FULL_BELOW_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def saved_bytes(model: Any, recipe: Recipe) -> tuple[int, int]:
    """Estimate the sizes of the saved model and of a checkpoint.

        model      = the weights, or the adapter's
        checkpoint = model + optimiser state (two float32 for each trained parameter)

    Args:
        model: The model as it will be trained.
        recipe: The resolved recipe.
    """
    adapter = recipe.adapter.type != "none"
    model_bytes = trained = 0
    for weight in model.parameters():
        if weight.requires_grad or not adapter:
            model_bytes += weight.numel() * weight.element_size()
        if weight.requires_grad:
            trained += weight.numel()
    checkpoint_bytes = model_bytes + trained * STATE_BYTES.get(recipe.training.optim, 8)
    return model_bytes * (2 if recipe.adapter.uses_pissa() else 1), checkpoint_bytes


def require_space(model_bytes: int, checkpoint_bytes: int, recipe: Recipe, folder: Path, observer: Observer) -> None:
    """Check before training that the disk has space for the tuned model; warn if it has none for the checkpoints.

    Raises:
        InputError: There is no space for the model.
    """
    free = shutil.disk_usage(folder).free
    if free < model_bytes:
        raise InputError(
            Problem(
                f"{folder.parent}: the disk has no space for the tuned model",
                f"{format_bytes(free)} are free, the model needs {format_bytes(model_bytes)}",
                "make room, --output-dir FOLDER on another disk, or --lora",
                code=DISK_FULL,
            )
        )
    # One more than the limit: the oldest is removed after the newest is complete.
    needed = model_bytes + checkpoint_bytes * (recipe.checkpoints.save_total_limit + 1)
    if free < needed:
        observer.notify(
            Notice(
                f"{format_bytes(free)} are free on the disk; the model and its checkpoints may need "
                f"{format_bytes(needed)}: make room, or keep fewer (--set checkpoints.save_total_limit=1)"
            )
        )


def _mentions(error: BaseException, messages: Sequence[str]) -> bool:
    texts = [str(cause) for cause in _chain(error)]
    return any(message in text for text in texts for message in messages)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe_saved(directory: RunDirectory) -> str:
    """Describe what is saved of a run."""
    if not (directory.path / RECIPE).is_file():
        return "nothing was started"
    checkpoint = CheckpointFolder(directory.checkpoints, 1).latest_complete()
    if directory.model.is_dir():
        return f"the tuned model is in {directory.model}"
    if checkpoint is not None:
        return f"{checkpoint} is saved, after step {checkpoint.name.rpartition('-')[2]}"
    saved = "the measurements are" if (directory.path / METRICS).is_file() else "the recipe is"
    return f"no step was saved; {saved} in {directory.path}"


def _retry_command(directory: RunDirectory) -> str:
    if not (directory.path / RECIPE).is_file():
        return "run the same command again"
    return f"neft train --resume {shlex.quote(str(directory.path))}"
