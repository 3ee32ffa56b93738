"""Layers that stay frozen in full fine-tuning (`training.freeze`): find, check and freeze them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError
from neftcli.models.adapters import match_target_modules

if TYPE_CHECKING:
    from collections.abc import Sequence


def find_frozen_weights(model: Any, names: Sequence[str]) -> list[Any]:
    """List the weights of the layers whose dotted path ends with the parts of a name, each weight once."""
    weights: dict[int, Any] = {}
    for name in names:
        for module in match_target_modules(model, name):
            weights |= {id(weight): weight for weight in module.parameters()}
    return list(weights.values())


def freeze_layers(model: Any, names: Sequence[str]) -> None:
    """Freeze the layers that `names` match; an optimiser leaves out weights that need no gradient."""
    for weight in find_frozen_weights(model, names):
        weight.requires_grad_(False)


def validate_freeze(model: Any, names: Sequence[str]) -> None:
    """Check that each name matches a layer with weights, and that other weights are trained.

    Raises:
        RecipeError: A name matches none, or all weights would be frozen.
    """
    problems = [_missing_layer(model, name) for name in names if not find_frozen_weights(model, [name])]
    if problems:
        raise RecipeError(*problems)
    frozen = {id(weight) for weight in find_frozen_weights(model, names)}
    if all(id(weight) in frozen for weight in model.parameters()):
        message = "training.freeze: all weights would be frozen"
        raise RecipeError(Problem(message, ", ".join(names), "leave out the layers to train"))


def _missing_layer(model: Any, name: str) -> Problem:
    """Return the problem of a name that no layer has, with all names and the most similar one."""
    paths = [path for path, module in model.named_modules() if path and any(True for _ in module.parameters())]
    parts = name.count(".") + 1
    similar = get_close_matches(name, {".".join(path.split(".")[-parts:]) for path in paths}, n=1)
    possible = sorted({last for path in paths if not (last := path.rpartition(".")[2]).isdigit()})
    possible += [".".join(path.split(".")[-2:]) for path in paths if path.endswith(".0")][:1]  # such as layers.0
    hint = f"one of {', '.join(possible)}"
    return Problem("training.freeze: the model has no such layer", name, hint, "".join(similar))


def freeze_notices(model: Any, names: Sequence[str]) -> list[str]:
    """List a notice if freezing the embedding or the output layer freezes the other, because they share one matrix."""
    layers = {"embedding": model.get_input_embeddings(), "output layer": model.get_output_embeddings()}
    if layers["output layer"] is None or layers["embedding"].weight is not layers["output layer"].weight:
        return []
    if not any(weight is layers["embedding"].weight for weight in find_frozen_weights(model, names)):
        return []
    return ["training.freeze: this model's embedding and output layer share one matrix, so both stay frozen"]
