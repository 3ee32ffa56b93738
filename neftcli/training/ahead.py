"""What training will write on a CPU, made ready while the rest is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from neftcli.machine.pages import touch_ahead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.prepare import Prepared
    from neftcli.machine.device import Machine
    from neftcli.recipe.schema import Recipe


def touch_what_is_needed(
    recipe: Recipe, machine: Machine, model: PreTrainedModel, prepared: Prepared
) -> Callable[[], None]:
    """Touches, in the background, what an update of usual rows needs, and the weights that it writes.

    Args:
        recipe: The resolved recipe.
        machine: Device and arithmetic.
        model: The one that is trained, without adapters.
        prepared: Its rows.

    Returns:
        What ends it before the first update.
    """
    if machine.device != "cpu":
        return lambda: None
    from neftcli.models.memory import estimate_of

    row_tokens = max(1, prepared.counts.train.tokens // len(prepared.train))
    activation_bytes = 2 if machine.bfloat16 else 4
    memory = estimate_of(recipe, model, machine.weights.itemsize, activation_bytes, row_tokens, machine.device)
    weights = model.parameters() if recipe.adapter.type == "none" else ()
    return touch_ahead(int(memory.total() - memory.weights), [(weight.data_ptr(), weight.nbytes) for weight in weights])
