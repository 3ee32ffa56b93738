"""Whether the disk has room for what a run will save."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.directory import RunDirectory

STATE_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Bytes that the optimiser keeps for each trained parameter, where it is not twice four."""


def require_space(model: Any, recipe: Recipe, directory: RunDirectory, observer: Observer) -> None:
    """Compares the room on the disk with the tuned model and its checkpoints.

        model      = the weights, or the adapter's
        checkpoint = model + optimiser state (two float32 a trained parameter)

    Args:
        model: As it will be trained.
        recipe: The resolved recipe.
        directory: Where the run is.
        observer: Is told where the model has room and the checkpoints do not.

    Raises:
        InputError: Not even the model has room.
    """
    adapter = recipe.adapter.type != "none"
    saved = [weight for weight in model.parameters() if weight.requires_grad or not adapter]
    model_bytes = sum(weight.numel() * weight.element_size() for weight in saved)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    checkpoint_bytes = model_bytes + trained * STATE_BYTES.get(recipe.training.optim, 8)
    free = shutil.disk_usage(directory.path).free
    if free < model_bytes:
        raise InputError(
            Problem(
                f"{directory.path.parent}: the disk has no room for the tuned model",
                f"{_mib(free)} are free, the model needs {_mib(model_bytes)}",
                "make room, --output-dir FOLDER on another disk, or --lora",
            )
        )
    # One more than are kept: the oldest goes when the newest is whole.
    needed = model_bytes + checkpoint_bytes * (recipe.checkpoints.save_total_limit + 1)
    if free < needed:
        observer.notify(
            Notice(
                f"{_mib(free)} are free on the disk; the model and its checkpoints may need {_mib(needed)}: make room, "
                "or keep fewer (--set checkpoints.save_total_limit=1)"
            )
        )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
