"""What training will write on a CPU, made ready while the trainer is prepared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from neftcli.system.distributed import local_world_size
from neftcli.system.pages import touch_ahead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.prepare import PreparedData
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig


@contextmanager
def touching_ahead(
    recipe: Recipe, compute: ComputeConfig, model: PreTrainedModel, prepared: PreparedData
) -> Iterator[None]:
    """Within the block, touches in the background what an update needs, and the weights that it writes.

    Half of what is free at most, shared by the processes of the compute.

    Args:
        recipe: The resolved recipe.
        compute: Device and arithmetic.
        model: The one that is trained, without adapters.
        prepared: Its rows.
    """
    if compute.device != "cpu":
        yield
        return
    from neftcli.models.memory import estimate_model_memory
    from neftcli.system.device import available_memory

    row_tokens = max(1, prepared.counts.train.tokens // len(prepared.train))
    if recipe.training.batching == "packed":
        row_tokens = recipe.data.max_length
    activation_bytes = 2 if compute.bfloat16 else 4
    weight_bytes = compute.weights_dtype.itemsize
    memory = estimate_model_memory(recipe, model, weight_bytes, activation_bytes, row_tokens, compute.device)
    needed = int(memory.total() - memory.weights)
    weights = model.parameters() if recipe.adapter.type == "none" else ()
    end = touch_ahead(
        min(needed, available_memory(compute.device) // (2 * local_world_size())),
        [(weight.data_ptr(), weight.nbytes) for weight in weights],
    )
    try:
        yield
    finally:
        end()
